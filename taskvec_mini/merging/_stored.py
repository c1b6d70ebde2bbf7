"""State dicts of one layout in safetensors files: headers compared, tensors read in turn."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import _checks, _files
from taskvec_mini.errors import InputTypeError, UserError

Path = str | os.PathLike[str]

_READ = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float32, "BF16": torch.float32}
_COUNTS = ("I", "U", "BOOL")  # how the dtypes begin that have no meaningful difference
_GROUP = 1 << 22  # entries of each file that stay mapped before the files are opened anew


@dataclass(frozen=True)
class Stored:
    """Files of one layout, the pretrained one first; all is known but the entries.

    Attributes:
        files: the pretrained one, then the T finetuned ones.
        shapes: of the floating-point tensors by name, names sorted.
        kinds: their dtypes, as the files call them.
        dtype: what all of them are read as.
        carried: the names of the other tensors.
    """

    files: list[Path]
    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]
    dtype: torch.dtype
    carried: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Entries by name."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The parts (n,) of all entries (D,), in the order of names."""
        return torch.split(flat, list(self.sizes.values()))

    def walk(self, files: Sequence[Path]) -> Iterator[tuple[str, list[Tensor]]]:
        """Name by name, one flat tensor (n,) of each file: mapped, so nobody may write into them.

        Pages once read count as memory of this process until their file is closed. So the files are closed
        and opened anew every few tensors.
        """
        remaining = list(self.sizes.items())
        while remaining:
            with contextlib.ExitStack() as stack:
                opened = [stack.enter_context(_opened(file)) for file in files]
                mapped = 0
                while remaining and mapped < _GROUP:
                    name, size = remaining.pop(0)
                    mapped += size
                    yield name, [each.get_tensor(name).reshape(-1).to(self.dtype) for each in opened]

    def carried_tensors(self) -> dict[str, Tensor]:
        """The tensors of the pretrained file that are no floating-point ones."""
        with _opened(self.files[0]) as start:
            return {name: start.get_tensor(name).clone() for name in self.carried}


def stored_layout(pretrained: Path, finetuned: Sequence[Path], *, integer_buffers: str) -> Stored:
    """What the headers of all files say; an error where they do not agree."""
    if isinstance(finetuned, str | os.PathLike):
        raise InputTypeError(
            f"finetuned must be a list of files, got the one file {finetuned!r}; put it into [ ]"
        )
    carry = _checks.named_choice("integer_buffers", integer_buffers, {"refuse": False, "carry": True})
    files = [pretrained, *_checks.not_empty("the list of finetuned files", finetuned)]
    shapes, kinds = _contents(pretrained)
    for place, file in enumerate(files[1:], 1):
        other_shapes, other_kinds = _contents(file)
        if any(os.path.samefile(file, earlier) for earlier in files[:place]):
            raise UserError(
                f"{file} is given twice; a task counts once (weigh it in memory if you want it to count more)"
            )
        _checks.check_keys(shapes, other_shapes, name=str(pretrained), other=str(file))
        for name, shape in shapes.items():
            _checks.check_shapes(f"{name} in {file}", shape, other_shapes[name])
            if other_kinds[name] != kinds[name]:
                raise InputTypeError(
                    f"dtypes differ at {name!r}: {kinds[name]} in {pretrained} against {other_kinds[name]} "
                    f"in {file}; their difference would hold the rounding of one side: use files of one "
                    "precision"
                )
    carried = [name for name, kind in kinds.items() if kind not in _READ]
    for name in carried:
        if not kinds[name].startswith(_COUNTS):
            raise InputTypeError(
                f"{name!r} is {kinds[name]}, which cannot be merged; save it as one of {', '.join(_READ)}"
            )
        if not carry:
            raise InputTypeError(
                f"{name!r} is {kinds[name]}, which has no meaningful difference; pass "
                'integer_buffers="carry" to keep such buffers as they are in the pretrained file'
            )
        del shapes[name], kinds[name]
    _checks.warn_of_statistics(shapes)
    dtype = torch.float64 if "F64" in kinds.values() else torch.float32
    stored = Stored(files, shapes=shapes, kinds=kinds, dtype=dtype, carried=tuple(carried))
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


def _opened(file: Path) -> AbstractContextManager[Any]:
    remedy = "copy it again, or write the state dict anew with safetensors.torch.save_file"
    return _files.opened_safetensors(file, what="safetensors file", remedy=remedy)


def _contents(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and dtypes by name, names sorted."""
    with _opened(file) as opened:
        parts = {name: opened.get_slice(name) for name in sorted(opened.keys())}
        shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
        return shapes, {name: part.get_dtype() for name, part in parts.items()}
