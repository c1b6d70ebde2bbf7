"""What the rules of `merging` that see matrices do with the T matrices of one layer.

All is computed in float64, one task after the other, and comes back in float64. What counts as mere rounding
is measured by the precision that the matrices came in.

Matrices of float32 and less are taken apart without an SVD. Of a tall W (m, n) the squares of the singular
values and the right directions are the eigenvalues and eigenvectors of the small WᵀW (n, n); a wide one is
transposed first. A square loses half of the digits: a direction s times weaker than the strongest comes out
with an error of about s · 1e-16 / g, g the gap to the next singular value by the largest. An SVD in float32
leaves 1e-7 / g. So this is the quicker and the more exact way as long as s is below 1e9, and directions are
left out as rounding long before, at s = 8e6 / max(m, n). float64 has no wider type to square in, and takes
torch.linalg.svd.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from taskvec_mini.errors import UserError


def average(matrices: list[Tensor]) -> Tensor:
    """The mean of T tensors of any shape."""
    return _total(matrices) / len(matrices)


def whitened(matrices: list[Tensor]) -> Tensor:
    """TSV-M of T matrices (m, n); their mean where there is no room for a direction of each."""
    rank = min(matrices[0].shape) // len(matrices)
    if rank == 0:
        return average(matrices)
    eps = _precision(matrices[0])
    lefts = []
    values = []
    rights = []
    for matrix in matrices:
        left, sizes, right = _svd(matrix.double(), eps=eps, count=rank)
        lefts.append(left)
        values.append(sizes)
        rights.append(right)
    left = _polar(torch.cat(lefts, 1), eps=eps)[0]
    right = _polar(torch.cat(rights, 1), eps=eps)[0]
    return (left * torch.cat(values)) @ right.T


def isotropic(matrices: list[Tensor]) -> Tensor:
    """Iso-C of T matrices (m, n): the singular directions of their sum, all with its mean singular value."""
    directions, sizes = _polar(_total(matrices), eps=_precision(matrices[0]))
    return directions * (sizes.sum() / min(matrices[0].shape))


def isotropic_with_own_directions(matrices: list[Tensor], *, common_share: float) -> Tensor:
    """Iso-CTS of T matrices (m, n): the top directions of their sum, and of each what that leaves of it."""
    rank = min(matrices[0].shape)
    tasks = len(matrices)
    rest = rank - int(round(rank * common_share, 6))  # 0.29 * 100 is 28.999999999999996
    # the authors round to the nearest number of directions a task, which may be more than there is room for
    own = min(round(rest / tasks), rank // tasks)
    if own == 0:
        return isotropic(matrices)
    eps = _precision(matrices[0])
    shared, sizes, right = _svd(_total(matrices), eps=eps, count=rank - own * tasks)
    outside = None  # I - UUᵀ of the shared directions, where that is the smaller one to multiply with
    if len(shared) <= matrices[0].shape[1]:
        outside = torch.eye(len(shared), dtype=shared.dtype, device=shared.device) - shared @ shared.T
    lefts = [shared]
    values = [sizes]
    rights = [right]
    for matrix in matrices:
        whole = matrix.double()
        rest_of_it = whole - shared @ (shared.T @ whole) if outside is None else outside @ whole
        left, sizes, right = _svd(rest_of_it, eps=eps, count=own, scale=whole.norm())
        lefts.append(left)
        values.append(sizes)
        rights.append(right)
    directions = _polar(torch.cat(lefts, 1), eps=eps)[0] @ _polar(torch.cat(rights, 1), eps=eps)[0].T
    return directions * (torch.cat(values).sum() / rank)


def least_squares(matrices: list[Tensor], *, ridge: float) -> Tensor:
    """The ridge regression of `regmean_from_vectors` for T matrices (m, n).

    With the rows u_t = τ_t / ‖τ_t‖, stacked in B (Tm, n), and a = ε / n, both sides of its formula divided by
    n are W (BᵀB + TaI) = Σ_t τ_t u_tᵀ u_t + a Σ_t τ_t. The right side is C B with the blocks
    C_t = τ_t u_tᵀ + a ‖τ_t‖ I. As B (BᵀB + sI)⁻¹ = (BBᵀ + sI)⁻¹ B, the smaller system is solved.
    """
    height, width = matrices[0].shape
    tasks = len(matrices)
    strength = ridge / width
    if tasks * height < width:
        rows, products = _stacked(matrices)
        for matrix, product in zip(matrices, products, strict=True):
            product.diagonal().add_(strength * matrix.double().norm())
        system = _gram(rows.T)
        system.diagonal().add_(strength * tasks)
        return _divided(torch.cat(products, 1), system) @ rows
    right_side, system = _equations(matrices)
    right_side += strength * _total(matrices)
    system.diagonal().add_(strength * tasks)
    return _divided(right_side, system)


def least_interference(matrices: list[Tensor]) -> Tensor:
    """The exact minimum of `wudi` for T matrices (m, n), the least one where there are many.

    With B as in `least_squares` and the products C_t = τ_t u_tᵀ side by side, it minimises ‖W Bᵀ − C‖². So
    it is C times the pseudoinverse of Bᵀ, B = U S Vᵀ: that is C U S⁻¹ Vᵀ = C B V S⁻² Vᵀ = C U S⁻² Uᵀ B.
    """
    height, width = matrices[0].shape
    tasks = len(matrices)
    eps = _precision(matrices[0])
    rounding = max(tasks * height, width) * eps
    if eps <= torch.finfo(torch.float64).eps:
        units = [_unit(matrix) for matrix in matrices]
        left, sizes, right = _svd(torch.cat(units), eps=eps)
        blocks = torch.split(left, height)
        products = [
            torch.linalg.multi_dot([matrix, unit.T, block])  # in the order with the fewest multiplications
            for matrix, unit, block in zip(matrices, units, blocks, strict=True)
        ]
        return torch.stack(products).sum(0) / sizes @ right.T
    if tasks * height < width:
        rows, products = _stacked(matrices)
        squares, directions = _eigen(_gram(rows.T), rounding=rounding)
        return torch.cat(products, 1) @ (directions / squares @ directions.T) @ rows
    right_side, system = _equations(matrices)
    squares, directions = _eigen(system, rounding=rounding)
    return right_side @ directions / squares @ directions.T


def adam_from_the_sum(matrices: list[Tensor], *, steps: int, step_size: float) -> Tensor:
    """The same objective after so many steps of Adam (Kingma and Ba, ICLR 2015) that begin at the sum.

    The gradient at W = Σ_s τ_s + D is 2 (Σ_t (Σ_s τ_s − τ_t) u_tᵀu_t + D BᵀB), with B as above. So nothing is
    differentiated here, and whether the caller has gradients switched off makes no difference. The steps are
    taken in float32, or in float64 where the matrices are that.
    """
    height, width = matrices[0].shape
    kind = torch.promote_types(matrices[0].dtype, torch.float32)
    total = _total(matrices)
    if len(matrices) * height < width:  # without a square of the width
        rows, products = _stacked(matrices)
        pull = ((total @ rows.T - torch.cat(products, 1)) @ rows).to(kind)
        factors = [rows.T.to(kind), rows.to(kind)]
    else:
        right_side, system = _equations(matrices)
        pull = (total @ system - right_side).to(kind)
        factors = [system.to(kind)]
    moved = torch.zeros_like(pull)
    mean = torch.zeros_like(pull)
    square = torch.zeros_like(pull)
    for step in range(1, steps + 1):
        gradient = 2 * (pull + torch.linalg.multi_dot([moved, *factors]))
        mean.mul_(0.9).add_(gradient, alpha=0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        spread = (square / (1 - 0.999**step)).sqrt()
        moved -= step_size * (mean / (1 - 0.9**step)) / (spread + 1e-8)
    return total + moved


# --- systems of equations: u_t = τ_t / ‖τ_t‖ -------------------------------------------------------------


def _equations(matrices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Σ_t τ_t u_tᵀ u_t (m, n) and Σ_t u_tᵀ u_t (n, n)."""
    height, width = matrices[0].shape
    right_side = torch.zeros_like(matrices[0], dtype=torch.float64)
    system = right_side.new_zeros(width, width)
    for matrix in matrices:
        whole = matrix.double()
        unit = _unit(whole)
        own = _gram(unit)
        right_side += (whole @ unit.T) @ unit if 2 * height < width else whole @ own  # what is less work
        system += own
    return right_side, system


