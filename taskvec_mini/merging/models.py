"""Models in, a model out: merging, negating and completing analogies from folder to folder.

A model is a safetensors file, a state dict that torch saved, or a folder in Hugging Face layout, single or
sharded; in the place of a finetuned one, the folder of a LoRA adapter will do. The result has the layout, the
names and the dtypes of the pretrained model, so what loads that one loads the result. Everything streams: see
`from_files`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskvec_mini import _checks, _files, records
from taskvec_mini._progress import progress_bar
from taskvec_mini.errors import FileError, InputTypeError, MissingFileError, UserError
from taskvec_mini.merging import from_files
from taskvec_mini.merging._pieces import Piece, vectors_of
from taskvec_mini.merging._stored import Path, Stored, stored_layout
from taskvec_mini.merging.depth import _outermost
from taskvec_mini.merging.model_files import DTYPES, FLOATS, Array, ModelFiles, ModelWriter, Reader
from taskvec_mini.merging.registry import RULES, Rule

RECORD = "merge.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
_DTYPES = {DTYPES[kind]: kind for kind in ("F32", "BF16", "F16", "F64")}
_LOST = 0.05  # of the length of an edit: from there on it is said that rounding takes so much
_KIBIBYTES = 1 if sys.platform == "darwin" else 1024  # the unit of getrusage


def merge_models(
    pretrained: Path,
    finetuned: Sequence[Path],
    *,
    out: Path,
    rule: str = "mean",
    scaling_coef: float = 1.0,
    dtype: torch.dtype | None = None,
    exclude: str | Sequence[str] = (),
    mixed_dtypes: bool = False,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Merge finetuned models into one, and write it as a folder that loads like the pretrained model.

    The merged model is `pretrained + scaling_coef * merged`, `merged` being what the rule makes of the T task
    vectors. Whole numbers, such as position ids, and running statistics of batch normalisations stay as they
    are in the pretrained model. So does what `exclude` names. Configuration and tokenizer are copied, and
    `merge.json` says where it all comes from. The folder is made beside its place and moved there at the
    end: a failure leaves nothing.

    Args:
        pretrained: what all models were finetuned from: a safetensors file, a state dict saved by torch, or a
            folder in Hugging Face layout.
        finetuned: T models of the same architecture, or folders of LoRA adapters of the pretrained model,
            which are multiplied out. Where all are adapters, rules that rank or drop entries do so among
            those that any of them changes.
        out: the folder to make. It may be there already if it is empty.
        rule: a name in `merging.RULES`.
        scaling_coef: λ. Sums of eight tasks want about 0.3, means about 1; tune it on validation data.
        dtype: what floating-point tensors are written as; by default what they are in the pretrained model.
            Sums run in float32, or in float64 where a model holds that, and are rounded once.
        exclude: patterns of names, as in a shell, of tensors that are not merged. Those of the pretrained
            model stay as they are; those that only a finetuned model has are left away.
        mixed_dtypes: take models of which a tensor has different dtypes, although the difference holds the
            rounding of one side.
        progress: say on stderr what is done and how far it is; see `_progress.progress_bar`.
        options: the options of the rule, such as `density=0.2`, or `generator` for those that draw.

    Returns:
        What `merge.json` holds: inputs with their SHA-256, rule, options, coefficient, what was kept or left
        away ("notes"), versions, seconds, memory.

    Raises:
        FileNotFoundError: if a model, a shard or the folder around `out` is not there.
        OSError: if a file cannot be read or written, `out` is not empty, or the disk has too little space.
        TypeError: if dtypes differ, weights are quantised, the pretrained model is an adapter, or an adapter
            is of a kind that is not multiplied out (see `read_adapter`).
        ValueError: if names or shapes differ, an entry is NaN or infinite, a tied weight is untied in one of
            the models, the result is beyond its dtype, or a rule, option or pattern is unknown.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file, save_file
        >>> folder = FilePath(tempfile.mkdtemp())
        >>> for name, row in {"base": [1.0, 1.0], "cars": [3.0, 1.0], "mnist": [1.0, 5.0]}.items():
        ...     save_file({"bias": torch.tensor(row).bfloat16()}, folder / f"{name}.safetensors")
        >>> base, *taught = (folder / f"{name}.safetensors" for name in ("base", "cars", "mnist"))
        >>> record = merge_models(base, taught, out=folder / "merged", progress=False)
        >>> load_file(folder / "merged" / "base.safetensors")["bias"]
        tensor([2., 3.], dtype=torch.bfloat16)
    """
    coef = _checks.finite_number("scaling_coef", scaling_coef)
    chosen = _checks.named_choice("merging rule", rule, RULES)
    chosen.check_options(options)
    described = dict(options)  # as JSON holds them
    if isinstance(generator := described.pop("generator", None), torch.Generator):
        described["seed"] = generator.initial_seed()
    return _written(
        pretrained,
        finetuned,
        out=out,
        rule=chosen,
        options=options,
        coef=coef,
        weights=None,
        dtype=dtype,
        exclude=exclude,
        mixed_dtypes=mixed_dtypes,
        progress=progress,
        operation={"rule": rule, "options": described, "scaling_coef": coef},
    )


