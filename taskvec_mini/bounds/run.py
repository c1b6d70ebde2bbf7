"""The paths of one comparison, task arithmetic beside multitask descent, and what can be read off them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import torch
from torch import Tensor

from taskvec_mini.bounds.constants import layers_at
from taskvec_mini.descent import gradient_descent, gradients
from taskvec_mini.networks import MLP, FlatLoss
from taskvec_mini.theory import multitask_descent


class Options(TypedDict):
    """The keywords that `theory.merge_gap` and its relatives share."""

    learning_rate: float
    epochs: int
    scaling_coef: float


@dataclass(frozen=True, eq=False)
class Run:
    """The paths, and what can be read off them."""

    losses: list[FlatLoss]
    start: Tensor
    learning_rate: float
    epochs: int
    scaling_coef: float

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.losses)

    @property
    def options(self) -> Options:
        """What the functions of `theory` are called with."""
        return {
            "learning_rate": self.learning_rate,
            "epochs": self.epochs,
            "scaling_coef": self.scaling_coef,
        }

    @cached_property
    def finetuned(self) -> Tensor:
        """θ_t^j, (T, k + 1, D)."""
        rate, epochs = self.learning_rate, self.epochs
        return gradient_descent(self.losses, self.start, learning_rate=rate, epochs=epochs)

    @cached_property
    def multitask(self) -> Tensor:
        """M^j, (k + 1, D)."""
        return multitask_descent(self.losses, self.start, **self.options)

    @property
    def true_drift(self) -> float:
        """The largest ‖θ_t^k − M^k‖."""
        return float((self.finetuned[:, -1] - self.multitask[-1]).norm(dim=1).max())

    def slopes(self, theta: Tensor) -> Tensor:
        """g_t(θ), (T, D)."""
        return gradients(self.losses)(theta.expand(len(self.losses), -1))[1]

    def disagreement(self, theta: Tensor) -> Tensor:
        """‖r_t(θ)‖, (T,)."""
        slopes = self.slopes(theta)
        return _lengths(self.scaling_coef * slopes.sum(0) - slopes)

    @cached_property
    def disagreements(self) -> Tensor:
        """‖r_t(M^j)‖ for j < k, (T, k)."""
        return torch.stack([self.disagreement(theta) for theta in self.multitask[:-1]], dim=1)

    @cached_property
    def steepest(self) -> float:
        """The largest ‖g_t‖ on the paths, at the points θ_t^j and M^j with j < k."""
        own = [gradients(self.losses)(thetas)[1] for thetas in self.finetuned[:, :-1].unbind(1)]
        joint = [self.slopes(theta) for theta in self.multitask[:-1]]
        return float(torch.stack(own + joint).norm(dim=2).max())

    def mixed(self, sizes: Tensor) -> Tensor:
        """|α| Σ_{s≠t} x_s + |1 − α| x_t: what ‖r_t‖ is at most when ‖g_s‖ ≤ x_s."""
        others = sizes.sum(0) - sizes
        return abs(self.scaling_coef) * others + abs(1 - self.scaling_coef) * sizes

    def along(
        self, count: int, look: Callable[[FlatLoss, Tensor, list[float]], tuple[float, float]]
    ) -> Tensor:
        """Two numbers for each piece of each segment from θ_t^j to M^j, (2, T, k, count); zeros for j = 0.

        Every segment is cut into `count` pieces. `look` is given the task's loss, the centre of a piece and
        how far each layer's parameters move from there to its ends.
        """
        found = torch.zeros(2, self.tasks, self.epochs, count, dtype=torch.float64)
        for task, loss in enumerate(self.losses):
            for epoch in range(1, self.epochs):
                begin, end = self.finetuned[task, epoch], self.multitask[epoch]
                half = layer_lengths(loss, (end - begin) / (2 * count))
                for piece in range(count):
                    centre = begin + (end - begin) * (2 * piece + 1) / (2 * count)
                    found[:, task, epoch, piece] = torch.tensor(look(loss, centre, half))
        return found


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths


def layer_lengths(loss: FlatLoss, change: Tensor) -> list[float]:
    """The Euclidean length of each layer's part of a change of the parameters."""
    assert isinstance(loss.model, MLP)
    weights, biases = layers_at(loss.model, change)
    return [math.hypot(float(w.norm()), float(b.norm())) for w, b in zip(weights, biases, strict=True)]
