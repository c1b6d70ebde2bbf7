"""The figures of the book: each `draw_*` takes data and returns a matplotlib Figure; none computes results.

No series is ever left out: where there are more of them than colours, the colours start again.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.figures.shown import NARROW_WIDTH, BookFigure, fit_columns
from taskvec_mini.figures.style import COLOURS, GREY, series_style
from taskvec_mini.tasks import Task


def draw_examples(tasks: Sequence[Task], *, count: int = 8, side: int = 8) -> Figure:
    """The first `count` training images of each task, one row a task, labelled with the right answers."""
    figure = _examples(tasks, count, side, figsize=(7, 1.05 * len(tasks)))
    size = (NARROW_WIDTH, (0.55 + 0.9 * NARROW_WIDTH / count) * len(tasks))
    figure.narrow = partial(_examples, list(tasks), count, side, figsize=size, above=True)
    return figure


def _examples(
    tasks: Sequence[Task], count: int, side: int, *, figsize: tuple[float, float], above: bool = False
) -> BookFigure:
    figure, grid = new_figure(len(tasks), count, figsize=figsize, squeeze=False)
    for task, row in zip(tasks, grid, strict=True):
        for i, axes in enumerate(row):
            axes.imshow(task.train_inputs[i].reshape(side, side).numpy(), cmap="gray_r", vmin=0, vmax=1)
            answer = task.class_names[int(task.train_labels[i])]
            if above:
                axes.set_xlabel(answer, fontsize=9, labelpad=2)
            else:
                axes.set_title(answer, fontsize=9, pad=2)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            axes.spines[:].set_visible(True)
        name_row(row[0], task.name, above=above)
    return figure


def name_row(axes: Axes, name: str, *, above: bool) -> None:
    """The name of a row of pictures, of which this is the first: before it, or on a line of its own above."""
    if not above:
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        return
    axes.set_title(" ", fontsize=9, pad=9)  # keeps the line free, and a gap above it
    places: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    line = axes.annotate(name, (0, 1), xytext=(0, 4), annotation_clip=False, **places)
    line.set_in_layout(False)  # or the first picture would be as wide as its row's name


def draw_accuracies(scores: Mapping[str, Mapping[str, float]], *, chance: float | None = None) -> Figure:
    """Grouped bars: for each model (outer key) its accuracy on each task (inner key), from 0 to 1.

    On a phone they lie, so that each number has room beside its bar.

    Raises:
        ValueError: if there are no scores.
        KeyError: if a model lacks an accuracy on a task of the first.
    """
    own = {model: dict(accuracies) for model, accuracies in scores.items()}
    figure = _accuracies(own, chance=chance, lying=False)
    figure.narrow = partial(_accuracies, own, chance=chance, lying=True)
    return figure


def _accuracies(
    scores: Mapping[str, Mapping[str, float]], *, chance: float | None, lying: bool
) -> BookFigure:
    tasks = list(scores[_checks.not_empty("scores", scores)[0]])
    names = [textwrap.fill(name, 14, break_long_words=False) for name in scores]
    lines = max([len(tasks), *(name.count("\n") + 1 for name in names)]) + 1  # of text for a model, and a gap
    height = 1.2 + 0.18 * lines * len(scores) + 0.16 * (len(tasks) + (chance is not None))
    figure, axes = new_figure(figsize=(NARROW_WIDTH, height) if lying else (7, 3))
    width = 0.8 / len(tasks)
    for i, (task, colour) in enumerate(zip(tasks, cycle(COLOURS), strict=False)):
        values = [accuracies[task] for accuracies in scores.values()]
        places = np.arange(len(scores)) + (i - (len(tasks) - 1) / 2) * width
        hatch = ("", "//", "..", "xx")[i % 4]
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
        bars = (axes.barh if lying else axes.bar)(places, values, width * 0.92, label=task, **look)
        axes.bar_label(bars, fmt="%.2f", fontsize=9, color=GREY, padding=2 if lying else 0)
    if chance is not None:
        (axes.axvline if lying else axes.axhline)(chance, color=GREY, linestyle=":", label="chance")
    if lying:
        axes.set_yticks(range(len(scores)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2)  # the numbers stand beyond 1
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_xlabel("test accuracy")
        axes.grid(axis="y", visible=False)
        legend_below(figure, [axes])
        figure.legends[0].set_title("tested on")
    else:
        axes.set_xticks(range(len(scores)), list(scores))
        axes.set_ylim(0, 1.08)
        axes.set_ylabel("test accuracy")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=len(tasks) + 1, title="tested on")
    return figure


def draw_paths(
    paths: Mapping[str, Tensor],
    *,
    surface: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    arrows: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    labels: tuple[str, str] = ("θ₁", "θ₂"),
) -> Figure:
    """Paths in two dimensions over the contours of a surface, and arrows between pairs of points.

    Args:
        paths: label -> points (K, 2), drawn as marked lines in order.
        surface: a function of two arrays of coordinates, for the contours.
        arrows: label -> (tail (2,), head (2,)).
        labels: names of the two axes.
    """
    figure, axes = new_figure(figsize=(6, 4))
    for i, (label, path) in enumerate(paths.items()):
        axes.plot(path[:, 0], path[:, 1], label=label, markersize=5, **series_style(i))
    for (label, (tail, head)), colour in zip((arrows or {}).items(), cycle(COLOURS[::-1]), strict=False):
        move = head - tail
        look = {"color": colour, "width": 0.008, "zorder": 3}  # on the path, not hidden by it
        axes.quiver(*tail, *move, angles="xy", scale_units="xy", scale=1, label=label, **look)
        axes.plot(*head, alpha=0)  # so that the arrow's head counts for the limits
    axes.margins(0.15)
    if surface is not None:
        contours(axes, surface)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    legend_below(figure, [axes])
    return figure


def draw_scatter(across: Tensor, panels: Mapping[str, Tensor], *, xlabel: str, ylabel: str) -> Figure:
    """A panel for each vector (D,): its entries against those of `across` (D,), with the diagonal."""
    figure, grid = new_figure(1, len(panels), figsize=(7, 3.4), squeeze=False)
    for axes, (title, up), colour in zip(grid[0], panels.items(), cycle(COLOURS), strict=False):
        # thousands of dots: as pixels in the drawing, which stays small enough to have panels that stack
        axes.plot(across, up, ".", color=colour, markersize=3, alpha=0.5, rasterized=True)
        axes.axline((0, 0), slope=1, color=GREY, linestyle="--", linewidth=1, label="equal")
        axes.set_title(title)
        axes.set_xlabel(xlabel)
    grid[0][0].set_ylabel(ylabel)
    legend_below(figure, grid[0])
    return figure


def draw_slopes(
    step_sizes: Sequence[float],
    errors: Mapping[str, Sequence[float]],
    *,
    xlabel: str = "learning rate η",
    ylabel: str = "relative error",
    guides: Mapping[str, Callable[[float], float]] | None = None,
) -> Figure:
    """Errors against step sizes on two logarithmic axes: an order of convergence is a slope."""
    figure, axes = new_figure(figsize=(6.5, 3.9))
    for i, (label, values) in enumerate(errors.items()):
        axes.loglog(step_sizes, values, label=label, **series_style(i))
    for label, guide in (guides or {}).items():
        axes.loglog(step_sizes, [guide(step) for step in step_sizes], ":", color=GREY, label=label)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    legend_below(figure, [axes])
    return figure


def draw_bars(
    values: Mapping[str, float],
    *,
    xlabel: str,
    log: bool = True,
    form: str = "{:.1e}",
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Horizontal bars, one a label, in the order given from the top; `marks` are vertical reference lines."""
    figure, axes = new_figure(figsize=(7, (0.9 if marks else 0.6) + 0.32 * len(values)))
    places = np.arange(len(values))[::-1]
    bars = axes.barh(places, list(values.values()), color=COLOURS[0], height=0.65)
    axes.bar_label(bars, [form.format(value) for value in values.values()], padding=3, fontsize=9, color=GREY)
    axes.set_yticks(places, list(values))
    if log:
        axes.set_xscale("log")
    for (label, place), line in zip((marks or {}).items(), cycle(("--", ":", "-.")), strict=False):
        axes.axvline(place, color=COLOURS[1], linestyle=line, label=label)
    axes.margins(x=0.18)
    axes.set_xlabel(xlabel)
    axes.grid(axis="y", visible=False)
    if marks:
        legend_below(figure, [axes])
    return figure


def new_figure(*shape: int, **settings: Any) -> tuple[BookFigure, Any]:
    """As `plt.subplots`, but a `BookFigure`, shown once: by whoever gets it, not by pyplot as well."""
    figure, axes = plt.subplots(*shape, **{"FigureClass": BookFigure, **settings})
    plt.close(figure)
    return figure, axes


def legend_below(figure: Figure, panels: Sequence[Axes], *, columns: int = 3) -> None:
    """One legend below all panels, each label once; above four labels, in so many columns at most.

    There no curve can go through it, however the figure is laid out.
    """
    found: dict[str, Artist] = {}
    for axes in panels:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(str(label), line)
    legend = figure.legend(list(found.values()), list(found), loc="outside lower center")
    fit_columns(legend, len(found) if len(found) <= 4 else columns)


def contours(axes: Axes, surface: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Grey contour lines of a function of two arrays behind what the axes show; their limits stay."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = np.meshgrid(np.linspace(left, right, 80), np.linspace(low, high, 80))
    axes.contour(x, y, surface(x, y), levels=12, colors=GREY, alpha=0.5, linewidths=0.8)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
