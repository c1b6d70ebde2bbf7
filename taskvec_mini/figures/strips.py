"""Pictures as they are: strips of examples, so that a reader sees what a task is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.figures.common import name_row, new_figure
from taskvec_mini.figures.shown import NARROW_WIDTH, BookFigure

Strips = Mapping[str, tuple[Tensor, Sequence[str]]]
LETTER = 0.08  # inches: the width of a letter of nine points, on the broad side


def draw_strips(strips: Strips) -> Figure:
    """One strip of images a task, each image with a word beneath it: its class, or what a model read in it.

    Args:
        strips: by the name that stands before it, on a phone above it: uint8 images (N, H, W) or
            (N, H, W, 3), of any size from strip to strip, and N words.

    Raises:
        UserError: if there is no strip, one is empty, or has another number of words than of images.

    Example:
        >>> import torch
        >>> figure = draw_strips({"noise": (torch.zeros(3, 8, 8, dtype=torch.uint8), ["a", "b", "c"])})
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['a', 'b', 'c']
    """
    _checks.not_empty("strips", strips)
    for name, (images, words) in strips.items():
        if len(images) != len(words) or not len(images):
            raise UserError(f"{name!r} has {len(images)} images and {len(words)} words; give one word each")
    most = max(len(words) for _, words in strips.values())
    height = min(6.6 / most, 1.0) + 0.2 * _lines(strips) + 0.13  # of pictures an inch wide, if there is room
    figure = _strips(strips, columns=most, figsize=(7.4, height * len(strips)))
    figure.narrow = partial(_narrow_strips, dict(strips), most)
    return figure


def _narrow_strips(strips: Strips, most: int) -> BookFigure:
    """As many pictures side by side as leave room for the longest line under them, the names above."""
    lines = [line for _, words in strips.values() for word in words for line in word.split("\n")]
    columns = max(1, min(most, int(NARROW_WIDTH / max(0.35, LETTER * max(map(len, lines))))))
    side = min(NARROW_WIDTH / columns, 1.5) + 0.2 * _lines(strips)
    rows = sum(-(-len(words) // columns) for _, words in strips.values())
    return _strips(
        strips, columns=columns, figsize=(NARROW_WIDTH, side * rows + 0.3 * len(strips)), above=True
    )


def _lines(strips: Strips) -> int:
    """The most lines of words under a picture."""
    return max(word.count("\n") + 1 for _, words in strips.values() for word in words)


def _strips(strips: Strips, *, columns: int, figsize: tuple[float, float], above: bool = False) -> BookFigure:
    heights = [-(-len(words) // columns) for _, words in strips.values()]
    figure, grid = new_figure(sum(heights), columns, figsize=figsize, squeeze=False)
    first = 0
    for height, (name, (images, words)) in zip(heights, strips.items(), strict=True):
        places = list(grid[first : first + height].flat)
        for i, axes in enumerate(places):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            if i >= len(words):
                axes.set_visible(False)
                continue
            axes.imshow(images[i].numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.spines[:].set_visible(False)
            axes.set_xlabel(words[i], fontsize=9, labelpad=3)
        name_row(places[0], name, above=above)
        first += height
    return figure
