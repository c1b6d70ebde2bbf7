"""The curvature of a loss as it is found by trying directions: a measurement, not a bound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.theory import hessian_products


def curvature_range(
    loss: Callable[[Tensor], Tensor], theta: Tensor, *, steps: int = 30, generator: torch.Generator
) -> tuple[float, float]:
    """The lowest and the highest curvature of a loss that Lanczos finds at `theta`, from a random direction.

    Both lie between the true extreme eigenvalues of the Hessian, and close to them after some dozens of
    steps: a measurement, from the inside, not a bound. One Hessian-vector product a step; the basis is kept
    orthogonal, which costs `steps` vectors of memory.

    Args:
        loss: a function from theta (D,) to a scalar.
        theta: where to look (D,).
        steps: how many directions to try, at least 1; never more than D.
        generator: draws the first direction.

    Raises:
        TypeError, ValueError: if theta is not a flat vector of finite numbers, or steps is below 1.

    Example:
        >>> bowl = lambda theta: (theta[0] ** 2 - 3 * theta[1] ** 2) / 2
        >>> low, high = curvature_range(bowl, torch.zeros(2).double(), generator=torch.Generator())
        >>> round(low, 9), round(high, 9)
        (-3.0, 1.0)
    """
    point = _checks.flat_parameters("theta", theta).detach()[None]
    steps = min(_checks.whole_number("steps", steps), point.shape[1])
    product = hessian_products([loss])
    first = torch.randn(point.shape[1], generator=generator, dtype=point.dtype)
    basis, bands = [first / first.norm()], torch.zeros(steps, steps, dtype=point.dtype)
    for step in range(steps):
        image = product(point, basis[-1][None])[2][0]
        known = torch.stack(basis)
        bands[: step + 1, step] = known @ image
        for _ in range(2):  # once is not enough in floating point
            image = image - known.T @ (known @ image)
        if float(image.norm()) <= 1e-10 * float(bands.abs().max()):  # the basis holds all that it can reach
            break
        basis.append(image / image.norm())
    values = torch.linalg.eigvalsh(bands[: step + 1, : step + 1], UPLO="U")
    return float(values[0]), float(values[-1])
