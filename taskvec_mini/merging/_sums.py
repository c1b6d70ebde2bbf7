"""Sums of task vectors straight from safetensors files: piece by piece, side by side on all cores.

Such a sum has next to no arithmetic; what takes time is moving bytes. So every piece is read into buffers
that stay in a core's cache, and all that happens to it happens there. numpy does the work, because it starts
no threads of its own and lets those of Python run side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec_mini.errors import UserError
from taskvec_mini.merging._stored import Stored, data_offsets

Array = NDArray[Any]  # of float32 or float64
Finish = Callable[[Array, Array, Array], None]  # from the sum (n,), which is spent, and θ_0 into the result
_PIECE = 1 << 17  # entries in a piece: three buffers of them fit into the cache of one core
_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class _Piece(NamedTuple):
    name: str
    first: int  # entry of the tensor
    size: int
    place: int  # of the first entry in the result


def sum_vectors(stored: Stored, finish: Finish) -> tuple[Tensor, list[str]]:
    """What `finish` makes of Σ_t (θ_t - θ_0), (D,) in the order of names; and the names with NaN or infinity.

    It runs in `torch.get_num_threads()` threads.
    """
    wide = np.float64 if stored.dtype == torch.float64 else np.float32
    # of torch and not of numpy, which asks for huge pages: a fresh process waits long for them
    flat = torch.empty(sum(stored.sizes.values()), dtype=stored.dtype)
    pieces = list(_cut(stored.sizes))
    offsets = [data_offsets(file) for file in stored.files]

    def work(own: list[_Piece]) -> set[str]:
        with _Reader(stored, offsets, wide) as reader, np.errstate(all="ignore"):
            return _sum_pieces(reader, own, finish, flat.numpy())

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        bad = set().union(*pool.map(work, (pieces[rank::threads] for rank in range(threads))))
    return flat, [name for name in stored.sizes if name in bad]


def _cut(sizes: dict[str, int]) -> Iterator[_Piece]:
    begin = 0
    for name, size in sizes.items():
        for first in range(0, size, _PIECE):
            yield _Piece(name, first, min(_PIECE, size - first), begin + first)
        begin += size


def _sum_pieces(reader: _Reader, pieces: list[_Piece], finish: Finish, result: Array) -> set[str]:
    bad = set()
    for piece in pieces:
        start, end, total = (buffer[: piece.size] for buffer in reader.buffers)
        reader.read(0, piece, start)
        for number in range(1, len(reader.handles)):
            reader.read(number, piece, end)
            if number == 1:
                np.subtract(end, start, out=total)
            else:
                end -= start
                total += end
        merged = result[piece.place : piece.place + piece.size]
        finish(total, start, merged)
        if not np.isfinite(merged).all():
            bad.add(piece.name)
    return bad


class _Reader:
    """The open files of one thread, and its buffers."""

    def __init__(self, stored: Stored, offsets: list[dict[str, int]], wide: type):
        self.stored, self.offsets = stored, offsets
        self.buffers: list[Array] = [np.empty(_PIECE, wide) for _ in range(3)]
        self.raw = {kind: np.empty(_PIECE, _NUMPY[kind]) for kind in set(stored.kinds.values())}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> _Reader:
        opened = (open(file, "rb", buffering=0) for file in self.stored.files)  # noqa: SIM115
        self.handles = [self.stack.enter_context(file) for file in opened]
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def read(self, number: int, piece: _Piece, out: Array) -> None:
        """One piece of one file."""
        kind = self.stored.kinds[piece.name]
        raw = out if out.dtype == _NUMPY[kind] else self.raw[kind][: piece.size]
        handle = self.handles[number]
        handle.seek(self.offsets[number][piece.name] + piece.first * raw.itemsize)
        if handle.readinto(raw.data.cast("B")) != raw.nbytes:
            raise UserError(
                f"{self.stored.files[number]} became shorter while it was read; copy it again, and let "
                "nothing write to it meanwhile"
            )
        if raw is not out:
            out[:] = _bfloat16(raw) if kind == "BF16" else raw


def _bfloat16(raw: NDArray[Any]) -> NDArray[np.float32]:
    """Its bits are the upper half of a float32."""
    return (raw.astype(np.uint32) << 16).view(np.float32)
