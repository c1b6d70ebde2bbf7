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

Any number of threads gives the same bits, except for the rules for matrices, whose singular vectors and
products depend on it.

Files of float16 or bfloat16 are read as float32, and so is the result; float64 stays float64. To try many
scaling coefficients, make a `merged_vector` once and hand it to `benchmarks.evaluation.sweep`, which writes
every model into one buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from taskvec_mini import _checks, _files
from taskvec_mini.merging._stored import Path, Stored, stored_layout
from taskvec_mini.merging._sums import Array, sum_vectors
from taskvec_mini.merging.registry import RULES, Rule
from taskvec_mini.merging.rules import kept_entries, mean, ties
from taskvec_mini.vectors import TaskVector


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
        rule: a name in `merging.RULES`, such as "mean", "task_arithmetic", "ties" or "iso_c".
        scaling_coef: λ; for the sum and the mean see `merging.task_arithmetic`.
        out: a file that the result is written to as well, whole or not at all; it may be one of those read.
        integer_buffers: "refuse" such buffers, or "carry" them over from the pretrained file.
        options: the options of the rule, such as `density=0.2`. `merging.dare` draws its masks tensor by
            tensor here, in the order of names, so they are other ones than for vectors in memory.

    Returns:
        The tensors by name, names sorted.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if a file cannot be read, or `out` cannot be written; an older file stays as it is.
        TypeError: if dtypes differ or have no meaningful difference, or the rule lacks a generator.
        ValueError: if a file is no whole safetensors file or is given twice; if names or shapes differ; if an
            entry is NaN or infinite; if the rule or an option is unknown; and what the rule itself raises.
    """
    coef = _checks.finite_number("scaling_coef", scaling_coef)
    chosen = _checks.named_choice("merging rule", rule, RULES)
    chosen.check_options(options)
    stored = stored_layout(pretrained, finetuned, integer_buffers=integer_buffers)
    state = stored.carried_tensors()
    merged = stored.split(_merged(stored, chosen, options=options, coef=coef))
    for (name, shape), part in zip(stored.shapes.items(), merged, strict=True):
        state[name] = part.view(shape)
    state = {name: state[name] for name in sorted(state)}
    if out is not None:
        _files.write_safetensors(out, state, metadata={"format": "pt"})
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

    Arguments are those of `merge_files`. What the rule holds besides is the vector twice over.

    Raises:
        UserError: as `merge_files` does.
    """
    chosen = _checks.named_choice("merging rule", rule, RULES)
    chosen.check_options(options)
    stored = stored_layout(pretrained, finetuned, integer_buffers=integer_buffers)
    flat = _merged(stored, chosen, options=options, coef=None)
    return TaskVector(flat, list(stored.shapes.items()), stored.carried)


def _merged(stored: Stored, rule: Rule, *, options: dict[str, Any], coef: float | None) -> Tensor:
    """All entries (D,) of the merged task vector or, with a coefficient, of the merged model."""
    what = "merged task vector" if coef is None else "merged model"
    if rule.streams:
        divisor = len(stored.files) - 1 if rule.function is mean else 1

        def finish(total: Array, start: Array, merged: Array) -> None:
            np.divide(total, divisor, out=total if coef is not None else merged)
            if coef is not None:
                np.multiply(total, coef, out=total)
                np.add(total, start, out=merged)

        flat, bad = sum_vectors(stored, finish)
        if bad:
            for merged, (name, read) in zip(stored.split(flat), stored.walk(stored.files), strict=True):
                _check_finite(stored, name, read=read, made={what: merged})
        return flat

    flat = torch.empty(sum(stored.sizes.values()), dtype=stored.dtype)
    function = partial(rule.function, **options)
    trims = None
    if rule.function is ties and not options.get("per_tensor", False):  # then a trim sees the whole vector
        function([TaskVector(torch.ones(1), [("", (1,))])])  # checks the options before a long read
        density = options.get("density", rule.options["density"])
        trims = [_trim(stored, file, density=density) for file in stored.files[1:]]
        function = partial(ties, **{**options, "density": 1.0})
    for merged, (name, read) in zip(stored.split(flat), stored.walk(stored.files), strict=True):
        start, *ends = read
        if len(start) == 0:
            continue
        parts = [end - start for end in ends]
        differences = zip(stored.files[1:], parts, strict=True)
        _check_finite(stored, name, read=read, made={f"task vector of {f}": part for f, part in differences})
        if trims is not None:
            parts = [trim.apply(part) for trim, part in zip(trims, parts, strict=True)]
        layout = [(name, stored.shapes[name])]
        merged.copy_(function([TaskVector(part, layout) for part in parts]).flat)
        if coef is not None:
            merged.mul_(coef).add_(start)
        _check_finite(stored, name, read=read, made={what: merged})
    return flat


def _check_finite(stored: Stored, name: str, *, read: list[Tensor], made: dict[str, Tensor]) -> None:
    """A UserError about NaN or infinity, which names a file that holds some, or else what was made of them.

    One quick pass comes before a thorough one: a sum is finite unless an entry is not, or hardly ever else.
    """
    if all(math.isfinite(float(part.sum(dtype=torch.float64))) for part in made.values()):
        return
    for file, part in zip(stored.files, read, strict=True):
        _checks.check_finite(f"{name!r} in {file}", part)
    for what, part in made.items():
        _checks.check_finite(f"{name!r} of the {what}", part)


# the global trim of TIES


@dataclass
class _Trim:
    """What one task keeps: all above a magnitude, and of those equal to it the first few."""

    threshold: float
    spare: int  # how many of the equal ones may still be kept

    def apply(self, part: Tensor) -> Tensor:
        """The entries (n,) of the next tensor, those that are not kept set to 0."""
        magnitudes = part.abs()
        kept = magnitudes > self.threshold
        equal = (magnitudes == self.threshold).nonzero().squeeze(1)[: self.spare]
        kept[equal] = True
        self.spare -= len(equal)
        return part.where(kept, 0)


def _trim(stored: Stored, file: Path, *, density: float) -> _Trim:
    """The cut after the ⌈density · D⌉ largest magnitudes of one task; one vector is in memory for it."""
    magnitudes = torch.empty(sum(stored.sizes.values()), dtype=stored.dtype)
    walk = stored.walk([stored.files[0], file])
    for place, (_, (start, end)) in zip(stored.split(magnitudes), walk, strict=True):
        torch.sub(end, start, out=place).abs_()
    count = kept_entries(density, size=len(magnitudes))
    ranked = magnitudes.numpy()
    ranked.partition(len(ranked) - count)
    largest = ranked[-count:]  # its first entry is its smallest
    return _Trim(float(largest[0]), spare=count - int(np.count_nonzero(largest > largest[0])))
