"""Figures of results that others published: data in, Figure out; none computes results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from taskvec_mini.figures.common import legend_below, new_figure
from taskvec_mini.figures.shown import NARROW_WIDTH, BookFigure, fit_columns
from taskvec_mini.figures.style import COLOURS, GREY, series_style

LONG_NAME = 14  # letters of a row's name: a longer one leaves a phone no room beside it


def draw_differences(
    differences: Mapping[str, Sequence[float]], *, xlabel: str, width: float = 0.5
) -> Figure:
    """A histogram of each group under the other, on one axis; a dashed line marks zero, a full one the mean.

    Args:
        differences: label of the group -> its values.
        xlabel: what the values are.
        width: of the bins, which start at whole multiples of it, so that no bin lies across zero.
    """
    figure, grid = new_figure(
        len(differences), 1, figsize=(7, 0.6 + 1.1 * len(differences)), squeeze=False, sharex=True
    )
    every = np.concatenate([np.asarray(values, dtype=float) for values in differences.values()])
    edges = width * np.arange(np.floor(every.min() / width), np.floor(every.max() / width) + 2)
    for axes, (label, values), colour in zip(grid[:, 0], differences.items(), cycle(COLOURS), strict=False):
        axes.hist(values, bins=edges, color=colour, rwidth=0.9)
        axes.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
        axes.axvline(float(np.mean(values)), color=GREY, linewidth=1.6)
        axes.set_title(f"{label} ({len(values)})", loc="left")
        axes.set_ylabel("count")
    grid[-1, 0].set_xlabel(xlabel)
    return figure


def draw_dots(
    values: Mapping[str, Mapping[str, float]], *, xlabel: str, marks: Sequence[float] = ()
) -> Figure:
    """A line for each row, a dot on it for each series; from the top in the order of the first series.

    Args:
        values: label of the series -> row -> value; a series may lack rows.
        xlabel: what the values are.
        marks: places of upright dotted lines.
    """
    draw = partial(_dots, {label: dict(series) for label, series in values.items()}, xlabel, tuple(marks))
    figure = draw()
    if max(len(row) for series in values.values() for row in series) > LONG_NAME:
        figure.narrow = partial(draw, above=True)
    return figure


def _dots(
    values: Mapping[str, Mapping[str, float]], xlabel: str, marks: Sequence[float], *, above: bool = False
) -> BookFigure:
    """The names of the rows beside the lines; or `above` them, so that a phone has room for the dots."""
    rows = list(dict.fromkeys(row for series in values.values() for row in series))
    size = (NARROW_WIDTH, 1.3 + 0.34 * len(rows)) if above else (6.4, 0.9 + 0.19 * len(rows))
    figure, axes = new_figure(figsize=size)
    for i, (label, series) in enumerate(values.items()):
        places = [len(rows) - 1 - rows.index(row) for row in series]
        axes.plot(list(series.values()), places, label=label, **{**series_style(i), "linestyle": ""})
    for mark in marks:
        if above:  # a stroke on each line, for the names are in the way of a longer one
            axes.plot([mark] * len(rows), range(len(rows)), "|", color=GREY, zorder=1)
        else:
            axes.axvline(mark, color=GREY, linestyle=":", zorder=1)
    axes.set_yticks(range(len(rows)), ["" if above else row for row in rows[::-1]])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    if above:
        for i, row in enumerate(rows[::-1]):
            place = axes.get_yaxis_transform()
            axes.annotate(row, (0, i), (3, 5), xycoords=place, textcoords="offset points", fontsize=9)
    axes.set_xlabel(xlabel)
    fit_columns(figure.legend(loc="outside upper center"), len(values))
    return figure


def draw_budgets(
    curves: Mapping[str, Mapping[float, float]],
    *,
    references: Mapping[str, float],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Curves over a budget, and horizontal lines to hold them against, each with its name beside it.

    Args:
        curves: label -> budget -> value.
        references: label -> height of a grey line.
        xlabel, ylabel: names of the axes.
    """
    figure, axes = new_figure(figsize=(6.6, 4.1))
    for i, (label, curve) in enumerate(curves.items()):
        axes.plot(list(curve), list(curve.values()), label=label, **{**series_style(i), "markersize": 4})
    right = max(budget for curve in curves.values() for budget in curve)
    for label, height in references.items():
        axes.axhline(height, color=GREY, linestyle=":", zorder=1)
        axes.annotate(label, (right, height), (0, 3), textcoords="offset points", ha="right", fontsize=9)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    legend_below(figure, [axes])
    return figure
