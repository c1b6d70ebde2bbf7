"""How long the bounds take beside a gradient and a measurement, and how tight they are. Prints a table.

usage: OMP_NUM_THREADS=1 python tests/bench/bench_bounds.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from stopwatch import seconds
from torch import Tensor

from taskvec_mini.bounds import curvature_range, gap_ladder, local_bounds, network_bounds
from taskvec_mini.descent import gradient_descent
from taskvec_mini.networks import MLP, FlatLoss, flat_loss, flatten
from taskvec_mini.tasks import choose, digit_tasks

SIZES = ((64, 16, 10), (64, 32, 32, 10), (64, 64, 64, 10), (64, 32, 32, 32, 10))
EXAMPLES, EPOCHS = 200, 50


def trained(sizes: tuple[int, ...]) -> tuple[list[FlatLoss], Tensor]:
    """Two tasks, and the parameters after training on the first."""
    model = MLP(sizes, generator=torch.Generator().manual_seed(0))
    losses = [
        flat_loss(model, task.train_inputs[:EXAMPLES], task.train_labels[:EXAMPLES])
        for task in choose(digit_tasks(), "digits", "mirrored")
    ]
    return losses, gradient_descent(losses[0], flatten(model), learning_rate=0.3, epochs=EPOCHS)[-1]


def row(sizes: tuple[int, ...]) -> str:
    losses, theta = trained(sizes)
    loss, model = losses[0], losses[0].model
    assert isinstance(model, MLP)
    data = loss.inputs, loss.targets

    def ladder() -> object:
        run = {"learning_rate": 2.0**-7, "epochs": 4, "scaling_coef": 0.5, "pieces": 2}
        return gap_ladder(losses, theta, **run, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]

    def measure() -> float:
        return max(map(abs, curvature_range(loss, theta, generator=torch.Generator().manual_seed(0))))

    calls: list[Callable[[], object]] = [
        lambda: torch.func.grad(loss)(theta),
        lambda: network_bounds(model, data[0], theta=theta),
        lambda: local_bounds(model, *data, theta=theta),
        measure,
        ladder,
    ]
    truth = measure()
    loose = network_bounds(model, data[0], theta=theta).hessian / truth
    tight = local_bounds(model, *data, theta=theta).hessian / truth
    times = "".join(f"{1000 * seconds(call):12.1f}" for call in calls)
    return f"{'-'.join(map(str, sizes)):>18}{times}{loose:16.0f}{tight:12.1f}"


def main() -> None:
    print(f"{EXAMPLES} examples, tanh, {EPOCHS} epochs; milliseconds, then bound ÷ measured curvature")
    heads = ("gradient", "norms", "examples", "Lanczos", "ladder")
    print(f"{'network':>18}" + "".join(f"{head:>12}" for head in heads) + f"{'norms':>16}{'examples':>12}")
    for sizes in SIZES:
        print(row(sizes))


if __name__ == "__main__":
    main()
