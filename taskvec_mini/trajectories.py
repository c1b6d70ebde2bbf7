"""Measures of vectors and paths in parameter space: angles, and planes to draw them in."""

from __future__ import annotations

import torch
from torch import Tensor

from taskvec_mini import _checks


def angle(first: Tensor, second: Tensor) -> float:
    """The angle between two vectors (D,) in degrees, accumulated in float64.

    It is found from the part of `first` across `second`, so that tiny angles are not lost in rounding, as
    they are in the arc cosine of a cosine near 1.

    Raises:
        ValueError: if a vector is zero, or holds NaN or infinity.

    Example:
        >>> round(angle(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0])), 6)
        45.0
    """
    a, direction = first.double(), _direction("second", second)
    _direction("first", first)
    along = a @ direction
    across = (a - along * direction).norm()
    return float(torch.atan2(across, along).rad2deg())


def plane(first: Tensor, second: Tensor) -> Tensor:
    """Two orthonormal axes (2, D) of the plane that two vectors (D,) span, the first axis along `first`.

    Multiply points (K, D) by its transpose to draw them: `points @ plane(u, v).T` has shape (K, 2).

    Raises:
        ValueError: if a vector is zero or not finite, or the two are parallel.

    Example:
        >>> plane(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    across = _direction("first", first)
    other = _direction("second", second)
    up = other - (other @ across) * across
    if up.norm() < 1e-9:
        raise ValueError("the two vectors are parallel and span no plane; choose another second vector")
    return torch.stack([across, up / up.norm()])


def _direction(name: str, vector: Tensor) -> Tensor:
    _checks.check_finite(name, vector)
    length = vector.double().norm()
    if length == 0:
        raise ValueError(f"the {name} vector is zero and so has no direction; was the model trained at all?")
    direction: Tensor = vector.double() / length
    return direction
