"""Measures of vectors and paths in parameter space: lengths, shares, angles, and planes to draw them in.

A path is the parameters before and after each epoch: a tensor (K + 1, D), such as `descent.gradient_descent`
returns, or a list of K + 1 vectors (D,). All sums run in float64 and piece by piece, so that vectors of many
millions of entries in float32 lose nothing and need no second copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.vectors import TaskVector

_PIECE = 1 << 16  # entries turned to float64 at a time, of every vector


def displacements(path: Iterable[Tensor]) -> Tensor:
    """What each epoch added: the differences (K, D) of successive points of a path (K + 1, D).

    Their sum is the task vector of the whole path.

    Raises:
        TypeError: if a point is no 1-D floating-point tensor, or dtypes or devices differ.
        ValueError: if there are fewer than two points, or they differ in length or are not finite.

    Example:
        >>> displacements(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]))
        tensor([[3., 4.],
                [0., 1.]])
    """
    points = _vectors("path", path)
    if len(points) < 2:
        raise UserError("a path of one point has no displacement; give the start and at least one more point")
    return torch.stack([after - before for before, after in pairwise(points)])


def norms(vectors: Iterable[Tensor]) -> Tensor:
    """The Euclidean lengths (K,), in float64, of vectors (K, D).

    Of `displacements(path)` they say how far each epoch moved, of gradients how steep each start was.

    Raises:
        TypeError: if a vector is no 1-D floating-point tensor, or dtypes or devices differ.
        ValueError: if there are none, or they differ in length or are not finite.

    Example:
        >>> norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([5., 1.], dtype=torch.float64)
    """
    return _lengths(_vectors("vectors", vectors))


def shares(sizes: Tensor | Iterable[float]) -> Tensor:
    """Each size over the sum of all (K,), in float64: of norms, the share that each epoch has in their sum.

    With K epochs of equal size each share is 1 / K, so compare a first share with that. Displacements bend:
    their norms add up to the length of the path, which is more than the norm of the task vector.

    Raises:
        ValueError: if there are none, one is negative or not finite, or all are zero.

    Example:
        >>> shares([6.0, 3.0, 1.0])
        tensor([0.6000, 0.3000, 0.1000], dtype=torch.float64)
    """
    values = torch.as_tensor(sizes if isinstance(sizes, Tensor) else list(sizes), dtype=torch.float64)
    _checks.check_finite("sizes", values)
    if values.ndim != 1 or len(values) == 0 or values.min() < 0 or values.sum() == 0:
        raise UserError(
            f"sizes must be one or more numbers, none negative and not all zero, got {values.tolist()}; "
            "norms(vectors) makes such"
        )
    return values / values.sum()


def cosines_with(vectors: Iterable[Tensor], reference: Tensor) -> Tensor:
    """The cosines (K,), in float64, of the angles between vectors (K, D) and one reference (D,).

    In high dimensions a cosine of 0.1 is much: that of two random vectors is of the size 1 / √D.

    Raises:
        TypeError: if a vector is no 1-D floating-point tensor, or dtypes or devices differ.
        ValueError: if there are none, or they differ in length, are not finite, or one is zero.

    Example:
        >>> cosines_with(torch.tensor([[3.0, 4.0], [0.0, -1.0]]), torch.tensor([2.0, 0.0]))
        tensor([0.6000, 0.0000], dtype=torch.float64)
    """
    rows = _vectors("vectors", vectors)
    _checks.flat_parameters("reference", reference)
    _check_alike(rows[0], reference, names=("vectors[0]", "reference"))
    rows.append(reference)
    lengths = _lengths(rows)
    if not lengths.all():
        place = int((lengths == 0).nonzero()[0])
        name = "reference" if place == len(rows) - 1 else f"vectors[{place}]"
        raise UserError(f"{name} is zero and so has no direction; was the model trained at all?")
    products = _total(piece[:-1] @ piece[-1] for piece in _pieces(rows))
    return (products / lengths[:-1] / lengths[-1]).clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class InputMoments:
    """What one linear layer saw in one pass: sums over examples, and over tokens where there are any.

    Args:
        plain: Σ x xᵀ (n, n) over the inputs x of the layer, in float64.
        weighted: Σ ‖δ‖² x xᵀ (n, n), with δ the gradient of the loss at the layer's output for that input.
    """

    plain: Tensor
    weighted: Tensor


def input_moments(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, InputMoments]:
    """The second moments of the inputs of every linear layer, by the name of its weight.

    A linear layer has the gradient g_W = Σ δ xᵀ. Its task vector after one full-batch epoch is −ηg_W, and
    τᵀτ = η² Σ_ij (δ_i·δ_j) x_i x_jᵀ: where different examples have nearly orthogonal δ, that is the weighted
    moment. RegMean (Jin et al., ICLR 2023) needs data for the plain one; rules that take τᵀτ instead do not.

    Args:
        model: has `nn.Linear` layers; hooks watch them during the call and are gone afterwards.
        loss: runs the model and returns a scalar. The parameters are left as they are, and so are their
            gradients.

    Raises:
        ValueError: if no linear layer with a trained weight took part in the loss.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> moments = input_moments(model, lambda: (model(rows) * torch.tensor([[1.0], [3.0]])).sum())
        >>> moments["weight"].plain.tolist(), moments["weight"].weighted.tolist()
        ([[2.0, 1.0], [1.0, 1.0]], [[10.0, 9.0], [9.0, 9.0]])
    """
    seen: list[tuple[str, Tensor, Tensor]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def remember(_layer: nn.Module, inputs: tuple[Any, ...], outputs: Tensor) -> None:
            if outputs.requires_grad:
                seen.append((name, inputs[0].detach(), outputs))

        return remember

    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    hooks = [
        each.register_forward_hook(watch(f"{name}.weight" if name else "weight"))
        for name, each in layers.items()
    ]
    try:
        with torch.enable_grad():
            value = loss()
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UserError("no linear layer with a trained weight took part in the loss; give a model with some")
    deltas = torch.autograd.grad(value, [outputs for _, _, outputs in seen], allow_unused=True)
    found: dict[str, InputMoments] = {}
    for (name, inputs, _), delta in zip(seen, deltas, strict=True):
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        weights = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        if delta is not None:
            weights = delta.reshape(len(rows), -1).double().square().sum(1)
        before = found.get(name)
        plain, weighted = rows.T @ rows, rows.T @ (weights[:, None] * rows)
        if before is not None:  # a layer that is used more than once
            plain, weighted = before.plain + plain, before.weighted + weighted
        found[name] = InputMoments(plain, weighted)
    return found


@dataclass(frozen=True)
class InputMemory:
    """How much of a layer's inputs its task vector remembers: cosines of matrices, from 0 to 1.

    All three matrices have no negative eigenvalue, so no cosine is below 0, and two of them may be alike for
    no deep reason, such as inputs that are all near their mean. Compare with `identity`: how near the plain
    moment is to knowing nothing at all.

    Args:
        plain: of τᵀτ with the second moment of the inputs.
        weighted: of τᵀτ with the moment weighted by ‖δ‖².
        identity: of the identity with the second moment of the inputs.
    """

    plain: float
    weighted: float
    identity: float


def input_memory(
    vector: Mapping[str, Tensor] | TaskVector, moments: Mapping[str, InputMoments]
) -> dict[str, InputMemory]:
    """Layer by layer, the cosine (Frobenius) of τᵀτ with the second moments of the layer's inputs.

    Args:
        vector: the task vector by names of weights, such as a `TaskVector`, or a gradient.
        moments: from `input_moments` at the start of the finetuning.

    Raises:
        ValueError: if the vector lacks a weight or it does not fit the moments, or a matrix is zero.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> model = nn.Linear(2, 2, bias=False)
        >>> moments = input_moments(model, lambda: model(rows).diagonal().sum())
        >>> slope = torch.autograd.grad(model(rows).diagonal().sum(), model.weight)[0]
        >>> found = input_memory({"weight": -0.1 * slope}, moments)["weight"]
        >>> round(found.plain, 6), round(found.weighted, 6), round(found.identity, 3)
        (1.0, 1.0, 0.802)
    """
    named = dict(vector.items())
    found = {}
    for name, moment in moments.items():
        if name not in named:
            raise UserError(f"the task vector has no {name!r}; give the task vector of the same model")
        tau = named[name].double()
        if tau.ndim != 2 or tau.shape[1] != len(moment.plain):
            raise UserError(
                f"{name!r} has shape {tuple(tau.shape)} in the task vector, but the layer has "
                f"{len(moment.plain)} inputs; give the task vector of the same model"
            )
        eye = torch.eye(len(moment.plain), dtype=torch.float64, device=moment.plain.device)
        pairs = {
            "plain": (tau.T @ tau, moment.plain),
            "weighted": (tau.T @ tau, moment.weighted),
            "identity": (eye, moment.plain),
        }
        cosines = {}
        for kind, (first, second) in pairs.items():
            lengths = first.norm() * second.norm()
            if lengths == 0:
                raise UserError(f"{name!r} has no {kind} cosine: a matrix is zero; was the layer trained?")
            cosines[kind] = float((first * second).sum() / lengths)
        found[name] = InputMemory(**cosines)
    return found


@dataclass(frozen=True, eq=False)
class Projection:
    """Paths as a plane shows them.

    Args:
        points: one tensor (K, 2) a path, in float64; lengths in the plane are lengths in parameter space.
        explained: the shares (2,) of the variance of all points along the two axes; 1 less their sum is what
            the picture leaves out.
    """

    points: tuple[Tensor, ...]
    explained: Tensor


def projection(paths: Iterable[Iterable[Tensor]]) -> Projection:
    """Paths in the plane of the two directions in which their points vary most (PCA of all points together).

    Of N points in D dimensions, only the N x N matrix of inner products is made. Each axis points from the
    start of the first path to its end.

    PCA makes smooth arcs of almost anything: of a long random walk in many dimensions the first axis explains
    61% and the second 15% (Antognini and Sohl-Dickstein, NeurIPS 2018, arXiv:1806.08805). So neither a high
    share nor a curve is evidence of anything by itself.

    Args:
        paths: one or more paths, each a tensor (K, D) or K vectors (D,), all of one length D.

    Raises:
        TypeError: if a point is no 1-D floating-point tensor, or dtypes or devices differ.
        ValueError: if there is no path, points differ in length or are not finite, or all points are equal.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [3.0, 0.0, 1.0]])
        >>> found = projection([corner])
        >>> bool((found.points[0][1] - found.points[0][0]).norm().isclose(torch.tensor(3.0).double()))
        True
        >>> round(float(found.explained.sum()), 6)  # three points lie in a plane
        1.0
    """
    listed = [list(path) for path in _checks.not_empty("the list of paths", paths)]
    points = _vectors("paths", [point for path in listed for point in path])
    centred = (piece - piece.mean(0) for piece in _pieces(points))
    gram = _total(piece @ piece.T for piece in centred)
    variances, axes = torch.linalg.eigh(gram)
    if variances[-1] <= 0:
        raise UserError("all points of the paths are equal, so they span no plane; was the model trained?")
    largest = range(-1, -1 - min(2, len(points)), -1)
    found = torch.stack([axes[:, i] * variances[i].clamp(min=0).sqrt() for i in largest], 1)
    found = torch.nn.functional.pad(found, (0, 2 - found.shape[1]))
    found = torch.where(found[len(listed[0]) - 1] < found[0], -found, found)
    parts = torch.split(found, [len(path) for path in listed])
    return Projection(parts, found.square().sum(0) / gram.trace())


def angle(first: Tensor, second: Tensor) -> float:
    """The angle between two vectors (D,) in degrees, accumulated in float64.

    It is found from the part of `first` across `second`, so that tiny angles are not lost in rounding, as
    they are in the arc cosine of a cosine near 1.

    Raises:
        ValueError: if a vector is zero, or holds NaN or infinity.

    Example:
        >>> round(angle(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0])), 6)
        45.0
    """
    a, direction = first.double(), _direction("second", second)
    _direction("first", first)
    along = a @ direction
    across = (a - along * direction).norm()
    return float(torch.atan2(across, along).rad2deg())


def plane(first: Tensor, second: Tensor) -> Tensor:
    """Two orthonormal axes (2, D) of the plane that two vectors (D,) span, the first axis along `first`.

    Multiply points (K, D) by its transpose to draw them: `points @ plane(u, v).T` has shape (K, 2).

    Raises:
        ValueError: if a vector is zero or not finite, or the two are parallel.

    Example:
        >>> plane(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    across = _direction("first", first)
    other = _direction("second", second)
    up = other - (other @ across) * across
    if up.norm() < 1e-9:
        raise UserError("the two vectors are parallel and span no plane; choose another second vector")
    return torch.stack([across, up / up.norm()])


def _direction(name: str, vector: Tensor) -> Tensor:
    _checks.check_finite(name, vector)
    length = vector.double().norm()
    if length == 0:
        raise UserError(f"the {name} vector is zero and so has no direction; was the model trained at all?")
    direction: Tensor = vector.double() / length
    return direction


def _vectors(name: str, vectors: Iterable[Tensor]) -> list[Tensor]:
    """The vectors as a list, all flat, finite and of one length, dtype and device."""
    rows = _checks.not_empty(name, vectors)
    for place, row in enumerate(rows):
        _checks.flat_parameters(f"{name}[{place}]", row)
        _check_alike(rows[0], row, names=(f"{name}[0]", f"{name}[{place}]"))
    return rows


def _check_alike(first: Tensor, second: Tensor, *, names: tuple[str, str]) -> None:
    _checks.check_kinds(f"{names[0]} and {names[1]}", first, second)
    if len(first) != len(second):
        raise UserError(
            f"{names[0]} has {len(first)} entries and {names[1]} has {len(second)}; "
            "give vectors of one and the same model"
        )


def _pieces(rows: list[Tensor]) -> Iterator[Tensor]:
    """The vectors (K, D) piece by piece, each a float64 tensor (K, n)."""
    for start in range(0, max(1, len(rows[0])), _PIECE):
        yield torch.stack([row[start : start + _PIECE] for row in rows]).double()


def _total(pieces: Iterator[Tensor]) -> Tensor:
    total = next(pieces)
    for piece in pieces:
        total = total + piece
    return total


def _lengths(rows: list[Tensor]) -> Tensor:
    return _total(piece.square().sum(1) for piece in _pieces(rows)).sqrt()
