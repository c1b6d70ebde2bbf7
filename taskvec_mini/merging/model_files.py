"""Models on disk: one safetensors file, one state dict saved by torch, or a folder in Hugging Face layout.

`find_model` reads what the headers say; a `Reader` reads entries, piece by piece, into buffers of the caller;
a `ModelWriter` writes another model into files laid out like those of a first one. Nothing but weights is
ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec_mini import _files
from taskvec_mini.errors import FileError, InputTypeError, MissingFileError, UserError
from taskvec_mini.merging.adapters import Adapter, read_adapter

Array = NDArray[Any]

DTYPES = {  # the names that safetensors gives to the dtypes of torch
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
FLOATS = ("F64", "F32", "F16", "BF16")  # the kinds whose difference can be taken
_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep the state dict
_CHUNK = 1 << 17  # entries that are read and converted at a time, so that they stay in a core's cache
_MAPPED = 1 << 27  # bytes of a file of torch that stay mapped before it is opened anew
_HANDLES = 8  # files that a reader keeps open


@dataclass(frozen=True)
class Part:
    """Where one tensor of a model lies.

    Attributes:
        file: the file it is in.
        kind: its dtype, as safetensors calls it; of a stranger dtype, what torch calls it.
        shape: its shape.
        offset: the place of its first byte, or None in a file of torch.
    """

    file: Path
    kind: str
    shape: tuple[int, ...]
    offset: int | None

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelFiles:
    """One model on disk; all is known but the entries.

    Attributes:
        path: what was given.
        folder: the folder of the model, or None where a single file was given.
        files: the files of weights, in the order of their names.
        index: the JSON file that says which tensor is in which shard, or None.
        pickled: whether torch saved it, and not safetensors.
        wrapper: the key under which a file of torch holds the state dict, or None.
        parts: the tensors by name, names sorted; of an adapter none.
        adapter: the adapter that stands in the place of a model, or None.
    """

    path: Path
    folder: Path | None
    files: tuple[Path, ...]
    index: Path | None
    pickled: bool
    wrapper: str | None
    parts: dict[str, Part]
    adapter: Adapter | None = None


def find_model(path: str | os.PathLike[str], *, adapters: bool = False) -> ModelFiles:
    """The model at a path: a file, a folder, or the index of a sharded model.

    Args:
        path: where it is.
        adapters: whether the folder of a LoRA adapter will do.

    Raises:
        MissingFileError: if there is nothing, a folder holds no weights, or a shard is missing.
        InputTypeError: if it is an adapter where a model is wanted, or an adapter's weights alone.
        UserError: if a file is damaged, holds more than tensors, or index and shards do not agree.
    """
    given = Path(path)
    folder: Path | None = None
    file = given
    if given.is_dir():
        for name in _INDEXES:
            if (given / name).is_file() and not (given / _SINGLE[0]).is_file():
                return _sharded(given / name, path=given)
        found = [given / name for name in _SINGLE if (given / name).is_file()][:1]
        if not found and (given / "adapter_config.json").is_file() and adapters:
            adapter = read_adapter(given)
            weights = next(given / name for name in _ADAPTER if (given / name).is_file())
            files = (weights, given / "adapter_config.json")  # without which the weights mean nothing
            return ModelFiles(given, given, files, None, False, None, {}, adapter)
        if not found and (given / "adapter_config.json").is_file():
            raise InputTypeError(
                f"{given} is an adapter, and a whole model is wanted here; make one of it and of the model "
                f"that it was trained on: python -m taskvec_mini merge MODEL {given} --out NEW"
            )
        if not found:
            found = sorted(each for each in given.iterdir() if each.suffix == ".safetensors")
            found = found or sorted(each for each in given.iterdir() if each.suffix in _PICKLED)
        if len(found) != 1:
            what = f"several files of weights ({', '.join(each.name for each in found[:4])} ...) and no index"
            raise MissingFileError(
                f"{given} holds {what if found else 'no weights'}; give a folder that save_pretrained wrote, "
                "or the file itself"
            )
        folder = given
        file = found[0]
    elif given.name.endswith(".index.json"):
        return _sharded(given, path=given)
    pickled = _is_pickled(file)
    parts, wrapper = _contents(file, pickled=pickled)
    _refuse_adapter(given, parts)
    return ModelFiles(given, folder, (file,), None, pickled, wrapper, parts)


def _sharded(index: Path, *, path: Path) -> ModelFiles:
    again = "copy the model again, all files of it"
    content = _files.read_json(index, what="index of a sharded model", remedy=again)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} has no weight_map, so it is no index of a sharded model; {again}")
    folder = index.parent
    pickled = None
    parts: dict[str, Part] = {}
    shards = sorted({str(shard) for shard in places.values()})
    for shard in shards:
        if Path(shard).name != shard:
            raise UserError(f"{index} names the shard {shard!r}, which is outside of its folder; {again}")
        file = folder / shard
        if not file.is_file():
            count = sum(each == shard for each in places.values())
            raise MissingFileError(
                f"a shard is missing: {index.name} says that {count} tensors are in {shard}, but {folder} "
                f"has no such file; {again}"
            )
        pickled = _is_pickled(file)
        inside, wrapper = _contents(file, pickled=pickled)
        listed = {name for name, each in places.items() if each == shard}
        if wrapper is not None or listed != set(inside):
            odd = sorted(listed.symmetric_difference(inside) or {wrapper})[0]
            raise UserError(f"{index.name} and {file} disagree about the tensor {odd!r}; {again}")
        parts |= inside
    _refuse_adapter(index, parts)
    parts = {name: parts[name] for name in sorted(parts)}
    return ModelFiles(
        path, folder, tuple(folder / shard for shard in shards), index, bool(pickled), None, parts
    )


def _is_pickled(file: Path) -> bool:
    """Whether torch saved it: its files are zip archives or, before torch 1.6, pickles."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(2)
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no model {file}; give a file, or a folder of a model") from error
    except OSError as error:
        raise FileError(f"{file} could not be read ({error}); give a file that you may read") from error
    return start in _files._PICKLES and file.suffix != ".safetensors"


