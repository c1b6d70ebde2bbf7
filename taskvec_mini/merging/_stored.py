"""State dicts of one layout in safetensors files: headers compared, tensors read in turn."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError

Path = str | os.PathLike[str]

_READ = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float32, "BF16": torch.float32}
_COUNTS = ("I", "U", "BOOL")  # how the dtypes begin that have no meaningful difference
_GROUP = 1 << 22  # entries of each file that stay mapped before the files are opened anew


@dataclass(frozen=True)
class Stored:
    """Files of one layout, the pretrained one first; all is known but the entries."""

    files: list[Path]
    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]  # dtypes as the files call them, of the same names
    dtype: torch.dtype  # what all are read as
    carried: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Entries by name."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    def walk(self, files: Sequence[Path]) -> Iterator[tuple[str, list[Tensor]]]:
        """Name by name, one flat tensor (n,) of each file: mapped, so nobody may write into them.

        Pages once read count as memory of this process until their file is closed, hence the groups.
        """
        for group in self._groups():
            with contextlib.ExitStack() as stack:
                opened = [stack.enter_context(_opened(file)) for file in files]
                for name in group:
                    yield name, [each.get_tensor(name).reshape(-1).to(self.dtype) for each in opened]

    def carried_tensors(self) -> dict[str, Tensor]:
        with _opened(self.files[0]) as start:
            return {name: start.get_tensor(name).clone() for name in self.carried}

    def _groups(self) -> Iterator[list[str]]:
        group, total = [], 0
        for name, size in self.sizes.items():
            group.append(name)
            total += size
            if total >= _GROUP:
                yield group
                group, total = [], 0
        if group:
            yield group


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise UserError(
            f"{file} is no safetensors file, or not a whole one ({error}); copy it again, or write the state "
            "dict anew with safetensors.torch.save_file"
        ) from error


def stored_layout(pretrained: Path, finetuned: Sequence[Path], integer_buffers: str) -> Stored:
    """What the headers of all files say; an error where they do not agree."""
    if isinstance(finetuned, str | os.PathLike):
        raise InputTypeError(
            f"finetuned must be a list of files, got the one file {finetuned!r}; put it into [ ]"
        )
    carry = _checks.named_choice("integer_buffers", integer_buffers, {"refuse": False, "carry": True})
    files = [pretrained, *_checks.not_empty("the list of finetuned files", finetuned)]
    _check_distinct(files)
    contents = _contents(pretrained)
    for file in files[1:]:
        _check_alike(contents, _contents(file), pretrained, file)
    dtypes = {name: _read_as(name, kind, carry) for name, (_, kind) in contents.items()}
    shapes = {name: contents[name][0] for name, dtype in dtypes.items() if dtype is not None}
    kinds = {name: contents[name][1] for name in shapes}
    wide = torch.float64 if torch.float64 in dtypes.values() else torch.float32
    _checks.warn_of_statistics(shapes)
    stored = Stored(files, shapes, kinds, wide, tuple(name for name in contents if name not in shapes))
    if not any(stored.sizes.values()):
        raise UserError(f"{pretrained} holds no floating-point entries; give a state dict with parameters")
    return stored


def data_offsets(file: Path) -> dict[str, int]:
    """Where the bytes of each tensor begin, from the start of a file that `stored_layout` has looked at.

    The format: the length of the header in 8 bytes, the header in JSON, the tensors.
    """
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {
        name: 8 + length + about["data_offsets"][0]
        for name, about in header.items()
        if name != "__metadata__"
    }


def _contents(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype by name, names sorted."""
    with _opened(file) as opened:
        parts = {name: opened.get_slice(name) for name in sorted(opened.keys())}
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}


def _check_distinct(files: list[Path]) -> None:
    for place, file in enumerate(files):
        if any(os.path.samefile(file, other) for other in files[:place]):
            raise UserError(
                f"{file} is given twice; a task counts once (weigh it in memory if you want it to count more)"
            )


def _check_alike(first: dict[str, Any], second: dict[str, Any], name: Path, other: Path) -> None:
    _checks.check_keys(first, second, str(name), str(other))
    for key, (shape, dtype) in first.items():
        _checks.check_shapes(f"{key} in {other}", shape, second[key][0])
        if second[key][1] != dtype:
            raise InputTypeError(
                f"dtypes differ at {key!r}: {dtype} in {name} against {second[key][1]} in {other}; their "
                "difference would hold the rounding of one side: use files of one precision"
            )


def _read_as(name: str, dtype: str, carry: bool) -> torch.dtype | None:
    """The dtype that a tensor is read as; None for one that is carried over."""
    if dtype not in _READ and not dtype.startswith(_COUNTS):
        raise InputTypeError(
            f"{name!r} is {dtype}, which cannot be merged; save it as one of {', '.join(_READ)}"
        )
    if dtype not in _READ and not carry:
        raise InputTypeError(
            f"{name!r} is {dtype}, which has no meaningful difference; pass "
            'integer_buffers="carry" to keep such buffers as they are in the pretrained file'
        )
    return _READ.get(dtype)
