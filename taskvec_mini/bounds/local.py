"""Bounds on the Hessian that look at the examples: proven, and within a small factor of the truth.

`bounds.network_bounds` knows a network by the norms of its weights alone. Here every example is sent through
the network once, and what it does there is computed. Write ĥ_l for the input of layer l with a 1 appended,
J_ml for ∂z_m/∂z_l, δ_l for ∂ℓ/∂z_l, e_m for ∂ℓ/∂h_m, and Λ for the Hessian of ℓ in the outputs.

1. Along a direction V with parts V_l, ż_m = Σ_{l≤m} J_ml V_l ĥ_l, and VᵀHV is the mean over the examples of
   ż_LᵀΛż_L + Σ_{m<L} ż_mᵀ diag(f_m) ż_m + 2 Σ_{i<l} δ_lᵀ V_l M_li V_i ĥ_i,
   with f_m = e_m σ''(z_m) and M_li = ∂h_{l−1}/∂z_i. So far this is an equation.
2. Drop the negative entries of f_m for an upper bound, the positive ones and Λ for a lower one. What is left
   are squares: E[ż_mᵀFż_m] ≤ (Σ_l p_l ‖V_l‖)², where p_l² is the largest eigenvalue of E[‖ĥ_l‖² G] or of
   E[‖G‖ ĥ_lĥ_lᵀ], whichever is less, and G = J_mlᵀFJ_ml.
3. E[δ_lᵀ V M U ĥ_i] is at most ‖V‖‖U‖ times ‖E[M]‖ ‖E[ĥ_iδ_lᵀ]‖, plus by Cauchy and Schwarz the same kind of
   eigenvalues for M − E[M]. Both steps let examples that point in different directions cancel.
4. So VᵀHV ≤ νᵀKν with ν_l = ‖V_l‖ and a small matrix K, whose largest eigenvalue is the bound.

The result is this book's own; chapter 4 proves it. Values are exact to rounding, about 1e-12 of their size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec_mini.bounds.constants import centre_of, check_network, check_smooth, layer_radii
from taskvec_mini.bounds.point import Moves, Pair, Point, growth, moves_in, norms_of, point_at
from taskvec_mini.networks import MLP, LossName, flat_loss


@dataclass(frozen=True)
class LocalBounds:
    """Bounds from the examples, with the matrices K behind them, (2, L, L) each: for H, and for −H.

    Attributes:
        radius: how far each layer's parameters may move (L,); zeros for a point.
        gradient: ‖∇L‖ at the centre, plus the distance times `hessian`; equal to ‖∇L‖ at a point.
        activation_blocks: from weight norms and each example's activations and predictions.
        jacobian_blocks: from each example's Jacobians and signals as well; no entry is larger.
        averaged_blocks: and from the directions of the examples; no entry is larger.
    """

    radius: tuple[float, ...]
    gradient: float
    activation_blocks: Tensor
    jacobian_blocks: Tensor
    averaged_blocks: Tensor

    @property
    def hessian(self) -> float:
        """The best bound on ‖∇²L‖₂, from `averaged_blocks`."""
        return largest_eigenvalue(self.averaged_blocks)

    @property
    def rungs(self) -> dict[str, float]:
        """A bound on ‖∇²L‖₂ from each of the three pairs of matrices, the loosest first."""
        return {
            "activations": largest_eigenvalue(self.activation_blocks),
            "Jacobians": largest_eigenvalue(self.jacobian_blocks),
            "directions": largest_eigenvalue(self.averaged_blocks),
        }

    @property
    def negative_curvature(self) -> float:
        """μ ≥ 0: no eigenvalue of ∇²L is below −μ."""
        return largest_eigenvalue(self.averaged_blocks[1])


def local_bounds(
    model: MLP,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: LossName = "cross_entropy",
    theta: Tensor | None = None,
    radius: float | Sequence[float] = 0.0,
    outputs: slice = slice(None),
) -> LocalBounds:
    """Bounds on the gradient and the Hessian of the mean loss from what each example does in the network.

    They hold at the model's own parameters, or at `theta`; with a radius, in the whole region around them.
    Time grows with the examples, the square of the depth and the cube of the width.

    Args:
        model: a `networks.MLP` with a smooth activation.
        inputs, targets: N examples, as `networks.flat_loss` takes them.
        loss, theta, radius, outputs: as in `bounds.network_bounds`.

    Raises:
        TypeError: if the model is not a `networks.MLP`.
        ValueError: if the activation is ReLU, or shapes, labels, names or the radius do not fit.

    Example:
        >>> model = MLP((2, 3, 2), generator=torch.Generator().manual_seed(0))
        >>> inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> bounds = local_bounds(model, inputs, torch.tensor([0, 1]))
        >>> bounds.hessian <= largest_eigenvalue(bounds.jacobian_blocks)
        True
    """
    check_network(model, inputs)
    if len(model.layers) > 1:
        check_smooth(model.activation)
    point = point_at(flat_loss(model, inputs, targets, loss=loss, outputs=outputs), centre_of(model, theta))
    moves = moves_in(point, layer_radii(radius, point.depth))
    activations = _activation_blocks(point, moves)
    # First the squares, of the loss and of each activation that bends, then the signals. `found` is
    # (2, 2, L, L): per example and averaged, each of them for H and for −H.
    last = point.depth - 1
    total = _square(point, moves, m=last, factor=point.curvature, move=moves.curvature)
    nothing = torch.zeros_like(total)  # a loss that is convex in the outputs adds nothing to −H
    found = torch.stack([total, nothing], dim=1)
    for m in range(last):
        force = point.bends[m] * point.pulls[m]
        signs = [
            _square(point, moves, m=m, factor=part.clamp_min(0), move=moves.bends[m])
            for part in (force, -force)
        ]
        found = found + torch.stack(signs, dim=1)
    found = found + _signals(point, moves)[:, None]
    per_example = torch.minimum(found[0], activations)
    averaged = torch.minimum(found[1], activations)
    length, distance = float(point.gradient.norm()), math.hypot(*moves.radii)
    return LocalBounds(
        radius=tuple(moves.radii),
        gradient=length + (distance * largest_eigenvalue(averaged) if distance else 0.0),
        activation_blocks=activations,
        jacobian_blocks=per_example,
        averaged_blocks=averaged,
    )


def largest_eigenvalue(matrices: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix or a stack of them, or 0 if all are negative.

    Example:
        >>> largest_eigenvalue(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
        2.0
    """
    return max(0.0, float(torch.linalg.eigvalsh(matrices).max()))


