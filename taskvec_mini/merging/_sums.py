"""Sums of task vectors straight from safetensors files: piece by piece, side by side on all cores.

Such a sum has next to no arithmetic; what takes time is moving bytes. So every piece is read into buffers
that stay in a core's cache, and all that happens to it happens there. numpy does the work, because it starts
no threads of its own and lets those of Python run side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
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


def sum_vectors(stored: Stored, finish: Finish) -> tuple[Tensor, set[str]]:
    """What `finish` makes of Σ_t (θ_t - θ_0), (D,) in the order of names; and the names with NaN or infinity.

    It runs in `torch.get_num_threads()` threads.
    """
    pieces = []
    length = 0
    for name, size in stored.sizes.items():
        for first in range(0, size, _PIECE):
            end = min(first + _PIECE, size)
            pieces.append(_Piece(name, first=first, size=end - first, place=length + first))
        length += size
    # of torch and not of numpy, which asks for huge pages: a fresh process waits long for them
    flat = torch.empty(length, dtype=stored.dtype)
    result = flat.numpy()
    offsets = [data_offsets(file) for file in stored.files]

    def sum_pieces(own: list[_Piece]) -> set[str]:
        """The work of one thread, which has files and buffers of its own."""
        buffers = [np.empty(_PIECE, result.dtype) for _ in range(3)]
        raws = {kind: np.empty(_PIECE, _NUMPY[kind]) for kind in set(stored.kinds.values())}
        bad = set()
        with contextlib.ExitStack() as stack, np.errstate(all="ignore"):
            handles = [stack.enter_context(open(file, "rb", buffering=0)) for file in stored.files]
            for piece in own:
                start, end, total = (buffer[: piece.size] for buffer in buffers)
                kind = stored.kinds[piece.name]
                for number, handle in enumerate(handles):
                    out = end if number else start
                    raw = out if out.dtype == _NUMPY[kind] else raws[kind][: piece.size]
                    handle.seek(offsets[number][piece.name] + piece.first * raw.itemsize)
                    if handle.readinto(raw.data.cast("B")) != raw.nbytes:
                        raise UserError(
                            f"{stored.files[number]} became shorter while it was read; copy it again, and "
                            "let nothing write to it meanwhile"
                        )
                    if kind == "BF16":  # whose bits are the upper half of a float32
                        out[:] = (raw.astype(np.uint32) << 16).view(np.float32)
                    elif raw is not out:
                        out[:] = raw
                    if number == 1:
                        np.subtract(end, start, out=total)
                    elif number > 1:
                        end -= start
                        total += end
                merged = result[piece.place : piece.place + piece.size]
                finish(total, start, merged)
                if not np.isfinite(merged).all():
                    bad.add(piece.name)
        return bad

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        bad = set().union(*pool.map(sum_pieces, (pieces[rank::threads] for rank in range(threads))))
    return flat, bad