def negate_model(
    pretrained: Path,
    finetuned: Path,
    *,
    out: Path,
    scaling_coef: float = 1.0,
    dtype: torch.dtype | None = None,
    exclude: str | Sequence[str] = (),
    mixed_dtypes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Forget a task: write `pretrained - scaling_coef * (finetuned - pretrained)`.

    Ilharco et al. (ICLR 2023, arXiv:2212.04089) choose the largest coefficient at which a control task keeps
    95% of its accuracy. Arguments, results and errors are those of `merge_models`.

    Raises:
        UserError: as `merge_models` does.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file, save_file
        >>> folder = FilePath(tempfile.mkdtemp())
        >>> for name, row in {"base": [1.0, 1.0], "rude": [3.0, 1.0]}.items():
        ...     save_file({"bias": torch.tensor(row)}, folder / f"{name}.safetensors")
        >>> base, rude = folder / "base.safetensors", folder / "rude.safetensors"
        >>> record = negate_model(base, rude, out=folder / "polite", scaling_coef=0.5, progress=False)
        >>> load_file(folder / "polite" / "base.safetensors")["bias"]
        tensor([0., 1.])
    """
    coef = _checks.finite_number("scaling_coef", scaling_coef)
    return _written(
        pretrained,
        [finetuned],
        out=out,
        rule=RULES["task_arithmetic"],
        options={},
        coef=-coef,
        weights=None,
        dtype=dtype,
        exclude=exclude,
        mixed_dtypes=mixed_dtypes,
        progress=progress,
        operation={"operation": "negate", "scaling_coef": coef},
    )


def complete_analogy(
    first: Path,
    second: Path,
    *,
    third: Path,
    out: Path,
    scaling_coef: float = 1.0,
    dtype: torch.dtype | None = None,
    exclude: str | Sequence[str] = (),
    mixed_dtypes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """First is to second as third is to the result: write `third + scaling_coef * (second - first)`.

    With models of sketches of lions, of photographs of lions and of sketches of tigers, for instance, the
    result should know photographs of tigers (Ilharco et al., ICLR 2023, arXiv:2212.04089). All three have
    been finetuned from one pretrained model; the result has the layout of the third. Other arguments,
    results and errors are those of `merge_models`.

    Raises:
        UserError: as `merge_models` does; and if one of the three is an adapter.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file, save_file
        >>> folder = FilePath(tempfile.mkdtemp())
        >>> for name, row in {"a": [1.0, 1.0], "b": [3.0, 1.0], "c": [1.0, 5.0]}.items():
        ...     save_file({"bias": torch.tensor(row)}, folder / f"{name}.safetensors")
        >>> a, b, c = (folder / f"{name}.safetensors" for name in "abc")
        >>> record = complete_analogy(a, b, third=c, out=folder / "d", progress=False)
        >>> load_file(folder / "d" / "c.safetensors")["bias"]
        tensor([3., 5.])
    """
    coef = _checks.finite_number("scaling_coef", scaling_coef)
    return _written(
        third,
        [second, first],
        out=out,
        rule=RULES["task_arithmetic"],
        options={},
        coef=coef,
        weights=(1.0, -1.0),
        dtype=dtype,
        exclude=exclude,
        mixed_dtypes=mixed_dtypes,
        progress=progress,
        operation={"operation": "analogy", "scaling_coef": coef},
        adapters=False,  # `third` is not the model that they change
    )


# --- writing ---------------------------------------------------------------------------------------------


def _written(
    pretrained: Path,
    finetuned: Sequence[Path],
    *,
    out: Path,
    rule: Rule,
    options: dict[str, Any],
    coef: float,
    weights: Sequence[float] | None,
    dtype: torch.dtype | None,
    exclude: str | Sequence[str],
    mixed_dtypes: bool,
    progress: bool,
    operation: dict[str, Any],
    adapters: bool = True,
) -> dict[str, Any]:
    """Write the merged model into a folder; the record of how."""
    begun, before = time.perf_counter(), _peak()
    if dtype is not None and dtype not in _DTYPES:
        raise InputTypeError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype!r}")
    target = FilePath(out)
    _check_place(target)
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    stored = stored_layout(
        pretrained, finetuned, exclude=patterns, mixed_dtypes=mixed_dtypes, adapters=adapters
    )
    start = stored.models[0]
    kinds = {
        name: _DTYPES[dtype] if dtype is not None and part.kind in FLOATS else part.kind
        for name, part in start.parts.items()
    }
    size = sum(part.size * DTYPES[kinds[name]].itemsize for name, part in start.parts.items())
    needed = size * (2 if start.pickled else 1)
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise FileError(
            f"{target} needs {_bytes(needed)} and the disk has {_bytes(free)}; make space, or choose another "
            "place for the result"
        )
    notes = [*stored.notes, *_other_tokenizers(stored.models)]
    expected = from_files.memory(stored, rule, options)
    if start.pickled:
        shards = dict.fromkeys(start.files, 0)
        for name, part in start.parts.items():
            shards[part.file] += part.size * DTYPES[kinds[name]].itemsize
        expected += max(shards.values())
    bar = progress_bar(
        rule.name,
        total=from_files.readings(stored, rule, options),
        unit="entries",
        show=progress,
        scale=True,
    )
    with bar:
        for note in notes:
            bar.say(note)
        bar.say(
            f"{sum(stored.sizes.values()):,} entries in {len(stored.shapes)} tensors, finetuned "
            f"{stored.tasks} times; {_bytes(size)} to write; memory: about {_bytes(expected)} beside Python's"
        )
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            hashes = [list(pool.map(_files.sha256, model.files)) for model in stored.models]
        inputs = [
            {
                "path": str(model.path),
                "sha256": {file.name: found for file, found in zip(model.files, each, strict=True)},
            }
            for model, each in zip(stored.models, hashes, strict=True)
        ]
        with _files.replacing(target) as place:
            place.mkdir()
            rounding = _Rounding()
            with closing(ModelWriter(place, like=start, kinds=kinds)) as writer:
                sink = _sink(writer, stored, kinds=kinds, rounding=rounding)
                from_files.merge_into(
                    sink, stored, rule=rule, options=options, coef=coef, weights=weights, seen=bar.update
                )
                _write_carried(writer, stored, kinds=kinds)
                writer.finish(aliases=stored.twins)
            if start.folder is not None:
                _copy_rest(start, place, dtype=dtype)
            if rounding.share > _LOST:
                notes.append(
                    f"rounding to half precision changes the edit by {rounding.share:.0%} of its length; "
                    "dtype=torch.float32 (--dtype float32) keeps all of it"
                )
                bar.say(notes[-1])
            peak = max(0, _peak() - before)
            record = {
                **operation,
                "pretrained": inputs[0],
                "finetuned": inputs[1:],
                "exclude": patterns,
                "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
                "notes": notes,
                "lost_to_rounding": rounding.share,
                "seconds": round(time.perf_counter() - begun, 2),
                "memory": {"expected": expected, "measured": peak},
                **{key: records.provenance()[key] for key in ("date", "versions")},
            }
            _files.write_json(place / RECORD, record)
            if target.is_dir():
                target.rmdir()  # it is empty; not every system renames a folder onto another
        bar.say(f"{target}: {record['seconds']:.1f} s, {_bytes(peak)} of memory beyond what was there before")
    return record


def _check_place(target: FilePath) -> None:
    """An error unless a folder can be made there: before the work, and not after it."""
    if not target.absolute().parent.is_dir():
        raise MissingFileError(f"there is no folder {target.parent} to make {target.name} in; make it first")
    if target.exists() and not target.is_dir():
        raise FileError(f"{target} is a file; give the name of a folder for the merged model")
    if target.is_dir() and any(target.iterdir()):
        raise FileError(f"{target} is not empty; choose a new folder for the merged model, or delete it")
    if not os.access(target.absolute().parent, os.W_OK):
        raise FileError(f"{target} could not be written: you may not write into {target.absolute().parent}")


@dataclass
class _Rounding:
    """How long the edit is, and how long what rounding to half precision added to it; both squared."""

    edit: float = 0.0
    error: float = 0.0

    @property
    def share(self) -> float:
        return float((self.error / self.edit) ** 0.5) if self.edit else 0.0


def _sink(
    writer: ModelWriter, stored: Stored, *, kinds: Mapping[str, str], rounding: _Rounding
) -> Callable[[Piece, Array, Array], None]:
    """What writes a piece of the merged model, rounded, under all its names."""
    lock = threading.Lock()
    others: dict[str, list[str]] = {}
    for name, first in stored.twins.items():
        others.setdefault(first, []).append(name)

    def write(piece: Piece, entries: Array, start: Array) -> None:
        exact = torch.from_numpy(entries)
        for name in (piece.name, *others.get(piece.name, ())):
            rounded = exact.to(DTYPES[kinds[name]])
            if not bool(torch.isfinite(rounded).all()):
                raise UserError(
                    f"{name!r} of the merged model is beyond the range of {rounded.dtype}; pass "
                    "dtype=torch.float32 or torch.bfloat16 (--dtype float32), or a smaller coefficient"
                )
            writer.write(name, piece.first, entries=rounded)
        if rounded.dtype.itemsize == 2:
            edit = (exact - torch.from_numpy(start)).double()
            error = (rounded.to(exact.dtype) - exact).double()
            with lock:
                rounding.edit += float(edit @ edit)
                rounding.error += float(error @ error)

    return write


def _write_carried(writer: ModelWriter, stored: Stored, *, kinds: Mapping[str, str]) -> None:
    """Write what stays as it is in the pretrained model, floating-point tensors piece by piece."""
    with closing(Reader(stored.models[0])) as reader:
        for name in stored.carried:
            part = stored.models[0].parts[name]
            if part.kind not in FLOATS:
                if part.size:
                    writer.write(name, 0, entries=reader.tensor(name).reshape(-1))
                continue
            for first in range(0, part.size, from_files._ENTRIES):
                size = min(from_files._ENTRIES, part.size - first)
                entries = np.empty(size, np.float64 if part.kind == "F64" else np.float32)
                reader.read(name, first, out=entries)
                writer.write(name, first, entries=torch.from_numpy(entries).to(DTYPES[kinds[name]]))


def _copy_rest(model: ModelFiles, place: FilePath, *, dtype: torch.dtype | None) -> None:
    """Copy what a model needs besides its weights: configuration, tokenizer, code.

    Hidden files stay behind, and so does the README, which tells of another model.
    """
    folder = model.folder
    assert folder is not None
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
        about = file.name.lower().startswith("readme") or file.name == RECORD
        if file.is_file() and not (hidden or weights or about):
            (place / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place / inside)
    config = place / "config.json"
    if dtype is not None and config.is_file():  # from_pretrained asks it what to load the weights as
        content = _files.read_json(config, what="configuration", remedy="copy the model again")
        for key in ("dtype", "torch_dtype"):
            if key in content:
                content[key] = str(dtype).removeprefix("torch.")
        _files.write_json(config, content)


def _other_tokenizers(models: Sequence[ModelFiles]) -> list[str]:
    """A word on tokenizers that are not those of the pretrained model: their rows may mean other tokens."""
    start = models[0].folder
    notes: list[str] = []
    for model in models[1:]:
        for name in _TOKENIZERS if start is not None and model.folder is not None else ():
            assert start is not None
            assert model.folder is not None
            ours, theirs = start / name, model.folder / name
            if ours.is_file() and theirs.is_file() and _tokenizer(ours) != _tokenizer(theirs):
                notes.append(
                    f"{model.path}: its {name} differs from the pretrained model's, which is copied; where "
                    "tokens have other numbers, rows of the embedding mean other things"
                )
                break
    return notes


def _tokenizer(file: FilePath) -> Any:
    """What a tokenizer's file says of tokens: how it was last called to pad or to cut is left out."""
    content = file.read_bytes()
    try:
        found = json.loads(content)
        return {key: value for key, value in found.items() if key not in ("padding", "truncation")}
    except (ValueError, AttributeError):  # no JSON, or no object
        return content


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _peak() -> int:
    """The most memory that this process has held so far, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(ImportError):
        import resource  # Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTES
    return 0


# --- comparing -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Differences:
    """What T finetuned models have changed of their pretrained one, by layer.

    Attributes:
        models: the names of the T models.
        entries: of each layer, how many entries it has.
        products: of each layer, the inner products (T, T) of the task vectors, in float64.
        unchanged: of each layer, how many entries (T,) of each vector are exactly 0.
        squares: of each layer, the squared norm of the pretrained model.
        notes: what was left out or read under another name.
    """

    models: list[str]
    entries: dict[str, int]
    products: dict[str, Tensor]
    unchanged: dict[str, Tensor]
    squares: dict[str, float]
    notes: list[str]

    def norms(self, layer: str | None = None) -> Tensor:
        """The norms (T,) of the task vectors in a layer, or of all layers together."""
        return self._products(layer).diagonal().sqrt()

    def cosines(self, layer: str | None = None) -> Tensor:
        """The cosines (T, T) between the task vectors; NaN where a vector is zero."""
        norms = self.norms(layer)
        return (self._products(layer) / norms / norms[:, None]).clamp(-1, 1)

    def _products(self, layer: str | None) -> Tensor:
        return torch.stack(list(self.products.values())).sum(0) if layer is None else self.products[layer]


def compare_models(
    pretrained: Path,
    finetuned: Sequence[Path],
    *,
    exclude: str | Sequence[str] = (),
    mixed_dtypes: bool = False,
    progress: bool = True,
) -> Differences:
    """Norms of task vectors and cosines between them, whole and by layer, straight from the files.

    A layer is a block of the outermost stack of blocks, as in "encoder.layer.3"; what is in none goes by the
    first two parts of its name. Arguments are those of `merge_models`.

    Raises:
        UserError: as `merge_models` does.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> folder = FilePath(tempfile.mkdtemp())
        >>> for name, row in {"base": [1.0, 1.0], "cars": [3.0, 1.0], "mnist": [1.0, 5.0]}.items():
        ...     save_file({"head.bias": torch.tensor(row)}, folder / f"{name}.safetensors")
        >>> base, *taught = (folder / f"{name}.safetensors" for name in ("base", "cars", "mnist"))
        >>> found = compare_models(base, taught, progress=False)
        >>> found.norms().tolist(), found.cosines()[0, 1].item()
        ([2.0, 4.0], 0.0)
    """
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    stored = stored_layout(pretrained, finetuned, exclude=patterns, mixed_dtypes=mixed_dtypes)
    layer_of = {}
    for name in stored.shapes:
        block = _outermost(name)
        if block is not None:
            layer_of[name] = f"{block[0]}.{block[1]}".removeprefix(".")
        else:
            layer_of[name] = ".".join(name.split(".")[:-1][:2]) or name
    layers = sorted(set(layer_of.values()), key=_in_depth)
    tasks = stored.tasks
    entries = dict.fromkeys(layers, 0)
    products = {layer: torch.zeros(tasks, tasks, dtype=torch.float64) for layer in layers}
    unchanged = {layer: torch.zeros(tasks, dtype=torch.int64) for layer in layers}
    squares = dict.fromkeys(layers, 0.0)
    bar = progress_bar(
        "comparing", total=sum(stored.sizes.values()), unit="entries", show=progress, scale=True
    )
    with bar:
        for note in stored.notes:
            bar.say(note)
        for piece, (start, vectors) in vectors_of(stored, stored.shapes, size=from_files._ENTRIES):
            if not np.isfinite(vectors).all():
                from_files._blame(stored, piece.name, what="task vectors")
            layer = layer_of[piece.name]
            rows = torch.from_numpy(vectors).double()
            entries[layer] += piece.size
            products[layer] += rows @ rows.T
            unchanged[layer] += (rows == 0).sum(1)
            squares[layer] += float(torch.from_numpy(start).double().square().sum())
            bar.update(piece.size)
    models = _labels([model.path for model in stored.models[1:]])
    return Differences(models, entries, products, unchanged, squares, stored.notes)


def _in_depth(layer: str) -> tuple[int, str, int]:
    """First what is in no block, in the order of names, then the blocks."""
    stack, _, number = layer.rpartition(".")
    return (1, stack, int(number)) if number.isdecimal() else (0, layer, 0)


def _labels(paths: Sequence[FilePath]) -> list[str]:
    """A short name for each model: that of its file or folder, as far up as it takes to tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]