def _stacked(matrices: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """All u_t on top of each other (Tm, n), and the products τ_t u_tᵀ (m, m)."""
    rows = []
    products = []
    for matrix in matrices:
        whole = matrix.double()
        unit = _unit(whole)
        rows.append(unit)
        products.append(whole @ unit.T)
    return torch.cat(rows), products


def _unit(matrix: Tensor) -> Tensor:
    """The matrix divided by its norm; a zero matrix as it is."""
    norm = matrix.norm()
    return matrix / norm if norm else matrix


def _divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator @ denominator⁻¹` for a symmetric, positive denominator."""
    factor, failed = torch.linalg.cholesky_ex(denominator)
    if failed:
        raise UserError("ridge is so small that rounding swallows it; choose a larger one, such as 0.01")
    quotient: Tensor = torch.cholesky_solve(numerator.T, factor).T
    return quotient


# --- decompositions of float64 matrices whose entries are known to `eps` ---------------------------------


def _svd(
    matrix: Tensor, *, eps: float, count: int | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD, cut after `count` directions, without what is rounding: such directions are arbitrary.

    Returns left directions (m, k), singular values (k,) and right directions as columns (n, k). Rounding is
    measured by the largest singular value; by `scale` where the matrix is what is left of a larger one.
    """
    rounding = max(matrix.shape) * eps
    if eps <= torch.finfo(torch.float64).eps:
        left, sizes, turned = torch.linalg.svd(matrix, full_matrices=False)
        kept = sizes[:count] > rounding * (sizes[:1] if scale is None else scale)
        return left[:, : len(kept)][:, kept], sizes[: len(kept)][kept], turned[: len(kept)][kept].T
    if matrix.shape[0] < matrix.shape[1]:
        right, sizes, left = _svd(matrix.T, eps=eps, count=count, scale=scale)
        return left, sizes, right
    squares, directions = _eigen(_gram(matrix), rounding=rounding, count=count, scale=scale)
    sizes = squares.sqrt()
    return matrix @ directions / sizes, sizes, directions


def _polar(matrix: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """U Vᵀ of a matrix U S Vᵀ, and its singular values; both without what is rounding.

    That is the nearest matrix with orthonormal columns; a direction that two columns share, they share
    equally.
    """
    if eps <= torch.finfo(torch.float64).eps:
        left, sizes, right = _svd(matrix, eps=eps)
        return left @ right.T, sizes
    if matrix.shape[0] < matrix.shape[1]:
        polar, sizes = _polar(matrix.T, eps=eps)
        return polar.T, sizes
    squares, directions = _eigen(_gram(matrix), rounding=max(matrix.shape) * eps)
    sizes = squares.sqrt()
    return matrix @ (directions / sizes @ directions.T), sizes


def _eigen(
    gram: Tensor, *, rounding: float, count: int | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues (k,) of WᵀW (n, n), falling, and their directions as columns (n, k).

    Without those of singular values that are at most `rounding` times the largest one, or times `scale`.
    """
    size = len(gram)
    wanted = size if count is None else max(count, 1)
    if gram.device.type != "cpu":
        values, vectors = torch.linalg.eigh(gram)
    else:  # numpy takes less time than torch, and scipy less still for a few of the eigenvectors
        square = gram.numpy()
        some = (size - wanted, size - 1)
        pair = linalg.eigh(square, subset_by_index=some) if 5 * wanted < size else np.linalg.eigh(square)
        values, vectors = (torch.from_numpy(each) for each in pair)
    values = values.flip(0)[:count]
    kept = values > rounding**2 * (values[:1] if scale is None else scale**2)
    return values[kept], vectors.flip(1)[:, :count][:, kept]


def _gram(matrix: Tensor) -> Tensor:
    """WᵀW."""
    if matrix.device.type != "cpu":
        return matrix.T @ matrix
    array = matrix.numpy()
    return torch.from_numpy(array.T @ array)  # numpy notices the symmetry and computes half of it


def _total(matrices: list[Tensor]) -> Tensor:
    """The sum of T tensors in float64."""
    total = matrices[0].to(torch.float64, copy=True)
    for matrix in matrices[1:]:
        total += matrix
    return total


def _precision(matrix: Tensor) -> float:
    """Of the entries that a rule is given: half precision is for storing only, and counts as float32."""
    return torch.finfo(torch.promote_types(matrix.dtype, torch.float32)).eps
