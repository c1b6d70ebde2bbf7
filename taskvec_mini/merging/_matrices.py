"""What the rules of `merging` that see matrices do with the T matrices of one layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from taskvec_mini.errors import UserError


def whitened(matrices: list[Tensor]) -> Tensor:
    """TSV-M of T matrices (m, n); their mean where there is no room for a direction of each."""
    rank = min(matrices[0].shape) // len(matrices)
    if rank == 0:
        return torch.stack(matrices).double().mean(0)
    lefts = []
    values = []
    rights = []
    for matrix in matrices:
        left, sizes, right = _svd(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
        lefts.append(left[:, :rank])
        values.append(sizes[:rank])
        rights.append(right[:rank].T)
    return (_orthonormal(torch.cat(lefts, 1)) * torch.cat(values)) @ _orthonormal(torch.cat(rights, 1)).T


def _orthonormal(basis: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns; a direction that two columns share, they share equally."""
    left, _, right = _svd(basis)
    return left @ right


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD without what is rounding: directions of such singular values are arbitrary."""
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    rounding = max(matrix.shape) * torch.finfo(matrix.dtype).eps * sizes[:1]
    rank = int((sizes > rounding).sum())
    return left[:, :rank], sizes[:rank], right[:rank]


def least_squares(matrices: list[Tensor], *, ridge: float) -> Tensor:
    """The ridge regression of `regmean_from_vectors` for T matrices (m, n), in float64.

    Let R have the Tm rows s_t τ_t, s_t = √n / ‖τ_t‖. The C_t add up to RᵀR; the numerator is B R with the
    blocks B_t = (s_t² τ_t τ_tᵀ + εI) / s_t. As R (RᵀR + aI)⁻¹ = (RRᵀ + aI)⁻¹ R, the smaller one is solved.
    """
    height, width = matrices[0].shape
    scales = []
    for matrix in matrices:
        length = float(matrix.double().norm())
        scales.append(
            math.sqrt(width) / length if length else 1.0
        )  # a zero matrix has a say in the mean only
    scaled = [scale * matrix.double() for matrix, scale in zip(matrices, scales, strict=True)]
    rows = torch.cat(scaled)
    strength = ridge * len(matrices)
    if height > width:  # without squares as large as height x height
        parts = [
            each @ _plus(each.T @ each, ridge) / scale for each, scale in zip(scaled, scales, strict=True)
        ]
        return _divided(torch.stack(parts).sum(0), _plus(rows.T @ rows, strength))
    blocks = [_plus(each @ each.T, ridge) / scale for each, scale in zip(scaled, scales, strict=True)]
    if len(rows) <= width:
        return _divided(torch.cat(blocks, 1), _plus(rows @ rows.T, strength)) @ rows
    return _divided(torch.cat(blocks, 1) @ rows, _plus(rows.T @ rows, strength))


def _plus(square: Tensor, number: float) -> Tensor:
    """The matrix itself, with `number` added to its diagonal."""
    square.diagonal().add_(number)
    return square


def _divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator @ denominator⁻¹` for a symmetric, positive denominator."""
    factor, failed = torch.linalg.cholesky_ex(denominator)
    if failed:
        raise UserError("ridge is so small that rounding swallows it; choose a larger one, such as 0.01")
    quotient: Tensor = torch.cholesky_solve(numerator.T, factor).T
    return quotient
