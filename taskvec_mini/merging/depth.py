"""Scaling a merged task vector by depth: less for the first blocks of a network, more for the last."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch

from taskvec_mini import _checks, _memory
from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.merging.rules import task_arithmetic
from taskvec_mini.vectors import TaskVector

_PIECE = 1 << 16  # entries in float64 at a time
_NUMBERED = re.compile(r"(.*?)(?:^|\.)(\d+)(?:\.|$)")  # the outermost stack of blocks, and a block's number


def scale_by_depth(
    merged: TaskVector,
    *,
    first: float,
    last: float,
    block_of: Callable[[str], tuple[str, int] | None] | None = None,
) -> TaskVector:
    """LiNeS: a factor for each block, which rises linearly from the first block to the last.

    Wang et al., ICLR 2025, arXiv:2410.17146. Early blocks hold what all tasks share, late ones what is of
    one task; a merge that moves the early ones less keeps more of the pretrained features. This is no merging
    rule: merge under any of them, then scale. Block l of L is multiplied by first + (last − first) l/(L − 1)
    and everything outside the blocks (embeddings, a last normalisation, a projection) by `first`, whether it
    is a matrix or not.

    The result is a sum or a mean as `merged` is. Layer-wise AdaMerging (Yang et al., ICLR 2024,
    arXiv:2310.02575) learns such factors for each task and layer from unlabelled data; here two numbers draw
    a line.

    In the authors' letters first is α and last is α + β. For a merge they take the α that `depth_start` gives
    and tune β; for one finetuned model they take last = 1 and tune α. The factors stand in place of λ, so
    apply the result with scaling_coef=1. With first = last it is `first * merged`.

    Args:
        merged: any task vector, for instance what a rule gave.
        first: the factor of the first block and of what is in no block.
        last: the factor of the last block.
        block_of: from the name of a tensor to the stack and the number of its block, counted from 0, or None
            for one outside. By default the outermost number in the name counts, and what stands before it is
            the stack: "encoder.layer.3.output.dense.weight" is block 3 of "encoder.layer". L is one more than
            the largest number of a stack; a stack with block 0 alone is none. A network of several stages,
            each numbered from 0, such as a ResNet, needs a `block_of` that counts through.

    Returns:
        A new vector of the same layout, dtype and device.

    Raises:
        TypeError: if `merged` is no TaskVector, or `block_of` gives a number that is not whole.
        ValueError: if a factor is not finite, a number is negative, no tensor is in a block, or the result is
            beyond the dtype.

    Example:
        >>> layout = [("layers.0.weight", (1,)), ("layers.1.weight", (1,)), ("norm", (1,))]
        >>> scale_by_depth(TaskVector(torch.ones(3), layout), first=0.5, last=1.0).flat
        tensor([0.5000, 1.0000, 0.5000])
    """
    start = _checks.finite_number("first", first)
    end = _checks.finite_number("last", last)
    _check_vector(merged)
    blocks = [(_outermost if block_of is None else block_of)(name) for name, _ in merged.layout]
    deepest: dict[str, int] = {}
    for block in blocks:
        if block is not None:
            stack, number = block
            _checks.whole_number(f"the number of a block of {stack!r}", number, minimum=0)
            deepest[stack] = max(number, deepest.get(stack, 0))
    if not any(deepest.values()):
        names = ", ".join(repr(name) for name, _ in merged.layout[:3])
        raise UserError(
            f"no tensor is in one of several numbered blocks; the first names are {names}: tell with "
            "block_of which block each name belongs to"
        )
    scaled = _memory.empty(merged._flat.shape, dtype=merged._flat.dtype, device=merged._flat.device)
    places = torch.split(scaled, merged._sizes())
    parts = torch.split(merged._flat, merged._sizes())
    for place, part, block in zip(places, parts, blocks, strict=True):
        factor = start
        if block is not None and deepest[block[0]] > 0:
            factor += (end - start) * block[1] / deepest[block[0]]
        for piece, values in zip(torch.split(place, _PIECE), torch.split(part, _PIECE), strict=True):
            piece.copy_(values.double() * factor)
    return merged._with(scaled, what="the scaled task vector")


def depth_start(task_vectors: Iterable[TaskVector], merged: TaskVector) -> float:
    """The first factor that LiNeS takes for a merge: ‖Σ_t τ_t‖ / ‖merged‖ / T, in the norm L1.

    Wang et al., ICLR 2025, arXiv:2410.17146; the norm is that of the authors' code. With this factor a merge
    is as large as the mean: for the sum it is 1 / T, for the mean 1.

    Args:
        task_vectors: the T vectors that were merged.
        merged: what a rule made of them.

    Raises:
        TypeError, ValueError: as the rules do; if `merged` is no TaskVector of the same layout, or is zero.

    Example:
        >>> vectors = [TaskVector(torch.tensor(row), [("bias", (2,))]) for row in ([4.0, 0.0], [0.0, -2.0])]
        >>> depth_start(vectors, TaskVector(torch.tensor([1.0, -1.0]), [("bias", (2,))]))  # 6 / 2 / 2
        1.5
    """
    _check_vector(merged)
    vectors = list(task_vectors)
    total = task_arithmetic(vectors)
    total._check_match(merged)
    size = float(merged.flat.double().abs().sum())
    if size == 0:
        raise UserError(
            "merged is zero everywhere, and no factor makes it larger; give what a rule has merged"
        )
    return float(total.flat.double().abs().sum()) / size / len(vectors)


def _check_vector(merged: TaskVector) -> None:
    if not isinstance(merged, TaskVector):
        raise InputTypeError(
            f"merged must be a TaskVector, got {type(merged).__name__}; a merging rule returns one"
        )


def _outermost(name: str) -> tuple[str, int] | None:
    """The stack and the number of the outermost block that a name is in."""
    found = _NUMBERED.match(name)
    return (found[1], int(found[2])) if found else None
