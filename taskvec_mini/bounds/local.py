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
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec_mini.bounds.blocks import activation_blocks, example_blocks
from taskvec_mini.bounds.constants import centre_of, check_network, check_smooth, layer_radii
from taskvec_mini.bounds.point import moves_in, point_at
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
    activations = activation_blocks(point, moves)
    per_example, averaged = (torch.minimum(blocks, activations) for blocks in example_blocks(point, moves))
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
