"""Merging straight from files: for models of which eight do not fit into memory side by side.

The rules and their options are those of `merging`, and so are the results, to rounding; only where TIES has
to cut among entries of equal size, it keeps those of the tensors whose names come first. But no task vector
is ever whole in memory. What needs one entry of each model at a time is done in pieces of rows, so that the
size of no tensor matters; the rules for matrices take one tensor of all models.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from safetensors.torch import save_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, row in {"pretrained": [1.0, 1.0], "cars": [3.0, 1.0], "mnist": [1.0, 5.0]}.items():
    ...     save_file({"bias": torch.tensor(row)}, folder / f"{name}.safetensors")
    >>> start, *taught = (folder / f"{name}.safetensors" for name in ("pretrained", "cars", "mnist"))
    >>> merge_files(start, taught, rule="mean", scaling_coef=1.0)["bias"]
    tensor([2., 3.])

Any number of threads gives the same bits, except for the rules for matrices and for adapters, whose singular
vectors and products depend on it.

Models are those that `merge_models` takes: files, folders in Hugging Face layout, or folders of LoRA
adapters, whose products are made row by row as they are needed. Half precision is read
as float32, and sums run in it, or in float64 where a model holds that. To try many scaling coefficients, make
a `merged_vector` once and hand it to `benchmarks.evaluation.sweep`, which writes every model into one buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.merging import _pieces
from taskvec_mini.merging._pieces import Piece, Sink, sum_vectors, vectors_of
from taskvec_mini.merging._stored import Path, Readers, Stored, stored_layout
from taskvec_mini.merging.model_files import Array
from taskvec_mini.merging.registry import RULES, Rule
from taskvec_mini.merging.rules import _entries as share_of
from taskvec_mini.merging.rules import (
    breadcrumbs,
    consensus,
    dare,
    dropped_at_random,
    kept_entries,
    mean,
    ties,
)
from taskvec_mini.vectors import TaskVector

_ENTRIES = 1 << 18  # of each model in a piece that a rule gets at a time
_WHOLE = 1 << 22  # entries of a tensor up to which rules that rank its entries take it whole
_APART: dict[str, tuple[float, float]] = {  # float64 copies of a matrix, and of the square it is solved by
    "tsv": (5, 9),
    "iso_c": (3, 8),
    "iso_cts": (6, 11),
    "regmean_from_vectors": (5, 4),
    "wudi": (5, 7),
}
_REST = 4_000_000  # bytes for headers, hashes, and tensors that are compared
_STACKED = ("regmean_from_vectors", "wudi")  # which put wide matrices on top of each other


def merge_files(
    pretrained: Path,
    finetuned: Sequence[Path],
    *,
    rule: str = "mean",
    scaling_coef: float = 1.0,
    integer_buffers: Literal["refuse", "carry"] = "refuse",
    statistics: Literal["carry", "merge"] = "carry",
    **options: Any,
) -> dict[str, Tensor]:
    """The state dict `pretrained + scaling_coef * merged` of T finetuned models on disk.

    `merge_models` writes it to files instead, in the pretrained model's dtypes and never whole in memory.

    Args:
        pretrained: the start: a file, or a folder of a model.
        finetuned: T models with the same names, shapes and dtypes, each another one; or LoRA adapters.
        rule: a name in `merging.RULES`, such as "mean", "task_arithmetic", "ties" or "iso_c".
        scaling_coef: λ; for the sum and the mean see `merging.task_arithmetic`.
        integer_buffers: "refuse" such buffers, or "carry" them over from the pretrained model.
        statistics: "carry" the running statistics of batch normalisations over, or "merge" them.
        options: the options of the rule, such as `density=0.2`. `merging.dare` draws its masks piece by
            piece here, in the order of names, so they are other ones than for vectors in memory.

    Returns:
        The tensors by name, names sorted; those that were merged in float32, or in float64 where a model
        holds that.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if a file cannot be read.
        TypeError: if dtypes differ or have no meaningful difference, or the rule lacks a generator.
        ValueError: if a file is damaged or given twice; if names or shapes differ; if an entry is NaN or
            infinite; if the rule or an option is unknown; and what the rule itself raises.
    """
    coef = _checks.finite_number("scaling_coef", scaling_coef)
    chosen = _checks.named_choice("merging rule", rule, RULES)
    chosen.check_options(options)
    stored = stored_layout(pretrained, finetuned, integer_buffers=integer_buffers, statistics=statistics)
    _, parts = _in_memory(stored, chosen, options=options, coef=coef)
    state = {name: part.view(stored.shapes[name]) for name, part in parts.items()}
    with closing(Readers(stored)) as readers:
        state |= {name: readers.carried(name) for name in stored.carried}
    state |= {name: state[first] for name, first in stored.twins.items()}
    return {name: state[name] for name in sorted(state)}


def merged_vector(
    pretrained: Path,
    finetuned: Sequence[Path],
    *,
    rule: str = "mean",
    integer_buffers: Literal["refuse", "carry"] = "refuse",
    statistics: Literal["carry", "merge"] = "carry",
    **options: Any,
) -> TaskVector:
    """The merged task vector of T finetuned models on disk, its tensors sorted by name.

    Arguments are those of `merge_files`. What the rule holds besides is the vector twice over.

    Raises:
        UserError: as `merge_files` does; and if two names stand for one tensor, as tied weights do.
    """
    chosen = _checks.named_choice("merging rule", rule, RULES)
    chosen.check_options(options)
    stored = stored_layout(pretrained, finetuned, integer_buffers=integer_buffers, statistics=statistics)
    for name, first in stored.twins.items():
        raise UserError(
            f"{pretrained} holds one tensor under two names, {first!r} and {name!r}, as tied weights do; "
            "merge_models and merge_files merge it once and write it to both"
        )
    flat, _ = _in_memory(stored, chosen, options=options, coef=None)
    return TaskVector(flat, list(stored.shapes.items()), tuple(stored.carried))


def _in_memory(
    stored: Stored, rule: Rule, *, options: dict[str, Any], coef: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """All entries (D,) of the merged vector or, with a coefficient, model; and the parts of it by name."""
    # of torch and not of numpy, which asks for huge pages: a fresh process waits long for them
    flat = torch.empty(sum(stored.sizes.values()), dtype=stored.dtype)
    parts = dict(zip(stored.sizes, torch.split(flat, list(stored.sizes.values())), strict=True))
    arrays = {name: part.numpy() for name, part in parts.items()}

    def keep(piece: Piece, entries: Array, start: Array) -> None:
        arrays[piece.name][piece.first : piece.first + piece.size] = entries

    merge_into(keep, stored, rule=rule, options=options, coef=coef)
    return flat, parts


def merge_into(
    sink: Sink,
    stored: Stored,
    *,
    rule: Rule,
    options: dict[str, Any],
    coef: float | None,
    weights: Sequence[float] | None = None,
    seen: Callable[[int], object] = lambda entries: None,
) -> None:
    """Merge, and give every piece of the result to `sink`.

    Args:
        sink: gets, from any thread, a piece, what was merged there (n,) and the entries (n,) of the
            pretrained model.
        stored: the models.
        rule: the rule, with its `options`.
        coef: λ for the merged model; None for the merged task vector.
        weights: a factor for each task vector, for rules that stream.
        seen: is told how many entries of each model have been read; in all `readings` times their number.
    """
    what = "merged task vector" if coef is None else "merged model"
    if rule.streams:
        divisor = stored.tasks if rule.function is mean else 1

        def finish(total: Array, start: Array) -> None:
            np.divide(total, divisor, out=total)
            if coef is not None:
                np.multiply(total, coef, out=total)
                np.add(total, start, out=total)

        for piece, finite in sum_vectors(stored, finish, sink, weights=weights):
            if not finite:
                _blame(stored, piece.name, what=what, again=partial(_summed, finish=finish, weights=weights))
            seen(piece.size)
        return
    function = partial(rule.function, **options)
    names = [name for name, size in stored.sizes.items() if size]
    if ranks(stored, rule, options) == "model":
        function([TaskVector(torch.ones(1), [("", (1,))])])  # checks the options before a long read
        count = kept_entries(options.get("density", rule.options["density"]), size=sum(stored.sizes.values()))
        cuts = _pieces.largest(stored, names, counts=[count], size=_ENTRIES, seen=seen)
        merge = _after_cuts(partial(ties, **{**options, "density": 1.0, "per_tensor": False}), cuts)
        _by_pieces(sink, stored, names, merge=merge, coef=coef, what=what, seen=seen)
        return
    if rule.function is dare:
        _drop(sink, stored, names, options=options, coef=coef, what=what, seen=seen)
        return
    if rule.function is consensus:
        _by_pieces(sink, stored, names, merge=function, coef=coef, what=what, seen=seen)
        return
    for name in names:
        size = stored.sizes[name]
        if ranks(stored, rule, options) != "tensors" or size <= _WHOLE:
            _whole(sink, stored, name, merge=function, coef=coef, what=what)
            seen(size)
            continue
        # TIES of one tensor, or Breadcrumbs, where it is too large to be whole
        function([TaskVector(torch.ones(1), [("", (1,))])])  # checks the options, as above
        given = {**rule.options, **options}
        if rule.function is ties:
            counts = [kept_entries(given["density"], size=size)]
            trimmed = partial(ties, **{**options, "density": 1.0, "per_tensor": False})
        else:  # Breadcrumbs
            masked = [math.floor(share_of(given[share], size=size)) for share in ("smallest", "largest")]
            counts = [size - masked[0], *([masked[1]] if masked[1] else [])]
            trimmed = partial(breadcrumbs, smallest=0.0, largest=0.0)
        cuts = _pieces.largest(stored, [name], counts=counts, size=_ENTRIES, seen=seen)
        merge = _after_cuts(trimmed, cuts)
        _by_pieces(sink, stored, [name], merge=merge, coef=coef, what=what, seen=seen)


def ranks(stored: Stored, rule: Rule, options: Mapping[str, Any]) -> Literal["model", "tensors", "nothing"]:
    """What a rule ranks entries in: the whole model, each tensor, or nothing."""
    if rule.function is ties and not options.get("per_tensor", False):
        return "model"
    return "tensors" if rule.function in (ties, breadcrumbs) else "nothing"


def readings(stored: Stored, rule: Rule, options: Mapping[str, Any]) -> int:
    """How many entries of each model are read in all: ranks are found by reading more than once."""
    sizes = stored.sizes.values()
    times = 1 + _pieces.passes(stored)
    if ranks(stored, rule, options) == "model":
        return times * sum(sizes)
    if ranks(stored, rule, options) == "tensors":
        return sum(size * times if size > _WHOLE else size for size in sizes)
    return sum(sizes)


def memory(stored: Stored, rule: Rule, options: Mapping[str, Any]) -> int:
    """About how many bytes a merge holds at most, beside Python and its libraries.

    Pieces are of one size, whatever the model. A rule for matrices holds one tensor of all T models and its
    start, in the precision they are read in, and besides what takes them apart: copies in float64, and the
    small squares of `_matrices` with their eigenvectors and LAPACK's room to work, `_APART` times.
    """
    tasks, threads, width = stored.tasks, torch.get_num_threads(), stored.itemsize
    if rule.streams:
        pieces = threads * 6 * _pieces.PIECE * width
        return _REST + pieces + _of_adapters(stored, threads=threads, size=_pieces.PIECE)
    if rule.name in _APART:
        most = 0.0
        for shape in stored.shapes.values():
            rows, columns = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
            copies, squares = _APART[rule.name]
            side = min(rows, columns)
            if rule.name in _STACKED:
                side = min(tasks * rows, columns)
                steps = options.get("steps") is not None
                copies += 3 * steps
                if side < columns:
                    copies += (2.5 if steps else 2) * tasks
            whole = rows * columns * width * (tasks + 1)
            apart = 8 * (copies * rows * columns + squares * side**2)
            most = max(most, whole + apart)
        return _REST + int(most) + _of_adapters(stored, threads=1, size=max(stored.sizes.values()))
    size = 0
    if ranks(stored, rule, options) == "tensors":
        size = max((size for size in stored.sizes.values() if size <= _WHOLE), default=0)
    pieces = (2 * threads + 2) * (tasks + 1) + 10 * tasks
    adapters = _of_adapters(stored, threads=threads, size=max(size, _ENTRIES))
    return _REST + adapters + pieces * _ENTRIES * width + size * width * (3 * tasks + 7)


def _of_adapters(stored: Stored, *, threads: int, size: int) -> int:
    """Bytes of adapters themselves, and of what each thread multiplies out for pieces of `size` entries."""
    held = under_way = 0
    rest = []  # each thread keeps the rows of which it has used a part
    for model, names in zip(stored.models, stored.names, strict=True):
        if model.adapter is None:
            continue
        held += model.adapter.nbytes
        rest.append(0)
        for name, known in names.items():
            part = stored.models[0].parts[name]
            rows = min(part.size, size + 2 * math.prod(part.shape[1:]))
            if model.adapter.needs_all_rows(known, part.shape):
                rows = part.size
            dora = "lora_magnitude_vector" in model.adapter.factors.get(known, {})
            under_way = max(under_way, rows * 8 * (4 if dora else 2))
            rest[-1] = max(rest[-1], rows * stored.itemsize)
    return held + threads * (under_way + sum(rest))


Merge = Callable[[list[TaskVector]], TaskVector]


def _by_pieces(
    sink: Sink,
    stored: Stored,
    names: Sequence[str],
    *,
    merge: Merge,
    coef: float | None,
    what: str,
    seen: Callable[[int], object],
) -> None:
    """Merge some tensors in pieces, for rules to which the shape of a tensor means nothing."""
    for piece, (start, vectors) in vectors_of(stored, names, size=_ENTRIES):
        if not np.isfinite(vectors).all():
            _blame(stored, piece.name, what=what)
        layout = ((piece.name, (piece.size,)),)
        merged = merge([TaskVector._made(torch.from_numpy(vector), layout, ()) for vector in vectors])
        _deliver(sink, stored, piece, merged=merged, start=start, coef=coef, what=what)
        seen(piece.size)


def _drop(
    sink: Sink,
    stored: Stored,
    names: Sequence[str],
    *,
    options: dict[str, Any],
    coef: float | None,
    what: str,
    seen: Callable[[int], object],
) -> None:
    """DARE in pieces; whether anything is left is asked of the whole."""
    moved = left = False

    def merge(vectors: list[TaskVector]) -> TaskVector:
        nonlocal moved, left
        merged = dropped_at_random(vectors, **options)
        moved = moved or any(bool(vector._flat.any()) for vector in vectors)
        left = left or bool(merged._flat.any())
        return merged

    _by_pieces(sink, stored, names, merge=merge, coef=coef, what=what, seen=seen)
    if moved and not left:
        raise UserError(
            f"drop_rate has left nothing of {stored.tasks} task vector(s) with "
            f"{sum(stored.sizes.values()):,} entries each; choose a lower one"
        )


def _whole(sink: Sink, stored: Stored, name: str, *, merge: Merge, coef: float | None, what: str) -> None:
    """Merge a tensor of all models, read whole."""
    size = stored.sizes[name]
    start = np.empty(size, np.float64 if stored.dtype == torch.float64 else np.float32)
    layout = ((name, stored.shapes[name]),)
    vectors = []
    with closing(Readers(stored)) as readers, np.errstate(all="ignore"):
        readers.start(name, 0, out=start)
        for task in range(stored.tasks):
            vector = np.empty_like(start)
            readers.vector(task, name, first=0, start=start, out=vector)
            if not np.isfinite(vector).all():
                _blame(stored, name, what=what)
            vectors.append(TaskVector._made(torch.from_numpy(vector), layout, ()))
    merged = merge(vectors)
    del vectors
    _deliver(sink, stored, Piece(name, 0, size), merged=merged, start=start, coef=coef, what=what)


def _deliver(
    sink: Sink,
    stored: Stored,
    piece: Piece,
    *,
    merged: TaskVector,
    start: Array,
    coef: float | None,
    what: str,
) -> None:
    """Give a piece of the merged vector or, with a coefficient, of the merged model to the sink."""
    entries = merged._flat  # .flat would copy it, and nobody else has this vector
    if coef is not None:
        entries.mul_(coef).add_(torch.from_numpy(start))
    if not bool(torch.isfinite(entries).all()):
        _blame(stored, piece.name, what=what, again=lambda vectors, starts: entries)
    sink(piece, entries.numpy(), start)


def _after_cuts(rule: Merge, cuts: list[list[_pieces.Cut]]) -> Merge:
    """The rule for vectors whose next entries are first trimmed: of two cuts, to what lies between them."""

    def merge(vectors: list[TaskVector]) -> TaskVector:
        trimmed = []
        for vector, (low, *high) in zip(vectors, cuts, strict=True):
            magnitudes = vector._flat.abs()
            kept = low.mask(magnitudes)
            for cut in high:
                kept &= ~cut.mask(magnitudes)
            trimmed.append(TaskVector(vector._flat.where(kept, 0), vector.layout))
        return rule(trimmed)

    return merge


def _blame(
    stored: Stored,
    name: str,
    *,
    what: str,
    again: Callable[[list[Tensor], Tensor], Tensor] | None = None,
) -> None:
    """A UserError about NaN or infinity: it names a file that holds some, or else what was made of them."""
    files = [
        model.path if model.adapter is not None else model.parts[own[name]].file
        for model, own in zip(stored.models, stored.names, strict=True)
    ]
    start = np.empty(stored.sizes[name], np.float64 if stored.dtype == torch.float64 else np.float32)
    vectors = []
    with closing(Readers(stored)) as readers, np.errstate(all="ignore"):
        readers.start(name, 0, out=start)
        _checks.check_finite(f"{name!r} in {files[0]}", torch.from_numpy(start))
        for task, file in enumerate(files[1:]):
            vector = np.empty_like(start)
            readers.finetuned(task, name, out=vector)
            _checks.check_finite(f"{name!r} in {file}", torch.from_numpy(vector))
            readers.vector(task, name, first=0, start=start, out=vector)
            vectors.append(torch.from_numpy(vector))
            _check_range(f"{name!r} of the task vector of {file}", vectors[-1])
    if again is not None:
        _check_range(f"{name!r} of the {what}", again(vectors, torch.from_numpy(start)))


def _check_range(what: str, entries: Tensor) -> None:
    beyond = int((~torch.isfinite(entries)).sum())
    if beyond:
        raise UserError(
            f"{what} has {beyond} value(s) beyond the range of {entries.dtype}, though its files hold finite "
            "numbers; choose a smaller scaling coefficient, or save the models in float64"
        )


def _summed(
    vectors: list[Tensor], start: Tensor, *, finish: _pieces.Finish, weights: Sequence[float] | None
) -> Tensor:
    total = torch.stack(vectors)
    if weights is not None:
        total *= torch.tensor(weights, dtype=total.dtype)[:, None]
    array = total.sum(0).numpy()
    with np.errstate(all="ignore"):
        finish(array, start.numpy())
    return torch.from_numpy(array)
