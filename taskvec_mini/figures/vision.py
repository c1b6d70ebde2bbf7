"""Figures of the studies on real images: data in, Figure out; none computes results.

Where several runs were made, a line goes through their means and a band spans all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.figures.common import legend_below, new_figure
from taskvec_mini.figures.shown import NARROW_WIDTH, BookFigure
from taskvec_mini.figures.style import COLOURS, DARK_PAGE, GREY, series_style

Runs = Sequence[Sequence[float]]
LOSS, GAIN = COLOURS[1], COLOURS[0]
INK = DARK_PAGE  # on coloured cells, which are opaque; the others show the page and have grey numbers
LEGEND_COLUMNS = 4
PALEST, DEEPEST = 0.3, 0.8  # how much of its hue a coloured cell has: dark numbers stay readable on it


def draw_bands(
    places: Sequence[float],
    panels: Mapping[str, Mapping[str, Runs]],
    *,
    xlabel: str,
    references: Mapping[str, Mapping[str, float | Sequence[float]]] | None = None,
    log: bool = False,
    shared: bool = False,
    threads: bool = False,
    order: Sequence[str] = (),
) -> Figure:
    """Curves with a spread, in panels side by side: a line through the means, a band over all runs.

    A band hides how the runs inside it differ; `threads` draws each of them instead.

    Args:
        places: where the values stand on the level axis, such as epochs.
        panels: title -> label -> for each place its values, one or more; there may be more at one place than
            at another, and fewer places than given: then the first of them. A label looks the same in each
            panel.
        xlabel: what the level axis is called.
        references: title -> label -> a height, or a height at each place; drawn in grey.
        log: whether the level axis doubles from tick to tick.
        shared: whether all panels have the same upright axis.
        threads: whether a thin line is drawn for each run in place of the band. The first values of all
            places are then one run, the second ones another, and so on.
        order: labels by whose places colours are given, so that a label looks the same in another figure,
            where others are missing; labels beside these follow.

    Raises:
        ValueError: if there are no panels, a label has a place without a value, or `threads` are wanted of
            runs that are not known at every place.
    """
    count = len(_checks.not_empty("panels", panels))
    labels = _labels(panels, order)
    more = {label for heights in (references or {}).values() for label in heights}
    height = 3.4 + 0.2 * -(-(len(labels) + len(more)) // LEGEND_COLUMNS)
    figure, grid = new_figure(1, count, figsize=(7.4, height), squeeze=False, sharey=shared)
    for axes, (title, curves) in zip(grid[0], panels.items(), strict=True):
        for label, runs in curves.items():
            if len(runs) > len(places) or not all(len(values) for values in runs):
                raise UserError(
                    f"{label!r} has values at {sum(map(bool, map(len, runs)))} of {len(runs)} places, and "
                    f"there are {len(places)} of them; give at least one value for each place"
                )
            reached, style = places[: len(runs)], series_style(labels.index(label))
            axes.plot(reached, [float(np.mean(values)) for values in runs], label=label, **style)
            if threads:
                counts = sorted(set(map(len, runs)))
                if len(counts) > 1:
                    raise UserError(
                        f"{label!r} has {counts} values at its places; threads go through all of them, so "
                        "give as many values at each place, or leave threads out"
                    )
                thin = {"color": style["color"], "alpha": 0.45, "linewidth": 1.0, "zorder": 1.5}
                axes.plot(reached, np.asarray(runs), **thin)
                continue
            low, high = [min(values) for values in runs], [max(values) for values in runs]
            axes.fill_between(reached, low, high, color=style["color"], alpha=0.18, linewidth=0)
        for number, (label, heights) in enumerate((references or {}).get(title, {}).items()):
            levels = np.broadcast_to(np.asarray(heights, dtype=float), len(places))
            dashes = ("--", ":", "-.", "-")[number % 4]
            axes.plot(places, levels, label=label, color=GREY, linestyle=dashes, zorder=1)
        if log:
            axes.set_xscale("log", base=2)
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title)
        axes.set_xlabel(xlabel)
    legend_below(figure, grid[0], columns=LEGEND_COLUMNS)
    return figure


def _labels(panels: Mapping[str, Mapping[str, Runs]], order: Sequence[str]) -> list[str]:
    """All labels, those of `order` first, in the order of their colours."""
    return list(dict.fromkeys([*order, *(label for curves in panels.values() for label in curves)]))


def draw_multiples(
    places: Sequence[float],
    panels: Mapping[str, Mapping[str, Runs]],
    *,
    xlabel: str,
    ylabel: str,
    references: Mapping[str, float] | None = None,
    order: Sequence[str] = (),
    columns: int = 4,
) -> Figure:
    """A small panel for each task, all with the same axes: every run is a thin line, a strong one their mean.

    One band over all tasks would hide how they differ.

    Args:
        places: where the values stand on the level axis, such as epochs.
        panels: task -> label -> for each place the values of all runs. A panel may lack labels; each looks
            the same in all panels.
        xlabel, ylabel: what the axes are called.
        references: label -> height of a grey line in every panel.
        order: labels in the order of their colours; by default as they are met.
        columns: how many panels stand side by side; on a phone two at most.

    Raises:
        ValueError: if there are no panels.
    """
    _checks.not_empty("panels", panels)
    draw = partial(
        _multiples, places, panels, xlabel=xlabel, ylabel=ylabel, references=references or {}, order=order
    )
    figure = draw(columns=columns, width=7.4)
    figure.narrow = partial(draw, columns=min(2, columns, len(panels)), width=NARROW_WIDTH)
    return figure


def _multiples(
    places: Sequence[float],
    panels: Mapping[str, Mapping[str, Runs]],
    *,
    xlabel: str,
    ylabel: str,
    references: Mapping[str, float],
    order: Sequence[str],
    columns: int,
    width: float,
) -> BookFigure:
    labels = _labels(panels, order)
    rows = -(-len(panels) // columns)
    figure, grid = new_figure(
        rows, columns, figsize=(width, 0.9 + 1.7 * rows), squeeze=False, sharex=True, sharey=True
    )
    shown = list(grid.flat)[: len(panels)]
    for axes, (title, curves) in zip(shown, panels.items(), strict=True):
        for label, runs in curves.items():
            style = {**series_style(labels.index(label)), "markersize": 3.5}
            thin = {"color": style["color"], "alpha": 0.55, "linewidth": 1.0, "zorder": 1.5}
            axes.plot(places, np.asarray(runs), **thin)
            axes.plot(places, [float(np.mean(values)) for values in runs], label=label, **style)
        for (label, height), dashes in zip(references.items(), cycle(("--", ":", "-.")), strict=False):
            axes.axhline(height, label=label, color=GREY, linestyle=dashes, linewidth=1.2, zorder=1)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(places)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes in shown[-columns:]:  # the lowest of each column
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel(xlabel)
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    legend_below(figure, shown)
    return figure


def draw_leads(shares: Mapping[str, Mapping[str, float]], *, equal: Mapping[str, float]) -> Figure:
    """The first epoch's share in each of several runs, beside what an epoch would have if all were equal.

    Args:
        shares: name of a run, such as a data set -> label of a measure -> share of the first epoch.
        equal: name of a run -> one divided by its number of epochs; a grey upright line.

    Raises:
        ValueError: if there are no runs.
        KeyError: if a run lacks its equal share or a measure of the first run.
    """
    names = _checks.not_empty("shares", shares)
    labels, places = list(shares[names[0]]), np.arange(len(names))[::-1]
    figure, axes = new_figure(figsize=(7, 1.2 + 0.34 * len(names)))
    marks = axes.scatter([equal[name] for name in names], places, marker="|", s=260, color=GREY, linewidths=2)
    marks.set_label("equal shares")
    for i, label in enumerate(labels):
        values = [shares[name][label] for name in names]
        axes.plot(values, places, label=label, **{**series_style(i), "linestyle": "none", "markersize": 7})
    axes.set_yticks(places, names)
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("share of the first epoch")
    legend_below(figure, [axes], columns=LEGEND_COLUMNS)
    return figure


def draw_interference(changes: Mapping[str, Mapping[str, float]], *, ylabel: str, xlabel: str) -> Figure:
    """A table in colours: what each row does to each column, in points, with the numbers written in.

    Args:
        changes: row -> column -> a change between -1 and 1, shown in hundredths.
        ylabel: what the rows are. xlabel: what the columns are.

    Raises:
        ValueError: if there are no rows.
        KeyError: if a row lacks a column of the first.
    """
    rows = _checks.not_empty("changes", changes)
    columns = list(changes[rows[0]])
    values = 100 * np.array([[changes[row][column] for column in columns] for row in rows])
    draw = partial(_interference, values, rows=rows, columns=columns, ylabel=ylabel, xlabel=xlabel)
    figure = draw(width=7, turned=30)
    figure.stacks = False  # the numbers need their width, which a phone has for a few columns
    if 0.09 * max(map(len, rows)) + 0.4 * len(columns) < NARROW_WIDTH - 0.4:  # inches for names and numbers
        figure.narrow = partial(draw, width=NARROW_WIDTH, turned=60)
    return figure


def _change(value: float) -> str:
    """A change in whole points with its sign; a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:+.0f}" if abs(value) > 0.5 else "0"


def _interference(
    values: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    ylabel: str,
    xlabel: str,
    width: float,
    turned: float,
) -> BookFigure:
    figure, axes = new_figure(figsize=(width, 1.4 + 0.42 * len(rows)))
    loss, gain = ([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in (LOSS, GAIN))
    depth = np.nan_to_num(values) / max(float(np.nanmax(np.abs(values))), 1e-9)
    hue = np.where((depth < 0)[..., None], loss, gain)
    shares = (PALEST + (DEEPEST - PALEST) * np.abs(depth))[..., None]
    written = [[_change(value) for value in line] for line in values]
    seen = np.array([[text not in ("0", "–") for text in line] for line in written])  # changes above 0.5
    axes.pcolormesh(np.dstack([1 - shares * (1 - hue), seen]), edgecolors=GREY, linewidth=0.5)
    for i, line in enumerate(written):
        for j, text in enumerate(line):
            colour = INK if seen[i, j] else GREY
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=turned, ha="right")
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure
