"""Where a run of rounds stands: the merged parameters, what a round did, and what it cost so far."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import _checks, _files
from taskvec_mini.descent import Loss
from taskvec_mini.errors import UserError
from taskvec_mini.networks import stacked

Matrix = tuple[tuple[float, ...], ...]
_PIECE = 1 << 20  # positions turned to float64 at a time
_KIND = "taskvec_mini.Round/1"
_REMEDY = "copy it again, or run the rounds anew from an earlier one"


@dataclass(frozen=True, eq=False)
class Round:
    """Where a run stands after a round: all that is needed to go on, and what was measured on the way.

    Give it to `alternate` or `local_sgd` as `start` to go on from there. Cosines with a zero vector are NaN;
    so are all of round 0, which is the start.

    Attributes:
        number: the round, counted from 1; 0 is the start.
        theta: the merged parameters (D,).
        pretrained: the parameters before round 1 (D,).
        losses: the loss of every task at the merged parameters.
        norms, cosines: of this round's task vectors θ_t − θ, from where the round began.
        norms_from_pretrained, cosines_from_pretrained: of θ_t − θ₀. They share what the earlier rounds did,
            so these cosines rise from round to round even where the tasks pull ever more apart.
        gradient_evaluations: gradients of one task's whole loss spent so far; an epoch of mini-batches on
            one task counts as one.
        floats_communicated: numbers sent so far where each task is held by somebody else: the parameters to
            everybody and back, 2TD in each round; 4TD with control variates.
        measured: what the caller's `measure` found at the merged parameters.
    """

    number: int
    theta: Tensor
    pretrained: Tensor
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    cosines: Matrix
    norms_from_pretrained: tuple[float, ...]
    cosines_from_pretrained: Matrix
    gradient_evaluations: int = 0
    floats_communicated: int = 0
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean_loss(self) -> float:
        """L̄ at the merged parameters."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def mean_cosine(self) -> float:
        """The mean cosine between two different task vectors of this round; NaN for a single task."""
        return _mean_of_pairs(self.cosines)

    @property
    def mean_cosine_from_pretrained(self) -> float:
        """The same between task vectors measured from the pretrained parameters."""
        return _mean_of_pairs(self.cosines_from_pretrained)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the round to a safetensors file, whole or not at all: an older file stays until then.

        Raises:
            OSError: if the folder does not exist, may not be written to, or is full.
        """
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: facts.pop(name) for name in ("theta", "pretrained")}
        _files.write_tensors(path, tensors, facts, kind=_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Round:
        """Read a round that `save` wrote; a run that goes on from it ends at the same bits.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is a pickle, is truncated or corrupted, or holds no round.
        """
        tensors, facts = _files.read_tensors(path, kind=_KIND, what="round", remedy=_REMEDY)
        fields: dict[str, Any] = {**tensors, **{name: _tuples(value) for name, value in facts.items()}}
        try:
            return cls(**fields)
        except TypeError as error:
            raise UserError(f"{path} does not hold what a round needs ({error}); {_REMEDY}") from error


def losses_at(losses: Sequence[Loss], thetas: Tensor) -> Tensor:
    """The losses (S, T) of all T tasks at each of S parameter vectors (S, D).

    With the T finetuned models as rows, the mean of all entries is Jensen's bound on L̄ at their average,
    where L̄ is convex. The mean of the diagonal, the experts' own losses, is no bound: see `experts_edge`.

    Raises:
        ValueError: if there are no losses.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum() / 2]
        >>> losses_at(bowls, torch.tensor([[0.0], [2.0]]))
        tensor([[0., 2.],
                [2., 0.]])
    """
    together = stacked(_checks.not_empty("the list of losses", losses))
    with torch.no_grad():
        if together:
            return torch.stack([together(theta.expand(len(losses), -1)) for theta in thetas])
        return torch.stack([torch.stack([loss(theta) for loss in losses]) for theta in thetas])


def angles(vectors: Tensor, offset: Tensor | None = None) -> tuple[tuple[float, ...], Matrix]:
    """Norms and cosines of the rows, each moved by the offset; accumulated in float64, piece by piece.

    A zero row has no direction: its cosines are NaN.

    Example:
        >>> angles(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        ((5.0, 2.0), ((1.0, 0.8), (0.8, 1.0)))
    """
    gram = vectors.new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for at in range(0, vectors.shape[1], _PIECE):
        rows = vectors[:, at : at + _PIECE].double()
        if offset is not None:
            rows = rows + offset[at : at + _PIECE].double()
        gram += rows @ rows.T
    norms = gram.diagonal().sqrt()
    cosines = (gram / (norms[:, None] * norms)).clamp(-1, 1)  # 0 / 0 is NaN
    return tuple(norms.tolist()), tuple(map(tuple, cosines.tolist()))


def _mean_of_pairs(cosines: Matrix) -> float:
    pairs = [value for i, row in enumerate(cosines) for value in row[:i]]
    return math.fsum(pairs) / len(pairs) if pairs else math.nan


def _tuples(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
