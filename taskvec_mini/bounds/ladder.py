"""A ladder of bounds on one gap: from what is known before training to the gap itself, each rung tighter.

What a rung proves, and from what, is part of it: see `Rung.kind`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.bounds.constants import layers_at
from taskvec_mini.bounds.gap import curvature_range, drift_bound, gap_bound
from taskvec_mini.bounds.local import local_bounds
from taskvec_mini.bounds.weights import NetworkBounds, network_bounds
from taskvec_mini.descent import gradient_descent, gradients
from taskvec_mini.errors import InputTypeError
from taskvec_mini.networks import MLP, FlatLoss
from taskvec_mini.theory import leading_gap, merge_gap, multitask_descent

Kind = Literal["proof before the run", "proof along the run", "measurement", "approximation", "truth"]
BEFORE: Kind = "proof before the run"
ALONG: Kind = "proof along the run"


@dataclass(frozen=True)
class Rung:
    """One statement on the size of the gap, with what it is made of: the largest over tasks and epochs.

    Attributes:
        name: what the rung looks at.
        kind: "proof before the run" needs the start alone; "proof along the run" needs the finished paths,
            and so comes when the gap could be computed as well; a "measurement" samples the curvature and
            proves nothing about what lies between the samples; an "approximation" is no bound at all.
        gap: the bound on ‖TA − M‖; infinite where the rung has nothing to say.
        drift: the bound on ‖θ_t^k − M^k‖.
        curvature, negative_curvature: β and μ; NaN where a rung does not use them.
        disagreement, gradient: R and G.
        radius: of the ball around the start that holds the paths, for a proof before the run.
    """

    name: str
    kind: Kind
    gap: float
    drift: float = math.nan
    curvature: float = math.nan
    negative_curvature: float = math.nan
    disagreement: float = math.nan
    gradient: float = math.nan
    radius: float = math.nan


@dataclass(frozen=True, eq=False)
class Run:
    """The paths of one comparison, task arithmetic beside multitask descent, and what they say."""

    losses: list[FlatLoss]
    start: Tensor
    learning_rate: float
    epochs: int
    scaling_coef: float

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.losses)

    @cached_property
    def finetuned(self) -> Tensor:
        """θ_t^j, (T, k + 1, D)."""
        return gradient_descent(self.losses, self.start, learning_rate=self.learning_rate, epochs=self.epochs)

    @cached_property
    def multitask(self) -> Tensor:
        """M^j, (k + 1, D)."""
        return multitask_descent(
            self.losses,
            self.start,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            scaling_coef=self.scaling_coef,
        )

    @property
    def true_drift(self) -> float:
        """The largest ‖θ_t^k − M^k‖."""
        return float((self.finetuned[:, -1] - self.multitask[-1]).norm(dim=1).max())

    @property
    def true_gap(self) -> float:
        """‖TA − M‖."""
        gap = merge_gap(
            self.losses,
            self.start,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            scaling_coef=self.scaling_coef,
        )
        return float(gap.norm())

    def slopes(self, theta: Tensor) -> Tensor:
        """g_t(θ), (T, D)."""
        return gradients(self.losses)(theta.expand(len(self.losses), -1))[1]

    def disagreement(self, theta: Tensor) -> Tensor:
        """‖r_t(θ)‖, (T,)."""
        slopes = self.slopes(theta)
        lengths: Tensor = torch.linalg.vector_norm(self.scaling_coef * slopes.sum(0) - slopes, dim=1)
        return lengths

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
                weights, biases = layers_at(_mlp(loss), (end - begin) / (2 * count))
                half = [
                    math.hypot(float(w.norm()), float(b.norm())) for w, b in zip(weights, biases, strict=True)
                ]
                for piece in range(count):
                    centre = begin + (end - begin) * (2 * piece + 1) / (2 * count)
                    found[:, task, epoch, piece] = torch.tensor(look(loss, centre, half))
        return found


def gap_ladder(
    losses: Sequence[FlatLoss],
    start: Tensor,
    *,
    learning_rate: float,
    epochs: int,
    scaling_coef: float,
    pieces: int = 4,
    generator: torch.Generator,
) -> list[Rung]:
    """Seven statements on the gap of `theory.merge_gap`, the loosest first, the gap itself last.

    1. weight norms in a ball around the start, wide enough to hold the paths: no training needed;
    2. the examples (`local_bounds`) in such a ball, from the gradients at the start;
    3. weight norms between the two paths, epoch by epoch;
    4. the examples between the two paths, each segment cut into pieces; R as it is on the path;
    5. the largest curvature that Lanczos finds at the pieces' centres: a measurement;
    6. the leading term;
    7. the gap.

    Args:
        losses: T losses from `networks.flat_loss` with a `networks.MLP` of smooth activation.
        start, learning_rate, epochs, scaling_coef: as in `theory.merge_gap`.
        pieces: into how many parts rungs 4 and 5 cut each segment; more are slower, and tighter in rung 4.
        generator: draws the start vectors of Lanczos.

    Raises:
        TypeError: if a loss does not come from `flat_loss`, or its model is no MLP.
        ValueError, DivergedError: as `local_bounds` and `descent.gradient_descent` do.
    """
    for loss in _checks.not_empty("the list of losses", losses):
        if not isinstance(loss, FlatLoss):
            raise InputTypeError(
                f"the ladder looks inside the losses: make them with flat_loss, got {loss!r}"
            )
    start = _checks.flat_parameters("start", start).detach().double()
    run = Run(list(losses), start, learning_rate, epochs, scaling_coef)
    rungs = [
        weights_in_a_ball(run),
        examples_in_a_ball(run),
        weights_along(run),
        examples_along(run, _checks.whole_number("pieces", pieces)),
        measured_along(run, pieces, generator),
    ]
    leading = leading_gap(
        losses, start, learning_rate=learning_rate, epochs=epochs, scaling_coef=scaling_coef
    )
    return [
        *rungs,
        Rung("the leading term", "approximation", gap=float(leading.norm())),
        Rung("the gap", "truth", gap=run.true_gap, drift=run.true_drift),
    ]


def _rung(
    run: Run,
    name: str,
    *,
    kind: Kind,
    curvature: Tensor,
    disagreement: Tensor,
    gradient: float,
    negative: Tensor | None = None,
    radius: float = math.nan,
) -> Rung:
    """The rung that follows from β, R and μ, each (T, k) or (T, 1), and G."""
    return Rung(
        name,
        kind,
        gap=gap_bound(
            curvature,
            disagreement,
            learning_rate=run.learning_rate,
            epochs=run.epochs,
            scaling_coef=run.scaling_coef,
            tasks=run.tasks,
            negative_curvature=negative,
            gradient=gradient,
        ),
        drift=drift_bound(
            curvature,
            disagreement,
            learning_rate=run.learning_rate,
            epochs=run.epochs,
            negative_curvature=negative,
            speed=(1 + abs(run.scaling_coef) * run.tasks) * gradient,
        ),
        curvature=float(curvature.max()),
        negative_curvature=math.nan if negative is None else float(negative.max()),
        disagreement=float(disagreement.max()),
        gradient=gradient,
        radius=radius,
    )


def covering_radius(reach: Callable[[float], float], *, largest: float = 1e6) -> float:
    """A radius ρ with reach(ρ) ≤ ρ, nearly the least one; infinity where none up to `largest` is found.

    Here reach(ρ) says how far a path can come while it stays within ρ of its start. Then it never leaves that
    ball: it would have to come further than ρ first.

    Example:
        >>> covering_radius(lambda radius: 1 + radius / 2) < 2.2, covering_radius(lambda radius: 1 + radius)
        (True, inf)
    """
    radius = reach(0.0)
    while radius <= largest:
        needed = reach(radius)
        if needed <= radius:
            return radius
        radius = 1.05 * needed
    return math.inf


def weights_in_a_ball(run: Run) -> Rung:
    """Everything from weight norms at the start; the radius from G, which bounds every step of every path."""
    name = "weight norms in a ball"
    steps = run.learning_rate * (run.epochs - 1) * max(1.0, abs(run.scaling_coef) * run.tasks)

    def slopes(radius: float) -> Tensor:
        return _column([_from_weights(loss, run.start, radius).gradient for loss in run.losses])

    radius = covering_radius(lambda size: steps * float(slopes(size).max()))
    if math.isinf(radius):
        return Rung(name, BEFORE, gap=math.inf, drift=math.inf, radius=radius)
    beta = _column([_from_weights(loss, run.start, radius).hessian for loss in run.losses])
    steepest = slopes(radius)
    return _rung(
        run,
        name,
        kind=BEFORE,
        curvature=beta,
        disagreement=run.mixed(steepest),
        gradient=float(steepest.max()),
        radius=radius,
    )


def examples_in_a_ball(run: Run) -> Rung:
    """The examples, from the start alone; the radius from the gradients there, which grow by β a unit of way.

    That is the recursion of `drift_bound`, so it also says how far a path can come.
    """
    name = "examples in a ball"
    slopes = run.slopes(run.start)
    sizes = slopes.norm(dim=1)[:, None]
    together = float((run.scaling_coef * slopes.sum(0)).norm())

    def bounds(radius: float) -> tuple[Tensor, Tensor]:
        found = [_from_examples(loss, run.start, radius) for loss in run.losses]
        return _column([beta for beta, _ in found]), _column([mu for _, mu in found])

    def reaches(beta: Tensor) -> tuple[float, float]:
        if run.epochs == 1:
            return 0.0, 0.0
        rate, epochs = run.learning_rate, run.epochs - 1
        joint = abs(run.scaling_coef) * float(beta.sum())
        own = drift_bound(beta, sizes, learning_rate=rate, epochs=epochs)
        return own, drift_bound(joint, together, learning_rate=rate, epochs=epochs)

    radius = covering_radius(lambda size: max(reaches(bounds(size)[0])), largest=100.0)
    if math.isinf(radius):
        return Rung(name, BEFORE, gap=math.inf, drift=math.inf, radius=radius)
    beta, mu = bounds(radius)
    push = run.disagreement(run.start)[:, None] + run.mixed(beta) * reaches(beta)[1]
    steepest = float((sizes + radius * beta).max())
    return _rung(
        run,
        name,
        kind=BEFORE,
        curvature=beta,
        disagreement=push,
        gradient=steepest,
        negative=mu,
        radius=radius,
    )


def weights_along(run: Run) -> Rung:
    """Weight norms on the segments between the paths; R from the gradient bounds on the multitask path."""

    def look(loss: FlatLoss, centre: Tensor, half: list[float]) -> tuple[float, float]:
        bounds = _from_weights(loss, centre, half)
        return bounds.hessian, bounds.gradient

    beta, slopes = run.along(1, look).squeeze(-1)
    at_path = [
        _column([_from_weights(loss, theta).gradient for loss in run.losses]) for theta in run.multitask[:-1]
    ]
    joint = torch.cat(at_path, dim=1)
    steepest = float(torch.maximum(slopes, joint).max())
    return _rung(
        run,
        "weight norms along the paths",
        kind=ALONG,
        curvature=beta,
        disagreement=run.mixed(joint),
        gradient=steepest,
    )


def examples_along(run: Run, pieces: int) -> Rung:
    """The examples on pieces of the segments between the paths; R as it is on the multitask path.

    The mean Hessian of a segment is the mean over its pieces, so the mean of their bounds holds for it.
    """
    beta, mu = run.along(pieces, _from_examples).mean(-1)
    return _rung(
        run,
        "examples along the paths",
        kind=ALONG,
        curvature=beta,
        disagreement=run.disagreements,
        gradient=run.steepest,
        negative=mu,
    )


def measured_along(run: Run, pieces: int, generator: torch.Generator) -> Rung:
    """As `examples_along`, with the curvature that Lanczos finds at the centres of the pieces: no proof."""

    def look(loss: FlatLoss, centre: Tensor, half: list[float]) -> tuple[float, float]:
        low, high = curvature_range(loss, centre, generator=generator)
        return max(high, -low), max(0.0, -low)

    beta, mu = run.along(pieces, look).mean(-1)
    return _rung(
        run,
        "measured curvature along the paths",
        kind="measurement",
        curvature=beta,
        disagreement=run.disagreements,
        gradient=run.steepest,
        negative=mu,
    )


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def _from_weights(loss: FlatLoss, theta: Tensor, radius: float | Sequence[float] = 0.0) -> NetworkBounds:
    return network_bounds(
        _mlp(loss),
        loss.inputs,
        loss=loss.loss,
        targets=loss.targets,
        theta=theta,
        radius=radius,
        outputs=loss.outputs,
    )


def _from_examples(loss: FlatLoss, theta: Tensor, radius: float | Sequence[float]) -> tuple[float, float]:
    bounds = local_bounds(
        _mlp(loss),
        loss.inputs,
        loss.targets,
        loss=loss.loss,
        theta=theta,
        radius=radius,
        outputs=loss.outputs,
    )
    return bounds.hessian, bounds.negative_curvature


def _mlp(loss: FlatLoss) -> MLP:
    if not isinstance(loss.model, MLP):
        raise InputTypeError(f"the ladder needs losses of a networks.MLP, got {type(loss.model).__name__}")
    return loss.model
