"""What each example does in a network at given parameters, and how far that can change near them.

N examples side by side; layers are counted from 0, as Python does. See `bounds.local` for the use.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec_mini.bounds.constants import (
    ACTIVATION_CONSTANTS,
    LOSS_CONSTANTS,
    ActivationConstants,
    LossConstants,
    layers_at,
    residuals,
    spectral_norm,
)
from taskvec_mini.networks import ACTIVATIONS, MLP, FlatLoss

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Point:
    """The network at one θ: per layer or pair of layers a tensor whose first dimension counts the N examples.

    Attributes:
        sigma, loss: the constants of the activation and of the loss.
        norms: ‖W_l‖₂, one number a layer.
        inputs: ĥ, what layer l receives, with a 1 appended for the bias (N, n + 1).
        slopes, bends: σ'(z) and σ''(z) of the hidden layers (N, n).
        residual: ∇ℓ in the outputs (N, C).
        curvature: Λ, the Hessian of ℓ in the outputs (N, C, C).
        jacobians: J_li = ∂z_l/∂z_i for l ≥ i (N, n_l, n_i).
        signals: δ_l = ∂ℓ/∂z_l (N, n_l).
        pulls: e_m = ∂ℓ/∂h_m of the hidden layers (N, n_m).
    """

    sigma: ActivationConstants
    loss: LossConstants
    norms: list[float]
    inputs: list[Tensor]
    slopes: list[Tensor]
    bends: list[Tensor]
    residual: Tensor
    curvature: Tensor
    jacobians: dict[Pair, Tensor]
    signals: list[Tensor]
    pulls: list[Tensor]

    @property
    def depth(self) -> int:
        """L, the number of layers with weights."""
        return len(self.norms)

    @functools.cached_property
    def lengths(self) -> list[Tensor]:
        """‖ĥ‖ for each layer (N,); at least 1."""
        return [part.norm(dim=1) for part in self.inputs]

    @functools.cached_property
    def reaches(self) -> dict[Pair, Tensor]:
        """‖J_li‖₂ (N,)."""
        return {pair: norms_of(jacobian) for pair, jacobian in self.jacobians.items()}

    @functools.cached_property
    def gradient(self) -> Tensor:
        """∇L, the mean over the examples, layer after layer (its order is not that of `flatten`)."""
        pairs = zip(self.signals, self.inputs, strict=True)
        return torch.cat([(signal.T @ part).reshape(-1) / len(part) for signal, part in pairs])


def point_at(loss: FlatLoss, theta: Tensor) -> Point:
    """Send every example through the network at `theta`, forwards and backwards."""
    model = loss.model
    assert isinstance(model, MLP)
    weights, biases = layers_at(model, theta, loss.outputs)
    last = len(weights) - 1

    hidden = loss.inputs.double()
    ones = torch.ones_like(hidden[:, :1])
    inputs = [torch.cat([hidden, ones], dim=1)]
    slopes, bends = [], []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        z = (hidden @ weight.T + bias).detach().requires_grad_()
        value = ACTIVATIONS[model.activation](z)
        (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        second = torch.zeros_like(z)
        if first.requires_grad:  # not for the identity
            (second,) = torch.autograd.grad(first.sum(), z)
        hidden = value.detach()
        inputs.append(torch.cat([hidden, ones], dim=1))
        slopes.append(first.detach())
        bends.append(second.detach())

    residual = residuals(loss, theta)
    if loss.loss == "squared_error":
        curvature = torch.eye(residual.shape[1], dtype=residual.dtype).expand(len(residual), -1, -1)
    else:  # diag(p) − ppᵀ
        predicted = residual + torch.nn.functional.one_hot(loss.targets, residual.shape[1])
        curvature = torch.diag_embed(predicted) - predicted[:, :, None] * predicted[:, None, :]

    jacobians: dict[Pair, Tensor] = {}
    for i, own in enumerate(weights):
        jacobians[i, i] = torch.eye(len(own), dtype=own.dtype).expand(len(residual), -1, -1)
        for layer in range(i + 1, len(weights)):
            earlier = slopes[layer - 1][:, :, None] * jacobians[layer - 1, i]
            jacobians[layer, i] = weights[layer] @ earlier
    signals = [(residual[:, None, :] @ jacobians[last, layer])[:, 0] for layer in range(last + 1)]
    return Point(
        sigma=ACTIVATION_CONSTANTS[model.activation],
        loss=LOSS_CONSTANTS[loss.loss],
        norms=[spectral_norm(weight) for weight in weights],
        inputs=inputs,
        slopes=slopes,
        bends=bends,
        residual=residual,
        curvature=curvature,
        jacobians=jacobians,
        signals=signals,
        pulls=[signals[m + 1] @ weights[m + 1] for m in range(last)],
    )


def norms_of(matrices: Tensor) -> Tensor:
    """The spectral norm of each matrix in a stack (N, a, b), through the smaller Gram matrix: (N,)."""
    wide = matrices.shape[1] <= matrices.shape[2]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
    return torch.sqrt(torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0))


@dataclass(frozen=True, eq=False)
class Moves:
    """How far each quantity of a `Point` can move, (N,) each, while layer l's parameters move by radii[l].

    Attributes:
        radii: one number a layer.
        inputs: the length of the change of ĥ.
        slopes: the largest change of an entry of σ'(z).
        residual, curvature: of ∇ℓ in length, of Λ in spectral norm.
        jacobians: of J_li in spectral norm.
        signals: of δ_l in length.
        bends: the largest change of an entry of e_m σ''(z_m).
    """

    radii: list[float]
    inputs: list[Tensor]
    slopes: list[Tensor]
    residual: Tensor
    curvature: Tensor
    jacobians: dict[Pair, Tensor]
    signals: list[Tensor]
    bends: list[Tensor]


def moves_in(point: Point, radii: Sequence[float]) -> Moves:
    """The moves in a region around the centre: every step is a product rule or a mean value theorem."""
    last = point.depth - 1
    steepest = [slope.abs().amax(dim=1) for slope in point.slopes]

    # ĥ_l and z_l: z' − z = (ΔW, Δb) ĥ' + W (h' − h), with h' − h = σ'(z) Δz + ½ σ''(ξ) Δz²
    inputs = [torch.zeros_like(point.lengths[0])]
    outputs = [radii[0] * point.lengths[0]]
    for layer in range(1, point.depth):
        before, norm = outputs[-1], point.norms[layer]
        bent = point.sigma.curvature / 2 * before**2
        inputs.append(torch.minimum(point.sigma.slope * before, steepest[layer - 1] * before + bent))
        onward = torch.minimum(norm * inputs[-1], point.reaches[layer, layer - 1] * before + norm * bent)
        outputs.append(radii[layer] * (point.lengths[layer] + inputs[-1]) + onward)
    slopes = [point.sigma.curvature * shift for shift in outputs[:-1]]
    residual = point.loss.curvature * outputs[-1]

    # J'_li − J_li = ΔW D' J' + W ΔD J' + W D ΔJ, from layer to layer
    jacobians: dict[Pair, Tensor] = {}
    for i in range(point.depth):
        jacobians[i, i] = torch.zeros_like(point.lengths[0])
        for layer in range(i + 1, point.depth):
            earlier = jacobians[layer - 1, i]
            steep = steepest[layer - 1] + slopes[layer - 1]
            turned = radii[layer] * steep + point.norms[layer] * slopes[layer - 1]
            moved = turned * (point.reaches[layer - 1, i] + earlier)
            jacobians[layer, i] = moved + point.reaches[layer, layer - 1] * earlier

    size = point.residual.norm(dim=1)
    signals = [
        growth((point.reaches[last, layer], jacobians[last, layer]), (size, residual))
        for layer in range(last + 1)
    ]

    # e'σ''(z') − eσ''(z) = (e' − e) σ''(z') + e (σ''(z') − σ''(z)), with e_m = W_{m+1}ᵀ δ_{m+1}
    bends = []
    for m in range(last):
        weight = (point.norms[m + 1], radii[m + 1])
        pull = growth(weight, (point.signals[m + 1].norm(dim=1), signals[m + 1]))
        largest = point.pulls[m].abs().amax(dim=1)
        bends.append(point.sigma.curvature * pull + point.sigma.third * largest * outputs[m])
    return Moves(
        radii=list(radii),
        inputs=inputs,
        slopes=slopes,
        residual=residual,
        curvature=point.loss.third * outputs[-1],
        jacobians=jacobians,
        signals=signals,
        bends=bends,
    )


def growth(*factors: tuple[Tensor | float, Tensor | float]) -> Tensor:
    """How far a product can move: Π (size + move) − Π size. Each factor is given by its size and its move.

    Example:
        >>> growth((torch.tensor([2.0]), 1.0), (torch.tensor([3.0]), 0.0)).tolist()
        [3.0]
    """
    moved, still = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for size, move in factors:
        moved, still = moved * (size + move), still * size
    return moved - still
