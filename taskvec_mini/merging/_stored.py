"""Models of one layout on disk: names, shapes and dtypes compared, and what is merged and what is not."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from taskvec_mini import _checks, _files, _states
from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.merging.adapters import (
    Adapter,
    check_names,
    check_orientations,
    check_ties,
    is_tied,
    without_hidden_names,
)
from taskvec_mini.merging.model_files import (
    FLOATS,
    AdapterReader,
    Array,
    ModelFiles,
    Part,
    Reader,
    find_model,
)

Path = str | os.PathLike[str]

_PACKED = ("weight", "qweight", "qzeros", "weight_packed", "g_idx")  # names of quantised weights
_CHUNK = 1 << 17  # entries of two tensors that are compared at a time


@dataclass(frozen=True)
class Stored:
    """Models of one layout, the pretrained one first; all is known but the entries.

    Attributes:
        models: the pretrained one, then the T finetuned ones.
        names: of each model, the name in its files of each tensor that is merged.
        shapes: of the tensors that are merged, by name, names sorted.
        dtype: what all of them are read as.
        carried: the tensors that stay as in the pretrained model, each with the reason.
        twins: tied weights which the files hold twice: a name, and the one whose entries it gets.
        notes: what a user has to know, a sentence each.
    """

    models: list[ModelFiles]
    names: list[dict[str, str]]
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    carried: dict[str, str]
    twins: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """Entries of each tensor that is merged, by name."""
        return {name: self.models[0].parts[name].size for name in self.shapes}

    @property
    def itemsize(self) -> int:
        """Bytes of an entry as it is read."""
        return self.dtype.itemsize

    @property
    def tasks(self) -> int:
        """How many finetuned models there are."""
        return len(self.models) - 1


class Readers:
    """A reader for each of some models of one layout, for one thread."""

    def __init__(self, stored: Stored):
        self.stored = stored
        start = stored.models[0]
        self._start = Reader(start)
        self._each = [
            Reader(model) if model.adapter is None else AdapterReader(model.adapter, base=start, names=names)
            for model, names in zip(stored.models[1:], stored.names[1:], strict=True)
        ]
        self.buffers: dict[str, Array] = {}  # what the thread wants to keep

    def start(self, name: str, first: int, *, out: Array) -> None:
        """Fill `out` (n,) with entries of the pretrained model."""
        self._start.read(name, first, out=out)

    def vector(self, task: int, name: str, *, first: int, start: Array, out: Array) -> None:
        """Fill `out` (n,) with entries of a task vector; `start` (n,) are those of the pretrained model."""
        reader = self._each[task]
        if isinstance(reader, AdapterReader):
            reader.read(name, first, out=out)
        else:
            reader.read(self.stored.names[task + 1][name], first, out=out)
            np.subtract(out, start, out=out)

    def finetuned(self, task: int, name: str, *, out: Array) -> None:
        """Fill `out` (n,) with a whole tensor of a finetuned model, or with what an adapter adds."""
        reader = self._each[task]
        own = name if isinstance(reader, AdapterReader) else self.stored.names[task + 1][name]
        reader.read(own, 0, out=out)

    def carried(self, name: str) -> torch.Tensor:
        """A tensor that stays as it is in the pretrained model, in its dtype."""
        return self._start.tensor(name)

    def close(self) -> None:
        """Let go of all files."""
        for reader in (self._start, *self._each):
            reader.close()


def stored_layout(
    pretrained: Path,
    finetuned: Sequence[Path],
    *,
    integer_buffers: str = "carry",
    exclude: Sequence[str] = (),
    mixed_dtypes: bool = False,
    statistics: str = "carry",
    adapters: bool = True,
) -> Stored:
    """What the headers of all models say; an error where they do not agree.

    Args:
        pretrained, finetuned: files or folders of models; a finetuned one may be the folder of a LoRA
            adapter of the pretrained model.
        integer_buffers: "refuse" them or "carry" them over from the pretrained model.
        exclude: patterns of names, as in a shell: what stays as it is in the pretrained model, and what is
            left away where only a finetuned model has it.
        mixed_dtypes: whether a tensor may have another dtype in a finetuned model.
        statistics: "carry" the running statistics of batch normalisations, or "merge" them with a warning.
        adapters: whether adapters will do. They may not where `pretrained` is not the model they change.
    """
    if isinstance(finetuned, str | os.PathLike):
        raise InputTypeError(
            f"finetuned must be a list of models, got the one {finetuned!r}; put it into [ ]"
        )
    carry = _checks.named_choice("integer_buffers", integer_buffers, {"refuse": False, "carry": True})
    paths = [pretrained, *_checks.not_empty("the list of finetuned models", finetuned)]
    models: list[ModelFiles] = []
    for path in paths:
        model = find_model(path, adapters=adapters and bool(models))
        if any(os.path.samefile(model.files[0], earlier.files[0]) for earlier in models):
            raise UserError(
                f"{path} is given twice; a task counts once (weigh it in memory if you want it to count more)"
            )
        models.append(model)
    start = models[0]
    notes: list[str] = []
    _refuse_quantised(models)
    carried = _carried(start, carry=carry, exclude=exclude, statistics=statistics)
    wanted = [name for name in start.parts if name not in carried]
    twins = _twins(start, wanted)
    if is_tied(_config(start)) is False:  # then they are copies, as when a tied model has been untied
        twins = {name: first for name, first in twins.items() if not (_is_head(name) or _is_head(first))}
    names = [{name: name for name in wanted}]
    for model in models[1:]:
        if model.adapter is not None:
            own = _changed_names(
                model,
                model.adapter,
                start=start,
                carried=carried,
                twins=twins,
                exclude=exclude,
                notes=notes,
            )
        else:
            own = _matched_names(
                model,
                wanted,
                start=start,
                carried=carried,
                twins=twins,
                exclude=exclude,
                notes=notes,
            )
            for name in wanted:
                _check_part(
                    name, start.parts[name], model.parts[own[name]], path=model.path, mixed=mixed_dtypes
                )
        names.append(own)
    if all(model.adapter is not None for model in models[1:]):  # then ranks are those of what they change
        changed = {name for each in names[1:] for name in each}
        carried |= {name: "no adapter changes it" for name in wanted if twins.get(name, name) not in changed}
        wanted = [name for name in wanted if name not in carried]
        twins = {name: first for name, first in twins.items() if name in wanted}
    known = [name for model in models for name in (model.adapter.names if model.adapter else model.parts)]
    _check_patterns(exclude, names=known)
    _tell_of_carried(models, carried, notes=notes)
    for name, first in twins.items():
        notes.append(
            f"{name!r} and {first!r} are one tensor (tied weights): it is merged once, written to both"
        )
    shapes = {name: start.parts[name].shape for name in wanted if name not in twins}
    if statistics == "merge":
        _states.warn_of_statistics(shapes)
    if not any(start.parts[name].size for name in shapes):
        raise UserError(
            f"{start.path} holds no floating-point entries to merge; give a state dict with parameters"
        )
    wide = any(start.parts[name].kind == "F64" for name in shapes)
    dtype = torch.float64 if wide else torch.float32
    return Stored(models, names, shapes, dtype, carried, twins, notes)


# --- what is merged --------------------------------------------------------------------------------------


def _refuse_quantised(models: list[ModelFiles]) -> None:
    """An error if weights are codes, whose differences mean nothing."""
    remedy = "merge the models as they were before quantisation, or load them and save them dequantised"
    for model in models:
        if _config(model).get("quantization_config"):
            raise InputTypeError(f"{model.path} is quantised, says its config.json; {remedy}")
        for name, part in model.parts.items():
            whole = part.kind.startswith(("I", "U")) and len(part.shape) > 1 and part.kind in ("I8", "U8")
            named = part.kind[0] in "IU" and name.rpartition(".")[2] in _PACKED
            if whole or named or part.kind.startswith("F8"):
                raise InputTypeError(
                    f"{name!r} in {part.file} is {part.kind}, which cannot be merged: these are quantised "
                    f"weights, whose differences mean nothing; {remedy}, as one of {', '.join(FLOATS)}"
                )


def _config(model: ModelFiles) -> dict[str, Any]:
    """What the config.json beside a model says, if there is one."""
    file = model.folder / "config.json" if model.folder else None
    if file is None or not file.is_file():
        return {}
    found: dict[str, Any] = _files.read_json(file, what="configuration", remedy="copy the model again")
    return found


def _carried(start: ModelFiles, *, carry: bool, exclude: Sequence[str], statistics: str) -> dict[str, str]:
    """The tensors of the pretrained model that are not merged, each with the reason."""
    carried = {}
    for name, part in start.parts.items():
        if _excluded(name, exclude):
            carried[name] = "excluded"
        elif part.kind not in FLOATS:
            if not part.kind.startswith(("I", "U", "BOOL")):
                raise InputTypeError(
                    f"{name!r} is {part.kind}, which cannot be merged; save it as one of {', '.join(FLOATS)}"
                )
            if not carry:
                raise InputTypeError(
                    f"{name!r} is {part.kind}, which has no meaningful difference; pass "
                    'integer_buffers="carry" to keep such buffers as they are in the pretrained file'
                )
            carried[name] = f"it holds whole numbers ({part.kind})"
        elif statistics == "carry" and _states.is_statistic(name):
            carried[name] = "running statistics of a batch normalisation"
    return carried


def _excluded(name: str, exclude: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)


def _check_patterns(exclude: Sequence[str], *, names: Iterable[str]) -> None:
    """An error where a pattern fits no name at all."""
    listed = list(names)
    for pattern in exclude:
        if not fnmatch.filter(listed, pattern):
            near = _checks._near_names(pattern, listed)
            hint = f"did you mean {near[0]!r}?" if near else f"the first name is {listed[0]!r}"
            raise UserError(f"exclude={pattern!r} fits no tensor of any model; {hint}")


def _own_names(
    wanted: Mapping[str, object], found: Mapping[str, object], *, path: Any, notes: list[str]
) -> dict[str, str]:
    """From the pretrained model's names to those in a finetuned one, which a wrapper may have changed."""
    if wanted.keys() <= found.keys():
        return {name: name for name in found}
    plain = {_checks.unwrapped(name): name for name in found}
    own = {name: plain[_checks.unwrapped(name)] for name in wanted if _checks.unwrapped(name) in plain}
    if len(plain) == len(found) and any(own[name] != name for name in own):
        changed = next(name for name in own if own[name] != name)
        notes.append(f"{path}: names are read without wrappers, such as {own[changed]!r} as {changed!r}")
        rest = {name: name for name in found if name not in own.values()}
        return {**rest, **own}
    prefix, count = _common_prefix(wanted, found)
    if count > sum(name in found for name in wanted):
        notes.append(f"{path}: its names begin with {prefix!r}, those of the pretrained model do not")
        return {name.removeprefix(prefix): name for name in found}
    prefix, count = _common_prefix(found, wanted)
    if count > sum(name in found for name in wanted):
        notes.append(f"{path}: its names lack {prefix!r}, with which those of the pretrained model begin")
        return {prefix + name if prefix + name in wanted else name: name for name in found}
    return {name: name for name in found}