def _contents(file: Path, *, pickled: bool) -> tuple[dict[str, Part], str | None]:
    """The tensors in a file, names sorted, and the key that they are under."""
    if pickled:
        state, wrapper = _mapped(file)
        parts = {}
        for name, tensor in sorted(state.items()):
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
                what = "quantised" if tensor.is_quantized else "without entries (on the meta device)"
                raise InputTypeError(
                    f"{name!r} in {file} is {what if tensor.layout == torch.strided else 'sparse'}, which "
                    "cannot be merged; save the state dict of the plain model, with tensor.to_dense() or "
                    "tensor.dequantize()"
                )
            kind = _KINDS.get(tensor.dtype, str(tensor.dtype))
            parts[name] = Part(file, kind, tuple(tensor.shape), None)
        return parts, wrapper
    remedy = "copy it again, or write the state dict anew with safetensors.torch.save_file"
    with _files.opened_safetensors(file, what="safetensors file", remedy=remedy):
        pass  # that the header is sound
    with open(file, "rb") as opened:  # 8 bytes with the length of the header, the header, the tensors
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {
        name: Part(
            file, header[name]["dtype"], tuple(header[name]["shape"]), 8 + length + about["data_offsets"][0]
        )
        for name, about in sorted(header.items())
    }, None


def _mapped(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """The state dict in a file of torch, mapped and not read, and the key that it is under."""
    try:
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{file} holds more than tensors and is not loaded, because a pickle can run any code "
            f"({reason}); save model.state_dict(), and give that"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{file} is no state dict that torch can map, or it is truncated or corrupted ({reason}); copy "
            "it again, or load and save it anew with a torch of today"
        ) from error
    wrapper = None
    if isinstance(loaded, Mapping) and not all(isinstance(each, Tensor) for each in loaded.values()):
        for key in _WRAPPERS:
            if isinstance(loaded.get(key), Mapping):
                wrapper = key
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping):
        raise InputTypeError(
            f"{file} holds no state dict but {type(loaded).__name__}; save model.state_dict()"
        )
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputTypeError(
                f"{file} holds {name!r}, which is no tensor but {type(value).__name__}; leave it out, or put "
                "the tensors under the key 'state_dict'"
            )
    return {name: value.detach() for name, value in loaded.items()}, wrapper


def _refuse_adapter(path: Path, names: Iterable[str]) -> None:
    for name in names:
        if ".lora_A." in name or ".lora_B." in name or "lora_embedding_" in name or "lora_magnitude" in name:
            raise InputTypeError(
                f"{path} holds factors of an adapter ({name!r}), whose sums and differences mean nothing; "
                "give its folder, with its adapter_config.json, after the model that it was trained on"
            )


# --- reading ---------------------------------------------------------------------------------------------


