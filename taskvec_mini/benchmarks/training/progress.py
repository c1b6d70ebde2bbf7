"""How far a run is: a bar on a terminal, a line an epoch in a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar of tqdm that can also leave a line behind, and that is silent where it should be.

    Attributes:
        leaves_lines: whether `say` writes anything.
    """

    leaves_lines = False

    def say(self, text: str) -> None:
        """Leave a line on stderr, above the bar."""
        if self.leaves_lines:
            self.write(text, file=sys.stderr)


def progress_bar(title: str, *, total: int, unit: str = "images", show: bool = True) -> Bar:
    """A bar on stderr, to be used in a `with` block.

    On a terminal it is drawn over itself and gone at the end; the lines of `say` stay. In a log file there
    are these lines alone. In a notebook there is the bar alone and nothing stays, so that the outputs of a
    cell are the same at every run; where the environment variable TASKVEC_MINI_EXPLORE is "static", as it is
    while the book is built, there is nothing at all.

    Args:
        title: what runs.
        total: how many images there are.
        unit: what is counted.
        show: False for silence.

    Example:
        >>> with progress_bar("cars", total=200, show=False) as bar:
        ...     _ = bar.update(100)
        ...     bar.say("epoch 1/2  loss 1.25")
    """
    notebook = type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
    drawn = os.environ.get("TASKVEC_MINI_EXPLORE") != "static" if notebook else sys.stderr.isatty()
    bar = Bar(
        desc=title,
        total=total,
        unit=f" {unit}",
        disable=not (show and drawn),
        leave=False,
        file=sys.stderr,
        dynamic_ncols=not notebook,
        mininterval=0.2,
    )
    bar.leaves_lines = show and not notebook
    return bar


def epoch_line(record: Mapping[str, Any], *, epochs: int, unit: str = "images") -> str:
    """What is said of a finished epoch.

    Example:
        >>> record = {"epoch": 2, "loss": 0.5, "accuracy": 0.75, "images_per_second": 1234.5, "seconds": 60.0}
        >>> epoch_line(record, epochs=4)
        'epoch 2/4  loss 0.5000  accuracy 0.750  1,234 images/s  02:00 left'
    """
    left = tqdm.format_interval(record["seconds"] * (epochs - record["epoch"]))
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}  "
        f"{record['images_per_second']:,.0f} {unit}/s  {left} left"
    )