def _changed_names(
    model: ModelFiles,
    adapter: Adapter,
    *,
    start: ModelFiles,
    carried: Mapping[str, str],
    twins: dict[str, str],
    exclude: Sequence[str],
    notes: list[str],
) -> dict[str, str]:
    """From the tensors that are merged to those that an adapter changes, as it calls them."""
    found = _own_names(start.parts, dict.fromkeys(adapter.names), path=model.path, notes=notes)
    own = {name: known for name, known in found.items() if not _excluded(name, exclude)}
    alone = [name for name in found if name not in own and name not in start.parts]
    if alone:
        notes.append(f"{model.path}: left away, as the pretrained model has none of it: {_listed(alone)}")
    shapes = {name: part.shape for name, part in start.parts.items()}
    own = without_hidden_names(adapter, own, shapes=shapes, config=_config(start))
    own = {name: known for name, known in own.items() if not _excluded(name, exclude)}
    for name, known in own.items():
        if name not in start.parts and known in adapter.saved and known not in adapter.factors:
            raise UserError(
                f"{model.path} holds {name!r}, trained whole (modules_to_save), but {start.path} has none; "
                + _remedy(name, "which leaves it away")
            )
    check_names(adapter, own, start.parts)
    check_orientations(adapter, {known: shapes[name] for name, known in own.items()})
    for name, known in own.items():
        adapter.check_fit(known, shapes[name])
        if name in carried and known in adapter.factors:
            raise InputTypeError(
                f"the adapter {model.path} changes {name!r}, which is not merged: {carried[name]}; give "
                "the model with floating-point weights that it was made for"
            )
    own = {name: known for name, known in own.items() if name not in carried}
    if not own:
        raise UserError(f"exclude leaves nothing of the adapter {model.path}; leave the adapter away instead")
    groups: dict[str, list[str]] = {}  # the names that stand for one tensor, the first one in front
    for name, first in twins.items():
        groups.setdefault(first, [first]).append(name)
    for names in groups.values():
        if len(start.parts[names[0]].shape) > 1:
            check_ties(adapter, [names], own=own)
        elif any(name in own for name in names):  # vectors that were equal by chance
            for name in names[1:]:
                del twins[name]
    return {twins.get(name, name): known for name, known in own.items()}


