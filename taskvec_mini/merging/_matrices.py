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
    left, sizes, right = zip(*(_top_directions(matrix, rank) for matrix in matrices), strict=True)
    return (_orthonormal(torch.cat(left, 1)) * torch.cat(sizes)) @ _orthonormal(torch.cat(right, 1)).T


def _top_directions(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Left directions (m, k), singular values (k,) and right directions (n, k) of a matrix (m, n)."""
    left, sizes, right = _svd(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
    return left[:, :rank], sizes[:rank], right[:rank].T


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


def least_squares(matrices: list[Tensor], ridge: float) -> Tensor:
    """The ridge regression of `regmean_from_vectors` for T matrices (m, n), in float64.

    Let R have the Tm rows s_t τ_t, s_t = √n / ‖τ_t‖. The C_t add up to RᵀR; the numerator is B R with the
    blocks B_t = (s_t² τ_t τ_tᵀ + εI) / s_t. As R (RᵀR + aI)⁻¹ = (RRᵀ + aI)⁻¹ R, the smaller one is solved.
    """
    (height, width), lengths = matrices[0].shape, [float(matrix.double().norm()) for matrix in matrices]
    # a zero matrix has no say but in the mean
    scales = [math.sqrt(width) / length if length else 1.0 for length in lengths]
    pairs = [(scale * matrix.double(), scale) for matrix, scale in zip(matrices, scales, strict=True)]
    stacked, strength = torch.cat([row for row, _ in pairs]), ridge * len(matrices)
    if height > width:  # without squares as large as height x height
        numerator = torch.stack([row @ _plus(row.T @ row, ridge) / scale for row, scale in pairs]).sum(0)
        return _divided(numerator, _plus(stacked.T @ stacked, strength))
    blocks = torch.cat([_plus(row @ row.T, ridge) / scale for row, scale in pairs], 1)
    if len(stacked) <= width:
        return _divided(blocks, _plus(stacked @ stacked.T, strength)) @ stacked
    return _divided(blocks @ stacked, _plus(stacked.T @ stacked, strength))


def _plus(square: Tensor, number: float) -> Tensor:
    square.diagonal().add_(number)
    return square


def _divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator @ denominator⁻¹` for a symmetric, positive denominator."""
    factor, failed = torch.linalg.cholesky_ex(denominator)
    if failed:
        raise UserError("ridge is so small that rounding swallows it; choose a larger one, such as 0.01")
    quotient: Tensor = torch.cholesky_solve(numerator.T, factor).T
    return quotient
