"""Quadratic losses, where every formula of the theory closes: the ideal unit test and the ideal picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import UserError


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The loss ½ (θ − μ)ᵀ A (θ − μ), a function of theta (D,). A may be indefinite or singular.

    Args:
        hessian: A, a symmetric matrix (D, D).
        centre: μ (D,), where the gradient vanishes.

    Raises:
        ValueError: if the shapes do not fit, or the matrix is not symmetric.
        TypeError: if the centre is not a 1-D floating-point tensor.

    Example:
        >>> loss = Quadratic(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0]))
        >>> loss(torch.tensor([2.0, 2.0])).item()
        3.0
    """

    hessian: Tensor
    centre: Tensor

    def __post_init__(self) -> None:
        size = len(_checks.flat_parameters("centre", self.centre))
        if self.hessian.shape != (size, size):
            raise UserError(
                f"hessian has shape {tuple(self.hessian.shape)} but centre has {size} entries; "
                f"give a matrix of shape {(size, size)}"
            )
        _checks.check_finite("hessian", self.hessian)
        if not torch.equal(self.hessian, self.hessian.T):
            raise UserError("hessian is not symmetric; give (A + A.T) / 2, which has the same loss")

    def __call__(self, theta: Tensor) -> Tensor:
        """The loss at theta (D,), a scalar."""
        offset = theta - self.centre
        return offset @ self.hessian @ offset / 2

    def gradient(self, theta: Tensor) -> Tensor:
        """A(θ − μ), of shape (D,)."""
        return self.hessian @ (theta - self.centre)


def quadratic_task_vectors(
    losses: Sequence[Quadratic], start: Tensor, *, learning_rate: float, epochs: int
) -> Tensor:
    """The task vectors (T, D) in closed form: τ_t = −(I − (I − ηA_t)^k)(θ₀ − μ_t). No step is taken.

    Raises:
        ValueError: if an argument is out of range or there are no losses.
        TypeError: if start is not a flat vector of parameters.

    Example:
        >>> bowl = Quadratic(torch.eye(1), torch.zeros(1))
        >>> quadratic_task_vectors([bowl], torch.tensor([1.0]), learning_rate=0.5, epochs=2).tolist()
        [[-0.75]]
    """
    _checks.flat_parameters("start", start)
    moves = [
        _moved(loss.hessian, loss.gradient(start), learning_rate=learning_rate, epochs=epochs)
        for loss in _checks.not_empty("the list of losses", losses)
    ]
    return torch.stack(moves)


def quadratic_gap(
    losses: Sequence[Quadratic], start: Tensor, *, learning_rate: float, epochs: int, scaling_coef: float
) -> Tensor:
    """The gap Δ (D,) between task arithmetic and multitask descent in closed form (see `theory.merge_gap`).

    The weighted sum of the losses is a quadratic as well, with Hessian α Σ_t A_t, so both ends are known.

    Raises:
        ValueError, TypeError: as `quadratic_task_vectors` does.

    Example:
        >>> bowls = [Quadratic(torch.eye(1), torch.zeros(1)), Quadratic(2 * torch.eye(1), torch.ones(1))]
        >>> quadratic_gap(bowls, torch.tensor([3.0]), learning_rate=0.5, epochs=2, scaling_coef=0.5).item()
        0.0625
    """
    alpha = _checks.finite_number("scaling_coef", scaling_coef)
    vectors = quadratic_task_vectors(losses, start, learning_rate=learning_rate, epochs=epochs)
    hessian = alpha * torch.stack([loss.hessian for loss in losses]).sum(0)
    slope = alpha * torch.stack([loss.gradient(start) for loss in losses]).sum(0)
    return alpha * vectors.sum(0) - _moved(hessian, slope, learning_rate=learning_rate, epochs=epochs)


def _moved(hessian: Tensor, slope: Tensor, *, learning_rate: float, epochs: int) -> Tensor:
    """−η Σ_{j<k} (I − ηA)^j g, summed as a geometric series in the eigenbasis of A."""
    rate = _checks.positive_number("learning_rate", learning_rate)
    epochs = _checks.whole_number("epochs", epochs)
    eigenvalues, basis = torch.linalg.eigh(hessian)
    share = rate * eigenvalues
    # 1 − (1 − x)^k loses digits for a small x; expm1 and log1p keep them
    small = -torch.expm1(epochs * torch.log1p(-share.clamp(-0.5, 0.5)))
    travelled = torch.where(share.abs() < 0.5, small, 1 - (1 - share) ** epochs)
    flat = share == 0
    lengths = torch.where(flat, float(epochs), travelled / torch.where(flat, 1.0, share))
    moved: Tensor = -rate * (basis @ (lengths * (basis.T @ slope)))
    return moved