def _common_prefix(short: Mapping[str, object], long: Mapping[str, object]) -> tuple[str, int]:
    """What most of the long names have in front of a short one, and how many have it."""
    counts: Counter[str] = Counter()
    for name in long:
        for place in range(len(name)):
            if name[place] == "." and name[place + 1 :] in short:
                counts[name[: place + 1]] += 1
    return counts.most_common(1)[0] if counts else ("", 0)


def _matched_names(
    model: ModelFiles,
    wanted: Sequence[str],
    *,
    start: ModelFiles,
    carried: Mapping[str, str],
    twins: dict[str, str],
    exclude: Sequence[str],
    notes: list[str],
) -> dict[str, str]:
    """From the tensors that are merged to those of a finetuned model, as it calls them.

    What only this model has is left away where it is excluded, an integer or a copy of a tied weight, and an
    error otherwise. `twins` that are not tied here are dropped.
    """
    own = _own_names(start.parts, model.parts, path=model.path, notes=notes)
    known = {file_name: name for name, file_name in own.items()}
    extra = [name for name in own if name not in start.parts]
    plain = [name for name in extra if _excluded(name, exclude) or model.parts[own[name]].kind not in FLOATS]
    for name in extra:
        if name in plain:
            continue
        twin = _twin_of(model, own[name])
        if twin is None or known[twin] not in start.parts or known[twin] in carried:
            raise UserError(
                f"keys differ: {model.path} has {name!r}, {start.path} has not; "
                + _remedy(name, "which leaves it away")
            )
        notes.append(f"{model.path}: {name!r} is {known[twin]!r} once more (tied weights), and is left away")
    if plain:
        notes.append(f"{model.path}: left away, as the pretrained model has none of it: {_listed(plain)}")
    for name in wanted:  # a tied tensor may stand in the model only once
        if name in own:
            continue
        others = [each for each in wanted if twins.get(each, each) == twins.get(name, name) and each in own]
        if not others:
            raise UserError(
                f"keys differ: {start.path} has {name!r}, {model.path} has not; "
                + _remedy(name, "which keeps the pretrained model's")
            )
        own[name] = own[others[0]]
        notes.append(f"{model.path}: has no {name!r} of its own; it is {others[0]!r} (tied weights)")
    with closing(Reader(model)) as reader:
        for name, first in list(twins.items()):
            if own[name] == own[first] or _equal(reader, own[name], own[first]):
                continue
            if len(model.parts[own[name]].shape) > 1:
                raise UserError(
                    f"{name!r} and {first!r} are one tensor in {start.path} (tied weights) and two in "
                    f"{model.path}; untie the pretrained model as well (tie_word_embeddings=False), or "
                    f"pass exclude=[{name!r}] (--exclude '{name}'), which keeps the pretrained model's"
                )
            del twins[name]  # two vectors that were equal by chance, as biases of zeros are
    return {name: own[name] for name in wanted}


