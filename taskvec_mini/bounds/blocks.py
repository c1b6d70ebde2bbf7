"""The Hessian as a matrix with one row and one column for each layer: what two layers can do together.

The equations and the reasons stand in `bounds.local`. The two public functions return matrices (2, L, L): the
first bounds the Hessian from above, the second minus the Hessian, that is the negative curvature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from taskvec_mini.bounds.point import Moves, Pair, Point, growth, norms_of


def activation_blocks(point: Point, moves: Moves) -> Tensor:
    """From the norms of the weights, and each example's activations, residual and loss curvature."""
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


def example_blocks(point: Point, moves: Moves) -> tuple[Tensor, Tensor]:
    """From each example's Jacobians and signals; and with the directions of the examples as well."""
    last = point.depth - 1
    total = _square(point, moves, last, point.curvature, moves.curvature)
    nothing = torch.zeros_like(total)
    found = torch.stack([total, nothing], dim=1)
    for m in range(last):
        force = point.bends[m] * point.pulls[m]
        signs = [_square(point, moves, m, part.clamp_min(0), moves.bends[m]) for part in (force, -force)]
        found = found + torch.stack(signs, dim=1)
    found = found + _signals(point, moves)[:, None]
    return found[0], found[1]


def _square(point: Point, moves: Moves, m: int, factor: Tensor, move: Tensor) -> Tensor:
    """The mean of ż_mᵀ F ż_m, F (N, n, n) or its diagonal (N, n): per example and averaged, (2, L, L)."""
    sizes, shares = [], []
    for layer in range(m + 1):
        gram = _sandwich(point.jacobians[m, layer], factor)
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
        averaged = torch.minimum(per_example, _averaged_signal(signal, matrix, inputs))
        found[:, layer, i] = found[:, i, layer] = torch.stack([per_example, averaged]) + moved
    return found


def _averaged_signal(signal: Tensor, matrix: Tensor, inputs: Tensor) -> Tensor:
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


def _sandwich(jacobian: Tensor, factor: Tensor) -> Tensor:
    weighted: Tensor = factor @ jacobian if factor.ndim == 3 else factor[:, :, None] * jacobian
    return jacobian.mT @ weighted


def _ratio(sizes: Tensor, divisors: Tensor) -> Tensor:
    # an example whose divisor is zero contributes nothing, so it may be left out
    return torch.where(divisors > 1e-150, sizes / divisors, 0.0)


def _empty(point: Point) -> Tensor:
    return torch.zeros(2, point.depth, point.depth, dtype=torch.float64)


def _pairs(depth: int) -> Iterator[Pair]:
    return ((layer, i) for layer in range(depth) for i in range(layer + 1))
