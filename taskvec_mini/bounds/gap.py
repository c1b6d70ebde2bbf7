"""How far the paths of finetuning part, and how large the gap grows, from four numbers: β, R, G and μ.

Bounds on β, μ and G come from `bounds.weights` and `bounds.local`; `curvature_range` measures β and μ.

With H_t the Hessian and g_t the gradient of task t, ĝ = Σ_t g_t, α the scaling coefficient and η the learning
rate, r_t = αĝ − g_t is the disagreement of task t with multitask descent. The bounds hold at every η.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.theory import hessian_products

Numbers = float | Tensor


def drift_bound(
    curvature: Numbers,
    disagreement: Numbers,
    *,
    learning_rate: float,
    epochs: int,
    negative_curvature: Numbers | None = None,
    speed: float = math.inf,
) -> float:
    """A bound on ‖θ_t^k − M^k‖, how far finetuning ends from multitask descent: R((1 + ηβ)^k − 1)/β.

    It holds at every learning rate: in an epoch the distance grows by a factor 1 + ηβ at most, and by ηR.

    Args:
        curvature: β, with ‖H_t‖ ≤ β between the two paths; or one for each task and epoch, as a tensor (T, k)
            whose column j speaks of the segment from θ_t^j to M^j. The result is then the largest over tasks.
        disagreement: R, with ‖r_t‖ ≤ R on the multitask path, or one for each task and epoch.
        learning_rate: η, above 0.
        epochs: k, at least 1.
        negative_curvature: μ, where no eigenvalue of H_t is below −μ. While ηβ ≤ 2 it alone pushes the paths
            apart: the factor becomes max(1 + ημ, ηβ − 1). By default μ = β.
        speed: a bound on ‖g_t(θ) − αĝ(M)‖; (1 + |α|T) G is one. Then the distance is at most ηk times this.

    Raises:
        ValueError: if a number is out of range or the tensors do not fit.

    Example:
        >>> drift_bound(2.0, 1.0, learning_rate=0.5, epochs=2)
        1.5
    """
    distances = _distances(
        curvature,
        disagreement,
        learning_rate=learning_rate,
        epochs=epochs,
        negative_curvature=negative_curvature,
        speed=speed,
    )
    return float(distances[:, -1].max())


def gap_bound(
    curvature: Numbers,
    disagreement: Numbers,
    *,
    learning_rate: float,
    epochs: int,
    scaling_coef: float,
    tasks: int,
    negative_curvature: Numbers | None = None,
    gradient: float = math.inf,
) -> float:
    """A bound on the gap ‖TA − M‖ after k epochs: |α| T R [((1 + ηβ)^k − 1)/β − ηk], at every learning rate.

    The gap is −αη Σ_t Σ_{j<k} [g_t(θ_t^j) − g_t(M^j)], and each bracket is at most β times the drift so far.
    For small ηβ the bound is about |α| T R β η² k(k − 1)/2. It is zero after one epoch.

    Args:
        curvature, disagreement, learning_rate, epochs, negative_curvature: as in `drift_bound`.
        scaling_coef: α.
        tasks: T.
        gradient: G, with ‖g_t‖ ≤ G on both paths. It stops the exponential: no bracket exceeds 2G, and the
            paths part no faster than η(1 + |α|T)G an epoch.

    Raises:
        ValueError: if a number is out of range or the tensors do not fit.

    Example:
        >>> gap_bound(2.0, 1.0, learning_rate=0.5, epochs=2, scaling_coef=0.5, tasks=2)
        0.5
    """
    tasks = _checks.whole_number("tasks", tasks)
    weight = abs(_checks.finite_number("scaling_coef", scaling_coef))
    distances = _distances(
        curvature,
        disagreement,
        learning_rate=learning_rate,
        epochs=epochs,
        negative_curvature=negative_curvature,
        speed=(1 + weight * tasks) * gradient,
        tasks=tasks,
    )
    beta = _per_epoch("curvature", curvature, tasks=tasks, epochs=epochs)
    brackets = _times(beta[:, 1:], distances[:, 1:-1]).clamp(max=2 * gradient)
    return float(weight * learning_rate * brackets.sum())


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


def _distances(
    curvature: Numbers,
    disagreement: Numbers,
    *,
    learning_rate: float,
    epochs: int,
    negative_curvature: Numbers | None,
    speed: float,
    tasks: int | None = None,
) -> Tensor:
    """Bounds (T, k + 1) on ‖θ_t^j − M^j‖, from d ← ‖I − ηH̄‖ d + ηR, H̄ the mean Hessian between the two."""
    rate = _checks.positive_number("learning_rate", learning_rate)
    epochs = _checks.whole_number("epochs", epochs)
    beta = _per_epoch("curvature", curvature, tasks=tasks, epochs=epochs)
    push = _per_epoch("disagreement", disagreement, tasks=tasks, epochs=epochs)
    growth = beta
    if negative_curvature is not None:
        mu = _per_epoch("negative_curvature", negative_curvature, tasks=tasks, epochs=epochs)
        growth = torch.maximum(mu, beta - 2 / rate)
    distances = [torch.zeros(len(beta), dtype=torch.float64)]
    for factor, part in zip(growth.T, push.T, strict=True):
        distances.append(distances[-1] + rate * (_times(factor, distances[-1]) + part).clamp(max=speed))
    return torch.stack(distances, dim=1)


def _times(factor: Tensor, distance: Tensor) -> Tensor:
    # a distance that overflowed to infinity stays infinite: 0 · ∞ is NaN, which no comparison would notice
    return torch.where(distance.isinf(), distance, factor * distance)


def _per_epoch(name: str, values: Numbers, *, tasks: int | None, epochs: int) -> Tensor:
    given = torch.as_tensor(values, dtype=torch.float64)
    if given.ndim not in (0, 2) or bool((given < 0).any()) or not bool(torch.isfinite(given).all()):
        raise UserError(f"{name} must be finite numbers of at least 0, one or (T, k) of them, got {values}")
    try:
        return given.expand(tasks or (len(given) if given.ndim else 1), epochs)
    except RuntimeError as error:
        raise UserError(
            f"{name} has shape {tuple(given.shape)}, expected ({tasks or 'T'}, {epochs}) for tasks and epochs"
        ) from error