class Reader:
    """Entries of one model, read piece by piece. One reader belongs to one thread.

    Safetensors files are read and not mapped: what is mapped counts as memory of the process. Files of torch
    can only be mapped, so they are opened anew every so many bytes.
    """

    def __init__(self, model: ModelFiles):
        self.model = model
        self._handles: dict[Path, FileIO] = {}
        self._states: dict[Path, dict[str, Tensor]] = {}
        self._mapped = 0
        self._raw: dict[str, Array] = {}

    def read(self, name: str, first: int, *, out: Array) -> None:
        """Fill `out` (n,), of float32 or float64, with the entries from number `first` of a tensor.

        Raises:
            UserError: if the file has become shorter.
        """
        part = self.model.parts[name]
        if part.offset is None:
            torch.from_numpy(out).copy_(self._flat(name, entries=len(out))[first : first + len(out)])
            return
        handle = self._handle(part.file)
        for begin in range(0, len(out), _CHUNK):
            piece = out[begin : begin + _CHUNK]
            raw = piece
            if out.dtype != _NUMPY[part.kind]:
                if part.kind not in self._raw:
                    self._raw[part.kind] = np.empty(_CHUNK, _NUMPY[part.kind])
                raw = self._raw[part.kind][: len(piece)]
            handle.seek(part.offset + (first + begin) * raw.itemsize)
            if handle.readinto(raw.data.cast("B")) != raw.nbytes:
                raise UserError(
                    f"{part.file} became shorter while it was read; copy it again, and let nothing write to "
                    "it meanwhile"
                )
            if part.kind == "BF16":  # whose bits are the upper half of a float32
                wide = raw.astype(np.uint32)
                wide <<= 16
                piece[:] = wide.view(np.float32)
            elif raw is not piece:
                piece[:] = raw

    def tensor(self, name: str) -> Tensor:
        """A copy of a whole tensor in the dtype of the file.

        Raises:
            InputTypeError: if torch has no such dtype.
        """
        part = self.model.parts[name]
        if part.offset is None:
            return self._flat(name, entries=part.size).clone().reshape(part.shape)
        if part.kind not in DTYPES:
            raise InputTypeError(
                f"{name!r} in {part.file} is {part.kind}, which torch cannot hold; leave such entries away, "
                "or save the model in another precision"
            )
        tensor = torch.empty(part.shape, dtype=DTYPES[part.kind])
        if part.size:
            handle = self._handle(part.file)
            handle.seek(part.offset)
            handle.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return tensor

    def close(self) -> None:
        """Let go of all files."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        self._states.clear()

    def _handle(self, file: Path) -> FileIO:
        if file not in self._handles:
            if len(self._handles) == _HANDLES:
                self.close()
            self._handles[file] = open(file, "rb", buffering=0)  # noqa: SIM115 (closed by `close`)
        return self._handles[file]

    def _flat(self, name: str, *, entries: int) -> Tensor:
        """A tensor of a file of torch as one row, mapped."""
        file = self.model.parts[name].file
        if self._mapped > _MAPPED:
            self._states.clear()
            self._mapped = 0
        if file not in self._states:
            self._states[file] = _mapped(file)[0]
        tensor = self._states[file][name]
        self._mapped += entries * tensor.element_size()
        return tensor.reshape(-1)


class AdapterReader:
    """What a LoRA adapter adds to a model, read like a task vector. One reader belongs to one thread.

    Only the rows that are asked for are multiplied out, in float64, except where a row depends on all others.

    Args:
        adapter: the adapter.
        base: the model that it was made for.
        names: from the names in the model to those that the adapter knows.
    """

    def __init__(self, adapter: Adapter, *, base: ModelFiles, names: Mapping[str, str]):
        self._adapter = adapter
        self._base = Reader(base)
        self._names = names
        self._rest: tuple[tuple[str, int, int], Array] | None = None  # rows of which a part was asked for

    def read(self, name: str, first: int, *, out: Array) -> None:
        """Fill `out` (n,) with the entries from number `first` of what is added to a tensor."""
        if name not in self._names:
            out[:] = 0
            return
        shape = self._base.model.parts[name].shape
        width = math.prod(shape[1:])
        begin, end = first // width, -(-(first + len(out)) // width)
        if self._adapter.needs_all_rows(self._names[name], shape):
            begin, end = 0, shape[0]
        which = (name, begin, end)
        if self._rest is not None and self._rest[0] == which:
            rows = self._rest[1]
        else:
            self._rest = None
            rows = self._multiplied(name, begin, end).astype(out.dtype)
            if len(rows) > len(out):
                self._rest = (which, rows)
        place = first - begin * width
        out[:] = rows[place : place + len(out)]

    def _multiplied(self, name: str, begin: int, end: int) -> Array:
        """The entries of some rows, in float64."""
        shape = self._base.model.parts[name].shape
        known = self._names[name]
        rows = (end - begin, *shape[1:])
        start = torch.empty(rows, dtype=torch.float64, device="meta")
        if known in self._adapter.saved or "lora_magnitude_vector" in self._adapter.factors[known]:
            start = torch.empty(rows, dtype=torch.float64)
            self._base.read(name, begin * math.prod(shape[1:]), out=start.view(-1).numpy())
        added = self._adapter.rows_of_difference(known, start, shape=shape, first=begin)
        return added.reshape(-1).numpy()

    def close(self) -> None:
        """Let go of all files."""
        self._base.close()
        self._rest = None


# --- writing ---------------------------------------------------------------------------------------------


class ModelWriter:
    """Another model in files named and divided like those of a first one.

    Every tensor is written in pieces, from any thread and in any order. `finish` ends it.

    Args:
        folder: where the files go; it exists.
        like: the model whose layout they get.
        kinds: the dtype of each tensor, by name, as safetensors calls it.
    """

    def __init__(self, folder: Path, *, like: ModelFiles, kinds: Mapping[str, str]):
        self.folder = folder
        self.like = like
        self.kinds = kinds
        self._lock = threading.Lock()
        self._places: dict[str, tuple[Path, int]] = {}
        self._handles: dict[Path, FileIO] = {}
        # torch writes a file in one go: its tensors are first laid out in a file that can be mapped
        self._raw = tempfile.TemporaryDirectory(dir=folder) if like.pickled else None
        for file in like.files:
            names = [name for name, part in like.parts.items() if part.file == file]
            self._lay_out(file, names)

    def _lay_out(self, file: Path, names: list[str]) -> None:
        """Write the header of a safetensors file, wide dtypes first, as the format asks for."""
        metadata = {"format": "pt"}
        if not self.like.pickled:
            with _files.opened_safetensors(file, what="safetensors file", remedy="copy it again") as opened:
                metadata |= opened.metadata() or {}
        header: dict[str, Any] = {"__metadata__": metadata}
        place = 0
        widths = {name: DTYPES[self.kinds[name]].itemsize for name in names}
        for name in sorted(names, key=lambda name: (-widths[name], name)):
            shape = self.like.parts[name].shape
            end = place + math.prod(shape) * widths[name]
            header[name] = {"dtype": self.kinds[name], "shape": list(shape), "data_offsets": [place, end]}
            place = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        out = self._out(file)
        handle = open(out, "w+b", buffering=0)  # noqa: SIM115 (closed by `finish`)
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + place)
        self._handles[out] = handle
        for name in names:
            self._places[name] = (out, 8 + len(text) + header[name]["data_offsets"][0])

    def _out(self, file: Path) -> Path:
        """Where a file is laid out."""
        return (self.folder if self._raw is None else Path(self._raw.name)) / file.name

    def write(self, name: str, first: int, *, entries: Tensor) -> None:
        """Write entries (n,), in the dtype of the tensor, from its entry number `first` on."""
        file, offset = self._places[name]
        content = entries.contiguous().view(torch.uint8).numpy().data
        with self._lock:
            handle = self._handles[file]
            handle.seek(offset + first * entries.element_size())
            while content:  # a disk may take a part at a time
                content = content[handle.write(content) :]

    def finish(self, *, aliases: Mapping[str, str]) -> None:
        """Close the files, write the index, and those of torch; there aliases are one tensor, as at first."""
        for handle in self._handles.values():
            handle.close()
        if self._raw is not None:
            for file in self.like.files:
                state = self._state(file, aliases=aliases)
                content = state if self.like.wrapper is None else {self.like.wrapper: state}
                torch.save(content, self.folder / file.name)
            self._raw.cleanup()
        if self.like.index is not None:
            index = json.loads(self.like.index.read_bytes())
            sizes = (part.size * DTYPES[self.kinds[n]].itemsize for n, part in self.like.parts.items())
            index["metadata"] = {**index.get("metadata", {}), "total_size": sum(sizes)}
            _files.write_json(self.folder / self.like.index.name, index)

    def _state(self, file: Path, *, aliases: Mapping[str, str]) -> dict[str, Tensor]:
        names = [name for name, part in self.like.parts.items() if part.file == file]
        remedy = "there is a fault of the disk; merge again"
        with _files.opened_safetensors(self._out(file), what="safetensors file", remedy=remedy) as opened:
            state = {name: opened.get_tensor(name) for name in names}
        return {name: state.get(aliases.get(name, name), state[name]) for name in names}

    def close(self) -> None:
        """Let go of everything; after `finish` there is nothing to do."""
        for handle in self._handles.values():
            handle.close()
        if self._raw is not None:
            with contextlib.suppress(OSError):
                self._raw.cleanup()
