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
        left, sizes, right = _svd(_working(matrix))
        lefts.append(left[:, :rank])
        values.append(sizes[:rank])
        rights.append(right[:rank].T)
    return (_orthonormal(torch.cat(lefts, 1)) * torch.cat(values)) @ _orthonormal(torch.cat(rights, 1)).T


def isotropic(matrices: list[Tensor]) -> Tensor:
    """Iso-C of T matrices (m, n): the singular directions of their sum, all with its mean singular value."""
    left, sizes, right = _svd(_sum(matrices))
    return (left @ right) * (sizes.sum() / min(matrices[0].shape))


def isotropic_with_own_directions(matrices: list[Tensor], *, common_share: float) -> Tensor:
    """Iso-CTS of T matrices (m, n): the top directions of their sum, and of each what that leaves of it."""
    rank = min(matrices[0].shape)
    tasks = len(matrices)
    rest = rank - int(round(rank * common_share, 6))  # 0.29 * 100 is 28.999999999999996
    # the authors round to the nearest number of directions a task, which may be more than there is room for
    own = min(round(rest / tasks), rank // tasks)
    common = rank - own * tasks
    left, sizes, right = _svd(_sum(matrices))
    shared = left[:, :common]
    lefts = [shared]
    values = [sizes[:common]]
    rights = [right[:common].T]
    for matrix in matrices if own else []:
        whole = _working(matrix)
        left, sizes, right = _svd(whole - shared @ (shared.T @ whole), scale=whole.norm())
        lefts.append(left[:, :own])
        values.append(sizes[:own])
        rights.append(right[:own].T)
    directions = _orthonormal(torch.cat(lefts, 1)) @ _orthonormal(torch.cat(rights, 1)).T
    return directions * (torch.cat(values).sum() / rank)


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


def least_interference(matrices: list[Tensor]) -> Tensor:
    """The exact minimum of `wudi` for T matrices (m, n), the least one where there are many.

    With the rows B_t = τ_t / ‖τ_t‖ of all tasks stacked in B, and the products τ_t B_tᵀ side by side in C, it
    minimises ‖W Bᵀ − C‖². So it is C times the pseudoinverse of Bᵀ; B = U S Vᵀ makes that C U S⁻¹ Vᵀ.
    """
    tasks = [_working(matrix) for matrix in matrices]
    rows = [_unit(matrix) for matrix in tasks]
    left, sizes, right = _svd(torch.cat(rows))
    blocks = torch.split(left, len(tasks[0]))
    products = [
        torch.linalg.multi_dot([matrix, row.T, block])  # in the order with the fewest multiplications
        for matrix, row, block in zip(tasks, rows, blocks, strict=True)
    ]
    return torch.stack(products).sum(0) / sizes @ right


def adam_from_the_sum(matrices: list[Tensor], *, steps: int, step_size: float) -> Tensor:
    """The same objective after so many steps of Adam (Kingma and Ba, ICLR 2015) that begin at the sum.

    The gradient at W = Σ_s τ_s + D is 2 (Σ_t (Σ_s τ_s − τ_t) B_tᵀB_t + D BᵀB), with B as above. So nothing is
    differentiated here, and whether the caller has gradients switched off makes no difference.
    """
    total = _sum(matrices)
    rows = [_unit(_working(matrix)) for matrix in matrices]
    pulls = [
        torch.linalg.multi_dot([total - _working(matrix), row.T, row])
        for matrix, row in zip(matrices, rows, strict=True)
    ]
    pull = torch.stack(pulls).sum(0)
    stacked = torch.cat(rows)
    gram = stacked.T @ stacked if len(stacked) > stacked.shape[1] else None
    moved = torch.zeros_like(total)
    average = torch.zeros_like(total)
    square = torch.zeros_like(total)
    for step in range(1, steps + 1):
        gradient = 2 * (pull + ((moved @ stacked.T) @ stacked if gram is None else moved @ gram))
        average.mul_(0.9).add_(gradient, alpha=0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        spread = (square / (1 - 0.999**step)).sqrt()
        moved -= step_size * (average / (1 - 0.9**step)) / (spread + 1e-8)
    return total + moved


def _unit(matrix: Tensor) -> Tensor:
    """The matrix divided by its norm; a zero matrix as it is."""
    norm = matrix.norm()
    return matrix / norm if norm else matrix


def _working(matrix: Tensor) -> Tensor:
    """The matrix in float32, or in float64 where it is that: half precision is for storing only."""
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def _sum(matrices: list[Tensor]) -> Tensor:
    """Their sum, added up in float64 and rounded once, to the precision to work in."""
    return torch.stack(matrices).double().sum(0).to(_working(matrices[0]).dtype)


def _svd(matrix: Tensor, *, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD without what is rounding: directions of such singular values are arbitrary.

    Rounding is measured by the largest singular value; by `scale` where the matrix is what is left of a
    larger one.
    """
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    rounding = max(matrix.shape) * torch.finfo(matrix.dtype).eps * (sizes[:1] if scale is None else scale)
    rank = int((sizes > rounding).sum())
    return left[:, :rank], sizes[:rank], right[:rank]


def _orthonormal(basis: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns; a direction that two columns share, they share equally."""
    left, _, right = _svd(basis)
    return left @ right