def _is_head(name: str) -> bool:
    """Whether this is the weight of an output head that may be tied to the input embedding."""
    return name.endswith(("lm_head.weight", "decoder.weight", "embed_out.weight"))


def _remedy(name: str, result: str) -> str:
    """What to do about a tensor that one model lacks."""
    if _is_head(name):
        cause = "one of the two models is tied and the other is not: untie or tie both, or "
    else:
        cause = "use models of one architecture, or "
    stem = name.rpartition(".")[0]
    pattern = f"{stem}.*" if stem and "." not in stem else name
    return f"{cause}pass exclude=[{pattern!r}] (--exclude '{pattern}'), {result}"


def _check_part(name: str, first: Part, second: Part, *, path: Any, mixed: bool) -> None:
    """An error unless a tensor has one shape and one dtype in both models."""
    if first.shape != second.shape:
        if len(first.shape) == len(second.shape) == 2 and first.shape[1] == second.shape[1]:
            raise UserError(
                f"shapes differ at {name!r}: {first.shape} in {first.file} against {second.shape} in {path}; "
                "if a vocabulary grew, give the pretrained model the same new rows "
                f"(model.resize_token_embeddings({second.shape[0]})); to keep the pretrained model's tensor, "
                f"pass exclude=[{name!r}] (--exclude '{name}')"
            )
        _checks.check_shapes(f"{name} in {path}", first.shape, second.shape)
    if second.kind not in FLOATS or (first.kind != second.kind and not mixed):
        raise InputTypeError(
            f"dtypes differ at {name!r}: {first.kind} in {first.file} against {second.kind} in "
            f"{second.file}; "
            "their difference would hold the rounding of one side: use files of one precision, or pass "
            "mixed_dtypes=True (--mixed-dtypes) to take it all the same"
        )


