"""How long each merging rule takes for eight task vectors of one encoder. Prints a table.

usage: OMP_NUM_THREADS=1 python tests/bench/bench_merging.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from stopwatch import RUNS, seconds
from torch import nn

from taskvec_mini import TaskVector, merging
from taskvec_mini.benchmarks.encoders.pocket import Pocket

TASKS = 8
LONG = 4_000_000  # entries in the comparison of two ways to find a threshold

RULES: dict[str, Callable[[list[TaskVector]], TaskVector]] = {
    "task arithmetic": merging.task_arithmetic,
    "mean": merging.mean,
    "TIES": merging.ties,
    "TIES, tensor by tensor": partial(merging.ties, per_tensor=True),
    "DARE": lambda vectors: merging.dare(vectors, generator=torch.Generator().manual_seed(0)),
    "Breadcrumbs": merging.breadcrumbs,
    "TSV-M, kernels averaged": merging.tsv,
    "TSV-M, kernels as matrices": partial(merging.tsv, kernels="matrix"),
    "RegMean from vectors": merging.regmean_from_vectors,
}


def task_vectors(model: nn.Module) -> list[TaskVector]:
    """Random vectors of the model's layout: what the rules do does not depend on the values."""
    layout = [(name, tuple(part.shape)) for name, part in model.named_parameters()]
    size = sum(part.numel() for part in model.parameters())
    numbers = torch.Generator().manual_seed(0)
    return [TaskVector(torch.randn(size, generator=numbers), layout) for _ in range(TASKS)]


def compare_thresholds() -> None:
    """The entry of a given rank: torch's way, and the one that the rules take on a CPU."""
    values = torch.randn(LONG, generator=torch.Generator().manual_seed(0)).abs()
    place = int(0.8 * LONG)
    slow = seconds(lambda: values.kthvalue(place + 1))
    fast = seconds(lambda: np.partition(values.numpy(), place))
    assert values.kthvalue(place + 1).values.item() == np.partition(values.numpy(), place)[place]
    print(
        f"threshold of {LONG:,} entries: kthvalue {1e3 * slow:.0f} ms, numpy's partition {1e3 * fast:.0f} ms"
    )


def main() -> None:
    """Print a table: one row a rule."""
    vectors = task_vectors(Pocket())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), best of {RUNS}")
    compare_thresholds()
    print(f"{TASKS} vectors of {len(vectors[0]):,} entries (the encoder `pocket`):")
    for name, rule in RULES.items():
        print(f"{name:<28}{seconds(partial(rule, vectors)):>8.2f} s", flush=True)


if __name__ == "__main__":
    main()
