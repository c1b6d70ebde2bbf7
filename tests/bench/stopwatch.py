"""One way of timing for all benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable

RUNS = 5


def seconds(call: Callable[[], object]) -> float:
    """The shortest of a few runs: the one least disturbed by other programs."""
    call()
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)
