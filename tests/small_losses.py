"""Small losses on real digits, and the slow and plain truths which the tests of the theory share."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from taskvec_mini.networks import MLP, FlatLoss, LossName, flat_loss, flatten
from taskvec_mini.tasks import digit_tasks

NAMES = ("digits", "mirrored", "inverted", "rotated")


@functools.cache
def suite():
    return digit_tasks(seed=0)


def digit_losses(
    tasks: int,
    *,
    activation: str = "tanh",
    loss: LossName = "cross_entropy",
    examples: int = 60,
    width: int = 8,
    seed: int = 0,
) -> tuple[list[FlatLoss], Tensor]:
    """T losses of one small network, each on digits of its own, and the network's parameters."""
    model = MLP((64, width, 10), activation=activation, generator=torch.Generator().manual_seed(seed))
    losses = []
    for number, name in enumerate(NAMES[:tasks]):
        own = slice(number * examples, (number + 1) * examples)
        task = suite()[name]
        losses.append(flat_loss(model, task.train_inputs[own], task.train_labels[own], loss=loss))
    return losses, flatten(model)


def convolutional_losses() -> tuple[list[FlatLoss], Tensor]:
    """The losses of a small convolutional network on twelve images and on their mirror images; a start."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(16, 10)).double()
    images = torch.rand(12, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (12,), generator=generator)
    losses = [flat_loss(model, images, labels), flat_loss(model, images.flip(3), labels)]
    start = torch.randn(flatten(model).shape, generator=generator, dtype=torch.float64) / 4
    return losses, start


def tiny_losses(tasks: int, *, seed: int = 0, activation: str = "tanh") -> tuple[list[FlatLoss], Tensor]:
    """T losses of a network with 23 parameters, small enough for dense Hessians."""
    generator = torch.Generator().manual_seed(seed)
    model = MLP((3, 3, 2), activation=activation, generator=generator)
    losses = []
    for _ in range(tasks):
        inputs = torch.randn(7, 3, dtype=torch.float64, generator=generator)
        labels = torch.randint(2, (7,), generator=generator)
        losses.append(flat_loss(model, inputs, labels))
    return losses, 2 * flatten(model)


def gradient(loss, theta: Tensor) -> Tensor:
    return torch.func.grad(loss)(theta)


def hessian(loss, theta: Tensor) -> Tensor:
    return torch.func.jacrev(torch.func.grad(loss))(theta)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
