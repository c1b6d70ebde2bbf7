"""How far something is: a bar on a terminal, lines in a log file, nothing that stays in a notebook."""

from __future__ import annotations

import os
import sys

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


def progress_bar(
    title: str, *, total: int, unit: str = "images", scale: bool = False, show: bool = True
) -> Bar:
    """A bar on stderr, to be used in a `with` block.

    On a terminal it is drawn over itself and gone at the end; the lines of `say` stay. In a log file there
    are these lines alone. In a notebook there is the bar alone and nothing stays, so that the outputs of a
    cell are the same at every run; where the environment variable TASKVEC_MINI_EXPLORE is "static", as it is
    while the book is built, there is nothing at all.

    Args:
        title: what runs.
        total: how many images there are.
        unit: what is counted.
        scale: write 1,200,000 as 1.20M.
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
        unit_scale=scale,
        disable=not (show and drawn),
        leave=False,
        file=sys.stderr,
        dynamic_ncols=not notebook,
        mininterval=0.2,
    )
    bar.leaves_lines = show and not notebook
    return bar
