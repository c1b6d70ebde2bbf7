"""Quadratic losses, where every formula of the theory closes: the ideal unit test and the ideal picture."""

from __future__ import annotations

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