def _activation_blocks(point: Point, moves: Moves) -> Tensor:
    """K from the norms of the weights, and each example's activations, residual and loss curvature.

    Two matrices, (2, L, L): the first bounds the Hessian from above, the second minus the Hessian, that is
    the negative curvature.
    """
    norms = [norm + radius for norm, radius in zip(point.norms, moves.radii, strict=True)]
    lengths = [size + move for size, move in zip(point.lengths, moves.inputs, strict=True)]
    residual = (point.residual.norm(dim=1) + moves.residual).clamp(max=point.loss.residual)
    curvature = (norms_of(point.curvature) + moves.curvature).clamp(max=point.loss.curvature)
    slope, last = point.sigma.slope, point.depth - 1
    blocks = _empty(point)

    def reach(to: int, start: int) -> float:
        return math.prod(slope * norm for norm in norms[start + 1 : to + 1])

    for layer, i in _pairs(point.depth):
        both = lengths[layer] * lengths[i]
        bends = sum(
            point.sigma.curvature * norms[m + 1] * reach(last, m + 1) * reach(m, layer) * reach(m, i)
            for m in range(layer, last)
        )
        size = residual * bends * both
        if i < layer:
            size = size + residual * reach(last, layer) * slope * reach(layer - 1, i) * lengths[i]
        loss = curvature * reach(last, layer) * reach(last, i) * both
        blocks[:, layer, i] = blocks[:, i, layer] = torch.stack([(size + loss).mean(), size.mean()])
    return blocks


