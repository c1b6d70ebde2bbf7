"""Merging straight from safetensors files: for models of which eight do not fit into memory side by side.

The rules and their options are those of `merging`, and so are the results, to rounding; only where TIES has
to cut among entries of equal size, it keeps those of the tensors whose names come first. But no task vector
is ever whole in memory: all files are read tensor by tensor, mapped and not copied, and what was read is let
go before the next few tensors. The merged model, and copies of one tensor, are all that is held.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from safetensors.torch import save_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, row in {"pretrained": [1.0, 1.0], "cars": [3.0, 1.0], "mnist": [1.0, 5.0]}.items():
    ...     save_file({"bias": torch.tensor(row)}, folder / f"{name}.safetensors")
    >>> start, *taught = (folder / f"{name}.safetensors" for name in ("pretrained", "cars", "mnist"))
    >>> merge_files(start, taught, rule="mean", scaling_coef=1.0)["bias"]
    tensor([2., 3.])

Files of float16 or bfloat16 are read as float32, and so is the result; float64 stays float64. To try many
scaling coefficients, make a `merged_vector` once and hand it to `benchmarks.evaluation.sweep`, which writes
every model into one buffer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from taskvec_mini import _checks, _files
from taskvec_mini.errors import InputTypeError
from taskvec_mini.merging import rules as merging
from taskvec_mini.merging._stored import Path, Stored, stored_layout
from taskvec_mini.merging._sums import Array, sum_vectors
from taskvec_mini.vectors import TaskVector

Merger = Callable[
    [str, Tensor, list[Tensor]], Tensor
]  # name, pretrained (n,), finetuned T times (n,) to (n,)

RULES: dict[str, Callable[..., TaskVector]] = {
    rule.__name__: rule
    for rule in (
        merging.task_arithmetic, merging.mean, merging.ties, merging.dare, merging.breadcrumbs,
        merging.tsv, merging.regmean_from_vectors,
    )
}  # fmt: skip
_SUMS = ("mean", "task_arithmetic")


def merge_files(
    pretrained: Path,
    finetuned: Sequence[Path],
    *,
    rule: str = "mean",
    scaling_coef: float = 1.0,
    out: Path | None = None,
    integer_buffers: Literal["refuse", "carry"] = "refuse",
    **options: Any,
) -> dict[str, Tensor]:
    """The state dict `pretrained + scaling_coef * merged` of T finetuned state dicts in safetensors files.

    Args:
        pretrained: the file of the start.
        finetuned: T files with the same names, shapes and dtypes, each another one.
        rule: the name of a function of `merging`, such as "mean", "task_arithmetic", "ties" or "tsv".
        scaling_coef: λ; for the sum and the mean see `merging.task_arithmetic`.
        out: a file that the result is written to as well, whole or not at all; it may be one of those read.
        integer_buffers: "refuse" such buffers, or "carry" them over from the pretrained file.
        options: the options of the rule, such as `density=0.2`. `merging.dare` draws its masks tensor by
            tensor here, in the order of names, so they are other ones than for vectors in memory.

    Returns:
        The tensors by name, names sorted.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if `out` cannot be written; an older file stays as it is.
        TypeError: if dtypes differ or have no meaningful difference, or the rule has no such option.
        ValueError: if a file is no whole safetensors file or is given twice; if names or shapes differ; if an
            entry is NaN or infinite; if the rule is unknown; and what the rule itself raises.
    """
    coef = _checks.finite_number("scaling_coef", scaling_coef)
    stored = stored_layout(pretrained, finetuned, integer_buffers)
    state = stored.carried_tensors()
    function = _checked_rule(rule, options)
    if rule in _SUMS:
        state |= zip(stored.shapes, _parts(stored, _sum(stored, rule, coef)), strict=True)
    else:
        state |= _merged(stored, function, options, coef)
    state = {name: state[name].view(stored.shapes.get(name, state[name].shape)) for name in sorted(state)}
    if out is not None:
        _files.write_safetensors(out, state, {"format": "pt"})
    return state


def merged_vector(
    pretrained: Path,
    finetuned: Sequence[Path],
    *,
    rule: str = "mean",
    integer_buffers: Literal["refuse", "carry"] = "refuse",
    **options: Any,
) -> TaskVector:
    """The merged task vector of T finetuned state dicts in safetensors files, its tensors sorted by name.

    Arguments and errors are those of `merge_files`. What the rule holds besides is the vector twice over.
    """
    stored = stored_layout(pretrained, finetuned, integer_buffers)
    function = _checked_rule(rule, options)
    if rule in _SUMS:
        flat = _sum(stored, rule, None)
    else:
        flat = torch.empty(sum(stored.sizes.values()), dtype=stored.dtype)
        merged = _merged(stored, function, options, None)
        for place, (_, part) in zip(_parts(stored, flat), merged, strict=True):
            place.copy_(part)
    return TaskVector(flat, list(stored.shapes.items()), stored.carried)


# merging, tensor by tensor


def _merged(
    stored: Stored, function: Callable[..., TaskVector], options: dict[str, Any], coef: float | None
) -> Iterator[tuple[str, Tensor]]:
    """Name by name the entries (n,) of the merged task vector or, with a coefficient, of the merged model."""
    merge = _merger(stored, function, options)
    for name, (start, *ends) in stored.walk(stored.files):
        merged = merge(name, start, ends) if len(start) else start.clone()
        if coef is not None:
            merged.mul_(coef).add_(start)
        if not _sum_is_finite(merged):
            _complain(stored, name, [start, *ends], merged, coef)
        yield name, merged


def _sum(stored: Stored, rule: str, coef: float | None) -> Tensor:
    """The same, all entries (D,), of a rule that is a sum: it needs no tensor whole, so it is quicker."""
    divisor = len(stored.files) - 1 if rule == "mean" else 1

    def finish(total: Array, start: Array, merged: Array) -> None:
        np.divide(total, divisor, out=total if coef is not None else merged)
        if coef is not None:
            total *= coef
            np.add(total, start, out=merged)

    flat, bad = sum_vectors(stored, finish)
    if bad:
        for part, (name, read) in zip(_parts(stored, flat), stored.walk(stored.files), strict=True):
            if name in bad:
                _complain(stored, name, read, part, coef)
    return flat


def _parts(stored: Stored, flat: Tensor) -> tuple[Tensor, ...]:
    return torch.split(flat, list(stored.sizes.values()))


def _complain(stored: Stored, name: str, read: list[Tensor], merged: Tensor, coef: float | None) -> None:
    """A ValueError about what is not finite: a file, or else what was made of the files."""
    for file, part in zip(stored.files, read, strict=True):
        _checks.check_finite(f"{name!r} in {file}", part)
    what = "merged task vector" if coef is None else "merged model"
    _checks.check_finite(f"{name!r} of the {what}", merged)


def _merger(stored: Stored, function: Callable[..., TaskVector], options: dict[str, Any]) -> Merger:
    if function is merging.ties and not options.get("per_tensor", False):
        merging.ties([TaskVector(torch.ones(1), [("", (1,))])], **options)  # checks them before a long read
        density = options.pop("density", inspect.signature(merging.ties).parameters["density"].default)
        trims = [_trim(stored, file, density) for file in stored.files[1:]]
        return partial(_by_rule, partial(merging.ties, density=1.0, **options), stored, trims)
    return partial(_by_rule, partial(function, **options), stored, None)


def _checked_rule(rule: str, options: dict[str, Any]) -> Callable[..., TaskVector]:
    function = _checks.named_choice("merging rule", rule, RULES)
    signature = inspect.signature(function)
    known = list(signature.parameters)[1:]
    for option in options:
        if option not in known:
            raise InputTypeError(
                f"{rule} has no option {option!r}; its options: {', '.join(known) or 'none'}"
            )
    signature.bind([], **options)  # a TypeError for one that has no default and is not given
    return function


def _by_rule(
    function: Callable[[list[TaskVector]], TaskVector],
    stored: Stored,
    trims: list[_Trim] | None,
    name: str,
    start: Tensor,
    ends: list[Tensor],
) -> Tensor:
    """What a rule of `merging` makes of vectors of one tensor; the merged entries (n,)."""
    parts = [end - start for end in ends]
    for file, end, part in zip(stored.files[1:], ends, parts, strict=True):
        if not _sum_is_finite(part):
            _checks.check_finite(f"{name!r} in {stored.files[0]}", start)
            _checks.check_finite(f"{name!r} in {file}", end)
            _checks.check_finite(f"{name!r} of the task vector of {file}", part)
    if trims is not None:
        parts = [trim.apply(part) for trim, part in zip(trims, parts, strict=True)]
    return function([TaskVector(part, [(name, stored.shapes[name])]) for part in parts]).flat


def _sum_is_finite(part: Tensor) -> bool:
    """False where an entry is NaN or infinite, and hardly ever else: one quick pass before a thorough one."""
    return math.isfinite(float(part.sum(dtype=torch.float64)))


# the global trim of TIES


@dataclass
class _Trim:
    """What one task keeps: all above a magnitude, and of those equal to it the first few."""

    threshold: float
    spare: int  # how many of the equal ones may still be kept

    def apply(self, part: Tensor) -> Tensor:
        magnitudes = part.abs()
        kept = magnitudes > self.threshold
        equal = (magnitudes == self.threshold).nonzero().squeeze(1)[: self.spare]
        kept[equal] = True
        self.spare -= len(equal)
        return part.where(kept, 0)


def _trim(stored: Stored, file: Path, density: float) -> _Trim:
    """The cut after the ⌈density · D⌉ largest magnitudes of one task; one vector is in memory for it."""
    magnitudes = torch.empty(sum(stored.sizes.values()), dtype=stored.dtype)
    walk = stored.walk([stored.files[0], file])
    for place, (_, (start, end)) in zip(_parts(stored, magnitudes), walk, strict=True):
        torch.sub(end, start, out=place).abs_()
    count = max(math.ceil(merging._entries(density, len(magnitudes))), 1)
    ranked = magnitudes.numpy()
    ranked.partition(len(ranked) - count)
    largest = ranked[-count:]  # its first entry is its smallest
    return _Trim(float(largest[0]), count - int(np.count_nonzero(largest > largest[0])))
