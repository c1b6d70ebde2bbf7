"""What the bounds are made of: constants of activations and losses, layers at flat parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.networks import MLP, FlatLoss, flatten, outputs_at, unflatten


@dataclass(frozen=True)
class ActivationConstants:
    """What the bounds need of an activation σ, each the least number that serves on the whole line.

    Attributes:
        at_zero: |σ(0)|.
        supremum: sup |σ|; infinite where σ grows for ever.
        slope: β₁ = sup |σ'|.
        curvature: β₂ = sup |σ''|; infinite where σ' jumps.
        third: β₃ = sup |σ'''|.
    """

    at_zero: float
    supremum: float
    slope: float
    curvature: float
    third: float


def _gelu_constants() -> ActivationConstants:
    # With the normal density φ: σ' = Φ + xφ, σ'' = (2 − x²)φ, σ''' = x(x² − 4)φ, σ'''' = −(x⁴ − 7x² + 4)φ.
    # So |σ'| is largest where σ'' = 0, at √2; |σ''| where σ''' = 0, at 0 (it is smaller at ±2); and |σ'''|
    # where σ'''' = 0, at the inner root. Far out the last three go to 0, and σ' to 0 or 1.
    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    steepest = (1 + math.erf(1)) / 2 + math.sqrt(2) * density(math.sqrt(2))
    root = math.sqrt((7 - math.sqrt(33)) / 2)
    third = root * (4 - root**2) * density(root)
    return ActivationConstants(0.0, math.inf, steepest, 2 * density(0.0), third)


ACTIVATION_CONSTANTS: dict[str, ActivationConstants] = {
    "tanh": ActivationConstants(0.0, 1.0, 1.0, 4 / (3 * math.sqrt(3)), 2.0),
    "sigmoid": ActivationConstants(0.5, 1.0, 1 / 4, 1 / (6 * math.sqrt(3)), 1 / 8),
    "softplus": ActivationConstants(math.log(2), math.inf, 1.0, 1 / 4, 1 / (6 * math.sqrt(3))),
    "gelu": _gelu_constants(),
    "identity": ActivationConstants(0.0, math.inf, 1.0, 0.0, 0.0),
    "relu": ActivationConstants(0.0, math.inf, 1.0, math.inf, math.inf),
}


@dataclass(frozen=True)
class LossConstants:
    """What the bounds need of a loss as a function of the outputs, whatever outputs and targets are.

    Attributes:
        residual: γ, the longest gradient; infinite for squared error, whose gradient is the residual itself.
        curvature: λ, the largest eigenvalue of the Hessian.
        third: how fast that Hessian changes, in spectral norm per unit of distance.
    """

    residual: float
    curvature: float
    third: float


# Cross-entropy, with probabilities p and the label as a one-hot vector e: ‖p − e‖² ≤ 2(1 − p_y)² bounds the
# gradient. uᵀ(diag(p) − ppᵀ)u is the variance of the entries of u under p, at most a quarter of their squared
# range; the range of a unit vector is at most √2. The third derivative along u is their third central
# moment, at most range³/(6√3); a symmetric form of degree three is largest where its arguments coincide
# (Banach 1938).
LOSS_CONSTANTS: dict[str, LossConstants] = {
    "cross_entropy": LossConstants(math.sqrt(2), 1 / 2, math.sqrt(2) / (3 * math.sqrt(3))),
    "squared_error": LossConstants(math.inf, 1.0, 0.0),
}


def spectral_norm(matrix: Tensor) -> float:
    """‖A‖₂, the largest singular value, in float64."""
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


def layer_radii(radius: float | Sequence[float], layers: int) -> list[float]:
    """One radius a layer, from one number or a sequence; a ValueError unless all are finite and ≥ 0."""
    given = [radius] * layers if isinstance(radius, int | float) else list(radius)
    radii = [_checks.finite_number("radius", each) for each in given]
    if len(radii) != layers or min(radii) < 0:
        raise UserError(f"radius must be one number of at least 0, or {layers} of them, got {radius}")
    return radii


def layers_at(model: MLP, theta: Tensor, outputs: slice = slice(None)) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of all layers; of the last one only the rows that `outputs` uses."""
    named = unflatten(model, theta)
    weights = [named[f"layers.{layer}.weight"] for layer in range(len(model.layers))]
    biases = [named[f"layers.{layer}.bias"] for layer in range(len(model.layers))]
    weights[-1], biases[-1] = weights[-1][outputs], biases[-1][outputs]
    return weights, biases


def residuals(loss: FlatLoss, theta: Tensor) -> Tensor:
    """∇_z ℓ for each example (N, C): probabilities less the one-hot label, or outputs less targets."""
    with torch.no_grad():
        logits = outputs_at(loss.model, theta, loss.inputs)[:, loss.outputs]
    targets = loss.targets
    if not targets.is_floating_point():
        targets = torch.nn.functional.one_hot(targets, logits.shape[1])
    predictions = torch.softmax(logits, 1) if loss.loss == "cross_entropy" else logits
    return predictions - targets.to(predictions.dtype)


def centre_of(model: MLP, theta: Tensor | None) -> Tensor:
    """Flat parameters in float64: `theta`, or the model's own; an error unless they are 1-D and finite.

    Raises:
        TypeError, ValueError: as `_checks.flat_parameters` says.
    """
    return _checks.flat_parameters("theta", flatten(model) if theta is None else theta.detach()).double()


def check_network(model: object, inputs: Tensor) -> None:
    """A TypeError unless the model is an MLP, a ValueError unless the inputs fit it and are finite."""
    if not isinstance(model, MLP):
        raise InputTypeError(
            f"the bounds are made for networks.MLP, got {type(model).__name__}; build one of those"
        )
    if inputs.ndim != 2 or inputs.shape[1] != model.sizes[0] or len(inputs) == 0:
        raise UserError(
            f"inputs have shape {tuple(inputs.shape)}, expected (N, {model.sizes[0]}) with N of at least 1; "
            "flatten images with inputs.flatten(1)"
        )
    _checks.check_finite("inputs", inputs)


def check_smooth(activation: str) -> None:
    """A ValueError for an activation whose slope jumps."""
    if math.isinf(ACTIVATION_CONSTANTS[activation].curvature):
        raise UserError(
            f"the activation {activation!r} has a kink where its slope jumps: no bound on the Hessian holds "
            "once a unit switches on or off; use a smooth one such as 'gelu' or 'softplus' (the gradient "
            "bound of network_bounds holds for every activation)"
        )