def _square(point: Point, moves: Moves, *, m: int, factor: Tensor, move: Tensor) -> Tensor:
    """The mean of ż_mᵀ F ż_m, F (N, n, n) or its diagonal (N, n): per example and averaged, (2, L, L)."""
    sizes, shares = [], []
    for layer in range(m + 1):
        jacobian = point.jacobians[m, layer]
        weighted = factor @ jacobian if factor.ndim == 3 else factor[:, :, None] * jacobian
        gram = jacobian.mT @ weighted
        norm = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0)
        sizes.append(norm.sqrt())
        length, inputs = point.lengths[layer], point.inputs[layer]
        by_jacobian = _largest(torch.einsum("n,nij->ij", length**2, gram) / len(gram))
        by_input = _largest((inputs * norm[:, None]).T @ inputs / len(gram))
        shares.append(torch.minimum(by_jacobian, by_input).sqrt())
    strength = norms_of(factor) if factor.ndim == 3 else factor.amax(dim=1)
    found = _empty(point)
    for layer, i in _pairs(m + 1):
        size = sizes[layer] * sizes[i]
        ends = [(point.lengths[end], moves.inputs[end]) for end in (layer, i)]
        ways = [(point.reaches[m, end], moves.jacobians[m, end]) for end in (layer, i)]
        moved = growth(ends[0], (size, growth(ways[0], (strength, move), ways[1])), ends[1]).mean()
        per_example = (point.lengths[layer] * size * point.lengths[i]).mean()
        averaged = torch.minimum(per_example, shares[layer] * shares[i])
        found[:, layer, i] = found[:, i, layer] = torch.stack([per_example, averaged]) + moved
    return found


def _signals(point: Point, moves: Moves) -> Tensor:
    """The mean of δ_lᵀ V M (U ĥ_i) for each i < l: per example and averaged, (2, L, L)."""
    found = _empty(point)
    for layer, i in _pairs(point.depth):
        if i == layer:
            continue
        signal, inputs = point.signals[layer], point.inputs[i]
        matrix = point.slopes[layer - 1][:, :, None] * point.jacobians[layer - 1, i]
        size = norms_of(matrix)
        steep = (point.slopes[layer - 1].abs().amax(dim=1), moves.slopes[layer - 1])
        turned = growth(steep, (point.reaches[layer - 1, i], moves.jacobians[layer - 1, i]))
        length = signal.norm(dim=1)
        ends = (length, moves.signals[layer]), (point.lengths[i], moves.inputs[i])
        moved = growth(ends[0], (size, turned), ends[1]).mean()
        per_example = (length * size * point.lengths[i]).mean()
        averaged = torch.minimum(per_example, _averaged_signal(signal, inputs, matrix=matrix))
        found[:, layer, i] = found[:, i, layer] = torch.stack([per_example, averaged]) + moved
    return found


def _averaged_signal(signal: Tensor, inputs: Tensor, *, matrix: Tensor) -> Tensor:
    """A bound on the mean of δᵀ V M U ĥ, with M split into its mean over the examples and the rest."""
    mean = matrix.mean(dim=0)
    joint = torch.linalg.matrix_norm(signal.T @ inputs, 2) / len(signal)
    together: Tensor = torch.linalg.matrix_norm(mean, 2) * joint
    rest = matrix - mean
    lengths, norm = (signal.norm(dim=1), inputs.norm(dim=1)), norms_of(rest)
    # the size of an example's term, with one factor replaced by the square of a vector or matrix of that size
    by_signal = _weighted(signal, _ratio(norm * lengths[1], lengths[0]))
    by_input = _weighted(inputs, lengths[0] * norm / lengths[1])
    gram = torch.einsum("n,nji,njk->ik", _ratio(lengths[0] * lengths[1], norm), rest, rest) / len(rest)
    return torch.sqrt(by_signal * torch.minimum(by_input, _largest(gram))) + together


def _weighted(vectors: Tensor, weights: Tensor) -> Tensor:
    """The largest eigenvalue of the mean of w v vᵀ."""
    return _largest((vectors * weights[:, None]).T @ vectors / len(vectors))


def _largest(matrix: Tensor) -> Tensor:
    value: Tensor = torch.linalg.eigvalsh(matrix)[-1].clamp_min(0)
    return value


def _ratio(sizes: Tensor, divisors: Tensor) -> Tensor:
    # an example whose divisor is zero contributes nothing, so it may be left out
    return torch.where(divisors > 1e-150, sizes / divisors, 0.0)


def _empty(point: Point) -> Tensor:
    return torch.zeros(2, point.depth, point.depth, dtype=torch.float64)


def _pairs(depth: int) -> Iterator[Pair]:
    return ((layer, i) for layer in range(depth) for i in range(layer + 1))
