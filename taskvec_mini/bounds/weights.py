"""Bounds on the gradient and the Hessian from the norms of weights and inputs alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.bounds.constants import (
    ACTIVATION_CONSTANTS,
    LOSS_CONSTANTS,
    ActivationConstants,
    centre_of,
    check_network,
    check_smooth,
    layer_radii,
    layers_at,
    residuals,
    spectral_norm,
)
from taskvec_mini.errors import UserError
from taskvec_mini.networks import MLP, LossName, flat_loss


@dataclass(frozen=True)
class NetworkBounds:
    """Bounds from weight norms with every constant on the way. Lists run over the layers 1 to L.

    Attributes:
        activation: the name of σ, whose β₁ and β₂ are in `ACTIVATION_CONSTANTS`.
        radius: how far each layer's parameters may move (L,); zeros for a point.
        weight_norms: s_l ≥ ‖W_l‖₂.
        bias_norms: ‖b_l‖ at most.
        activation_norms: B_0 to B_{L−1}, with ‖h_l‖ ≤ B_l for each input.
        reaches: q_l; a unit step of the parameters moves z_l by q_l at most, to first order.
        amplifications: P_l; a unit move of z_l moves z_L by P_l at most, to first order.
        residual: γ, the longest gradient of the loss in the outputs.
        loss_curvature: λ, the largest curvature of the loss in the outputs.
        gradient: γ q_L, which ‖∇L‖ does not exceed.
    """

    activation: str
    radius: tuple[float, ...]
    weight_norms: tuple[float, ...]
    bias_norms: tuple[float, ...]
    activation_norms: tuple[float, ...]
    reaches: tuple[float, ...]
    amplifications: tuple[float, ...]
    residual: float
    loss_curvature: float
    gradient: float

    @property
    def gauss_newton(self) -> float:
        """λ q_L²: the curvature of the loss, seen through the network."""
        return self.loss_curvature * self.reaches[-1] ** 2

    @property
    def layer_pairs(self) -> float:
        """γ √(2(1 − 1/L)) β₁ (Σ_{l≥2} P_l² q_{l−1}²)^½: two layers that move at once."""
        squares = sum(p * p * q * q for p, q in zip(self.amplifications[1:], self.reaches[:-1], strict=True))
        slope = ACTIVATION_CONSTANTS[self.activation].slope
        return self.residual * _pair_factor(len(self.reaches)) * slope * math.sqrt(squares)

    @property
    def bending(self) -> float:
        """γ (β₂/β₁) Σ_{l<L} P_l q_l²: the activations that bend. A ValueError for ReLU."""
        constants = ACTIVATION_CONSTANTS[self.activation]
        hidden = list(zip(self.amplifications[:-1], self.reaches[:-1], strict=True))
        if not hidden:
            return 0.0
        check_smooth(self.activation)
        total = sum(p * q * q for p, q in hidden)
        return self.residual * constants.curvature / constants.slope * total

    @property
    def hessian(self) -> float:
        """The sum of the three terms above, which ‖∇²L‖₂ does not exceed. A ValueError for ReLU."""
        return self.bending + self.gauss_newton + self.layer_pairs


def network_bounds(
    model: MLP,
    inputs: Tensor,
    *,
    loss: LossName = "cross_entropy",
    targets: Tensor | None = None,
    theta: Tensor | None = None,
    radius: float | Sequence[float] = 0.0,
    outputs: slice = slice(None),
) -> NetworkBounds:
    """Bounds on the gradient and the Hessian of the mean loss, from the norms of weights and inputs.

    They hold at the model's own parameters, or at `theta`; with a radius, in the whole region around them.
    Differentiate twice along any direction V of unit length: ż_l = V_l h_{l−1} + v_l + W_l ḣ_{l−1} gives
    q_l² = B_{l−1}² + 1 + (β₁ s_l q_{l−1})², and z̈_l = 2 V_l ḣ_{l−1} + W_l ḧ_{l−1} the last two terms of
    `hessian`.

    Args:
        model: a `networks.MLP`.
        inputs: N examples (N, sizes[0]).
        loss: "cross_entropy" or "squared_error" (half the squared distance).
        targets: labels (N,) or for squared error numbers (N, C) as well. Cross-entropy needs none: its γ and
            λ hold whatever the labels are.
        theta: the centre as a flat vector (D,); the model's own parameters by default.
        radius: how far each layer's parameters may move, in Euclidean length: one number (so the ball of this
            radius is covered), or one for each layer.
        outputs: which outputs of the model the loss uses (its head); all of them by default.

    Returns:
        The bounds `gradient` and `hessian`, with every constant they are made of.

    Raises:
        TypeError: if the model is not a `networks.MLP`.
        ValueError: if shapes, labels, names or the radius do not fit, or squared error lacks its targets.

    Example:
        >>> import torch
        >>> model = MLP((2, 3, 2), generator=torch.Generator().manual_seed(0))
        >>> bounds = network_bounds(model, torch.ones(1, 2, dtype=torch.float64))
        >>> bounds.residual == math.sqrt(2), bounds.gradient == bounds.residual * bounds.reaches[-1]
        (True, True)
    """
    check_network(model, inputs)
    constants = _checks.named_choice("loss", loss, LOSS_CONSTANTS)
    centre = centre_of(model, theta)
    radii = layer_radii(radius, len(model.layers))
    if targets is None and math.isinf(constants.residual):
        raise UserError(f"the gradient of {loss} is the residual, so it needs targets; pass targets=...")
    checked = None if targets is None else flat_loss(model, inputs, targets, loss=loss, outputs=outputs)
    weights, biases = layers_at(model, centre, outputs)
    sigma = ACTIVATION_CONSTANTS[model.activation]
    norms = _weight_norms(weights, radii)
    offsets = _bias_norms(biases, radii)
    hidden = _activation_norms(
        norms,
        offsets,
        widths=[len(weight) for weight in weights],
        longest_input=float(inputs.double().norm(dim=1).max()),
        sigma=sigma,
    )
    reaches = _reaches(norms, hidden, sigma)
    residual = constants.residual
    if checked is not None and math.isinf(residual):
        # by the mean value theorem the outputs move by q_L times the distance at most
        residual = float(residuals(checked, centre).norm(dim=1).max()) + reaches[-1] * math.hypot(*radii)
    return NetworkBounds(
        activation=model.activation,
        radius=tuple(radii),
        weight_norms=tuple(norms),
        bias_norms=tuple(offsets),
        activation_norms=tuple(hidden),
        reaches=tuple(reaches),
        amplifications=tuple(_amplifications(norms, sigma)),
        residual=residual,
        loss_curvature=constants.curvature,
        gradient=residual * reaches[-1],
    )


def _weight_norms(weights: Sequence[Tensor], radii: Sequence[float]) -> list[float]:
    return [spectral_norm(weight) + radius for weight, radius in zip(weights, radii, strict=True)]


def _bias_norms(biases: Sequence[Tensor], radii: Sequence[float]) -> list[float]:
    return [float(bias.norm()) + radius for bias, radius in zip(biases, radii, strict=True)]


def _activation_norms(
    norms: Sequence[float],
    offsets: Sequence[float],
    *,
    widths: Sequence[int],
    longest_input: float,
    sigma: ActivationConstants,
) -> list[float]:
    """B_0 to B_{L−1}: the sup of σ bounds ‖h_l‖, and so does its slope, from ‖h_{l−1}‖; the lesser counts."""
    bounds = [longest_input]
    for norm, offset, width in zip(norms[:-1], offsets[:-1], widths[:-1], strict=True):
        grown = sigma.at_zero * math.sqrt(width) + sigma.slope * (norm * bounds[-1] + offset)
        bounds.append(min(sigma.supremum * math.sqrt(width), grown))
    return bounds


def _reaches(norms: Sequence[float], hidden: Sequence[float], sigma: ActivationConstants) -> list[float]:
    """q_1 to q_L, from q_l² = B_{l−1}² + 1 + (β₁ s_l q_{l−1})²; the 1 is the bias."""
    reaches: list[float] = []
    for norm, length in zip(norms, hidden, strict=True):
        earlier = sigma.slope * norm * reaches[-1] if reaches else 0.0
        reaches.append(math.sqrt(length**2 + 1 + earlier**2))
    return reaches


def _amplifications(norms: Sequence[float], sigma: ActivationConstants) -> list[float]:
    """P_1 to P_L, the products of β₁ s_j over the later layers j > l."""
    products = [1.0]
    for norm in reversed(norms[1:]):
        products.append(products[-1] * sigma.slope * norm)
    return products[::-1]


def _pair_factor(layers: int) -> float:
    """√(2(1 − 1/L)): 2 Σ_{i<l} ν_i² ν_l² ≤ 1 − 1/L where the squares of the L numbers ν_l sum to 1."""
    return math.sqrt(2 * (1 - 1 / layers))
