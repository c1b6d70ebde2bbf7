"""What is done to models on disk piece by piece: sums, comparisons, and the ranks that a trim needs.

Such work has next to no arithmetic; what takes time is moving bytes. So every piece is read into buffers that
stay in a core's cache, by as many threads as torch has, and all that happens to it happens there. numpy does
the work, because it starts no threads of its own and lets those of Python run side by side.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from taskvec_mini.merging._stored import Readers, Stored
from taskvec_mini.merging.model_files import Array

Result = TypeVar("Result")
Finish = Callable[[Array, Array], None]  # from a sum (n,), which becomes the result, and θ_0 (n,)

PIECE = 1 << 17  # entries in a piece: three buffers of them fit into the cache of one core
_DIGIT = 16  # bits of a magnitude that one reading decides
_BINS = 1 << _DIGIT


class Piece(NamedTuple):
    """Some entries of one tensor."""

    name: str
    first: int
    size: int


Sink = Callable[[Piece, Array, Array], None]  # where, what was merged there (n,), θ_0 there (n,)


def pieces_of(stored: Stored, names: Iterable[str], *, size: int) -> Iterator[Piece]:
    """The pieces of some tensors, in their order."""
    sizes = stored.sizes
    for name in names:
        for first in range(0, sizes[name], size):
            yield Piece(name, first, min(size, sizes[name] - first))


def in_order(
    stored: Stored, pieces: Iterable[Piece], work: Callable[[Readers, Piece], Result]
) -> Iterator[tuple[Piece, Result]]:
    """What `work` makes of each piece, in their order; it runs in `torch.get_num_threads()` threads.

    Each thread has readers of its own, and only a few pieces are under way.
    """
    threads = torch.get_num_threads()
    own = threading.local()
    opened: list[Readers] = []

    def run(piece: Piece) -> Result:
        if not hasattr(own, "readers"):
            own.readers = Readers(stored)
            opened.append(own.readers)
        with np.errstate(all="ignore"):
            return work(own.readers, piece)

    waiting: deque[tuple[Piece, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for piece in pieces:
                waiting.append((piece, pool.submit(run, piece)))
                if len(waiting) > 2 * threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
            pool.shutdown()
            for readers in opened:
                readers.close()


def sum_vectors(
    stored: Stored, finish: Finish, sink: Sink, *, weights: Sequence[float] | None = None
) -> Iterator[tuple[Piece, bool]]:
    """Give to `sink` what `finish` makes of Σ_t w_t (θ_t - θ_0), piece by piece; say whether it is finite."""
    dtype = np.float64 if stored.dtype == torch.float64 else np.float32

    def sum_piece(readers: Readers, piece: Piece) -> bool:
        if not readers.buffers:
            readers.buffers = {each: np.empty(PIECE, dtype) for each in ("start", "vector", "total")}
        start, vector, total = (buffer[: piece.size] for buffer in readers.buffers.values())
        readers.start(piece.name, piece.first, out=start)
        for task in range(stored.tasks):
            out = vector if task else total
            readers.vector(task, piece.name, first=piece.first, start=start, out=out)
            if weights is not None:
                out *= weights[task]
            if task:
                total += vector
        finish(total, start)
        finite = bool(np.isfinite(total).all())
        if finite:
            sink(piece, total, start)
        return finite

    yield from in_order(stored, pieces_of(stored, stored.shapes, size=PIECE), sum_piece)


def vectors_of(
    stored: Stored, names: Iterable[str], *, size: int
) -> Iterator[tuple[Piece, tuple[Array, Array]]]:
    """Piece by piece, θ_0 (n,) and all task vectors (T, n)."""
    dtype = np.float64 if stored.dtype == torch.float64 else np.float32

    def read(readers: Readers, piece: Piece) -> tuple[Array, Array]:
        start = np.empty(piece.size, dtype)
        vectors = np.empty((stored.tasks, piece.size), dtype)
        readers.start(piece.name, piece.first, out=start)
        for task, out in enumerate(vectors):
            readers.vector(task, piece.name, first=piece.first, start=start, out=out)
        return start, vectors

    yield from in_order(stored, pieces_of(stored, names, size=size), read)


# --- the largest entries of a vector that is never whole -------------------------------------------------


@dataclass
class Cut:
    """The largest magnitudes of one task: all above a threshold, and of those equal to it the first few.

    Attributes:
        threshold: the smallest magnitude that is in.
        spare: how many of the equal ones are still in.
    """

    threshold: float
    spare: int

    def mask(self, magnitudes: Tensor) -> Tensor:
        """Which of the next magnitudes (n,) are in; pieces have to come in their order."""
        inside = magnitudes > self.threshold
        if self.spare:
            equal = (magnitudes == self.threshold).nonzero().squeeze(1)[: self.spare]
            inside[equal] = True
            self.spare -= len(equal)
        return inside


def passes(stored: Stored) -> int:
    """How often `largest` reads everything."""
    return 8 * stored.itemsize // _DIGIT


def largest(
    stored: Stored,
    names: Sequence[str],
    *,
    counts: Sequence[int],
    size: int,
    seen: Callable[[int], object] = lambda entries: None,
) -> list[list[Cut]]:
    """For each task and each count, the cut after so many largest magnitudes of some tensors together.

    It is exact, and holds no vector: magnitudes in order are their bits in order, taken for whole numbers. So
    one reading counts, for each task, how many entries begin with which 16 bits, which says with what 16 bits
    the threshold begins; another one does so with the next 16 bits, among the entries that begin like that.
    """
    whole: Any = np.uint64 if stored.dtype == torch.float64 else np.uint32
    bits = 8 * whole().itemsize
    known = [[0] * len(counts) for _ in range(stored.tasks)]  # the first bits of each threshold
    left = [list(counts) for _ in range(stored.tasks)]  # how many entries with these bits are still in
    for shift in range(bits - _DIGIT, -1, -_DIGIT):

        def count(readers: Readers, piece: Piece, shift: int = shift) -> list[dict[int, Array]]:
            """For each task and each beginning, how many entries go on with which 16 bits."""
            if not readers.buffers:
                dtype = np.float64 if whole is np.uint64 else np.float32
                readers.buffers = {each: np.empty(size, dtype) for each in ("start", "vector")}
            start, vector = (buffer[: piece.size] for buffer in readers.buffers.values())
            readers.start(piece.name, piece.first, out=start)
            found: list[dict[int, Array]] = []
            for task in range(stored.tasks):
                readers.vector(task, piece.name, first=piece.first, start=start, out=vector)
                magnitudes: Array = np.abs(vector, out=vector).view(whole)
                found.append({})
                for beginning in set(known[task]):
                    chosen = magnitudes
                    if shift < bits - _DIGIT:
                        chosen = magnitudes[(magnitudes >> whole(shift + _DIGIT)) == whole(beginning)]
                    digits = ((chosen >> whole(shift)) & whole(_BINS - 1)).astype(np.intp)
                    found[task][beginning] = np.bincount(digits, minlength=_BINS)
            return found

        totals: list[dict[int, Array]] = [
            {beginning: np.zeros(_BINS, np.int64) for beginning in known[task]}
            for task in range(stored.tasks)
        ]
        for piece, found in in_order(stored, pieces_of(stored, names, size=size), count):
            seen(piece.size)
            for total, part in zip(totals, found, strict=True):
                for beginning, counted in part.items():
                    total[beginning] += counted
        for task in range(stored.tasks):
            for place in range(len(counts)):
                from_above = totals[task][known[task][place]][::-1].cumsum()
                steps = int(np.searchsorted(from_above, left[task][place]))
                left[task][place] -= int(from_above[steps - 1]) if steps else 0
                known[task][place] = known[task][place] << _DIGIT | (_BINS - 1 - steps)
    floats = np.float64 if whole is np.uint64 else np.float32
    return [
        [
            Cut(float(np.array(threshold, whole).view(floats)), spare)
            for threshold, spare in zip(*pair, strict=True)
        ]
        for pair in zip(known, left, strict=True)
    ]
