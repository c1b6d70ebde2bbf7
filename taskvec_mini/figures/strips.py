"""Pictures as they are: strips of examples, so that a reader sees what a task is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.figures.common import new_figure


def draw_strips(strips: Mapping[str, tuple[Tensor, Sequence[str]]]) -> Figure:
    """One strip of images a task, each image with a word beneath it: its class, or what a model read in it.

    Args:
        strips: by the name that stands at the left: uint8 images (N, H, W) or (N, H, W, 3), of any size from
            strip to strip, and N words.

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
    columns = max(len(words) for _, words in strips.values())
    figure, grid = new_figure(len(strips), columns, figsize=(7.4, 1.15 * len(strips)), squeeze=False)
    for row, (name, (images, words)) in zip(grid, strips.items(), strict=True):
        for i, axes in enumerate(row):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            if i >= len(words):
                axes.set_visible(False)
                continue
            axes.imshow(images[i].numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.spines[:].set_visible(False)
            axes.set_xlabel(words[i], fontsize=9, labelpad=3)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure
