"""One line on the terminal that says how far a run is, how fast it goes and how long it still takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TextIO

_EVERY = 0.2  # seconds between two looks of the line


class ProgressLine:
    """A line on stderr: images (or texts) done, how many a second, remaining time.

    On a terminal the line is written over itself; elsewhere (a log file) one line an epoch is enough.

    Args:
        title: what runs.
        total: how many images there are in all.
        show: False for silence.
        stream: where to write; stderr by default.
        unit: what is counted.

    Example:
        >>> import io
        >>> stream = io.StringIO()
        >>> line = ProgressLine("cars", 200, stream=stream)
        >>> line.add(100, "epoch 1/2")
        >>> line.end_epoch("loss 1.25")
        >>> stream.getvalue().startswith("cars  epoch 1/2  100/200 images"), stream.getvalue().count("\\n")
        (True, 1)
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        show: bool = True,
        stream: TextIO | None = None,
        unit: str = "images",
    ):
        self.title, self.total, self.show, self.unit = title, total, show, unit
        self.stream = sys.stderr if stream is None else stream
        self.done, self.place, self.begin, self.last, self.width = 0, "", time.monotonic(), 0.0, 0

    def note(self, words: str) -> None:
        """Leave a line about the whole run."""
        if self.show:
            self._write(f"{self.title}  {words}", "\n")

    def add(self, count: int, place: str) -> None:
        """Count so many more; `place` says where the run is."""
        self.done, self.place = self.done + count, place
        now = time.monotonic()
        if self.show and self.stream.isatty() and now - self.last > _EVERY:
            self.last = now
            self._write(self._text(), "\r")

    def end_epoch(self, words: str) -> None:
        """Leave a line that stays."""
        if self.show:
            self._write(f"{self._text()}  {words}", "\n")

    def _text(self) -> str:
        speed = self.done / max(time.monotonic() - self.begin, 1e-9)
        left = (self.total - self.done) / max(speed, 1e-9)
        return (
            f"{self.title}  {self.place}  {self.done:,}/{self.total:,} {self.unit}  "
            f"{speed:,.0f} {self.unit}/s  {clock(left)} left"
        )

    def _write(self, text: str, end: str) -> None:
        self.stream.write(text.ljust(self.width) + end)
        self.stream.flush()
        self.width = len(text) if end == "\r" else 0


def unit_of(tasks: Iterable[object]) -> str:
    """What the examples of some tasks are called: "images", unless the tasks' `unit` says another word.

    Example:
        >>> unit_of([])
        'examples'
    """
    units = {getattr(task, "unit", "images") for task in tasks}
    return units.pop() if len(units) == 1 else "examples"


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Example:
        >>> clock(59.6), clock(3725)
        ('1:00', '1:02:05')
    """
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
