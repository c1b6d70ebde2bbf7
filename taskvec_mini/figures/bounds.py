"""Figures of bounds beside what they bound: data in, Figure out; none computes results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from taskvec_mini.figures.common import legend_below, new_figure
from taskvec_mini.figures.style import GREY, series_style

Curves = Mapping[str, Sequence[float]]


def draw_bounds(
    panels: Mapping[str, tuple[Sequence[float], Curves]], *, truth: str, ylabel: str, base: int = 2
) -> Figure:
    """Bounds and the truth below them, on logarithmic axes; panels side by side share the upright one.

    Args:
        panels: name of the level axis -> its values, and label -> values. A value that is infinite, where a
            bound has nothing to say, is left out, and the line ends there. A label looks the same everywhere.
        truth: the label drawn as a broad grey line without markers.
        ylabel: what the upright axis is called.
        base: of the ticks on the level axes.
    """
    figure, grid = new_figure(1, len(panels), figsize=(7.2, 3.7), squeeze=False, sharey=True)
    labels = list(dict.fromkeys(label for _, curves in panels.values() for label in curves if label != truth))
    for axes, (xlabel, (places, curves)) in zip(grid[0], panels.items(), strict=True):
        axes.set_xscale("log", base=base)
        axes.set_yscale("log")
        for label, values in curves.items():
            known = np.where(np.isfinite(values), values, np.nan)
            if label == truth:
                axes.plot(places, known, label=label, color=GREY, linewidth=4, zorder=1)
            else:
                axes.plot(places, known, label=label, **series_style(labels.index(label)))
        if all(float(place).is_integer() for place in places):
            axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(xlabel)
    grid[0][0].set_ylabel(ylabel)
    legend_below(figure, grid[0])
    return figure


def draw_tightness(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """How many times too large each bound is: a column of points for each network, a panel for each question.

    Args:
        panels: title -> name of a network -> label of a bound -> bound divided by truth. A label looks the
            same in each panel. The grey line at 1 is the truth.
    """
    widths = [len(networks) for networks in panels.values()]
    settings = {"figsize": (7.2, 3.7), "squeeze": False, "sharey": True, "width_ratios": widths}
    figure, grid = new_figure(1, len(panels), **settings)
    for axes, (title, networks) in zip(grid[0], panels.items(), strict=True):
        labels = list(dict.fromkeys(label for bounds in networks.values() for label in bounds))
        for i, label in enumerate(labels):
            values = [bounds.get(label, np.nan) for bounds in networks.values()]
            axes.plot(range(len(values)), values, label=label, **{**series_style(i), "linestyle": "none"})
        axes.axhline(1, color=GREY, linewidth=1.2, zorder=1)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
        axes.set_xticks(range(len(networks)), list(networks))
        axes.set_xlim(-0.6, len(networks) - 0.4)
        axes.grid(axis="x", visible=False)
        axes.set_title(title)
    grid[0][0].set_ylabel("bound ÷ truth")
    legend_below(figure, grid[0])
    return figure