def _tell_of_carried(models: list[ModelFiles], carried: Mapping[str, str], *, notes: list[str]) -> None:
    """Say which tensors stay as they are and why, and where integers differ between the models."""
    reasons: dict[str, list[str]] = {}
    for name, reason in carried.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        notes.append(f"kept as in the pretrained model ({reason}): {_listed(names)}")
        if reason.startswith("running statistics"):
            notes.append(
                "the running statistics do not fit the merged weights: recompute them on data with "
                f"{_states.RECOMPUTE}"
            )
    whole = [name for name in carried if models[0].parts[name].kind not in FLOATS]
    if not whole:
        return
    with closing(Reader(models[0])) as first:
        for model in models[1:]:
            with closing(Reader(model)) as second:
                differing = [
                    name
                    for name in whole
                    if name in model.parts
                    and model.parts[name].shape == models[0].parts[name].shape
                    and not torch.equal(first.tensor(name), second.tensor(name))
                ]
            if differing:
                notes.append(
                    f"{model.path}: other whole numbers than the pretrained model: {_listed(differing)}"
                )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


# --- tied weights ----------------------------------------------------------------------------------------


def _twins(model: ModelFiles, names: Sequence[str]) -> dict[str, str]:
    """Tensors with the entries of an earlier one: each name, and that of the first with these entries.

    Tensors with one value throughout do not count: ones and zeros are where normalisations begin.
    """
    groups: dict[tuple[str, tuple[int, ...], bytes], list[str]] = {}
    twins: dict[str, str] = {}
    with closing(Reader(model)) as reader:
        for name in names:
            part = model.parts[name]
            beginning = np.empty(min(part.size, 64), np.float64)
            if part.size < 2:
                continue
            reader.read(name, 0, out=beginning)
            alike = groups.setdefault((part.kind, part.shape, beginning.tobytes()), [])
            for first in alike:
                if _equal(reader, name, first) and not _constant(reader, name):
                    twins[name] = first
                    break
            else:
                alike.append(name)
    return twins


def _twin_of(model: ModelFiles, name: str) -> str | None:
    """Another tensor of a model with the same entries, or None."""
    part = model.parts[name]
    with closing(Reader(model)) as reader:
        for other, about in model.parts.items():
            alike = other != name and (about.kind, about.shape) == (part.kind, part.shape)
            if alike and _equal(reader, name, other) and not _constant(reader, name):
                return other
    return None


def _equal(reader: Reader, name: str, other: str) -> bool:
    size = reader.model.parts[name].size
    for first in range(0, size, _CHUNK):
        pair = np.empty((2, min(_CHUNK, size - first)), np.float64)
        reader.read(name, first, out=pair[0])
        reader.read(other, first, out=pair[1])
        if not np.array_equal(pair[0], pair[1]):
            return False
    return True


def _constant(reader: Reader, name: str) -> bool:
    size = reader.model.parts[name].size
    value = np.empty(1, np.float64)
    reader.read(name, 0, out=value)
    for first in range(0, size, _CHUNK):
        entries = np.empty(min(_CHUNK, size - first), np.float64)
        reader.read(name, first, out=entries)
        if not (entries == value).all():
            return False
    return True
