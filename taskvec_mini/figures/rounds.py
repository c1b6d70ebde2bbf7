"""Figures of alternating tuning and merging: data in, Figure out; none computes results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from taskvec_mini.figures.common import contours, legend_below, new_figure
from taskvec_mini.figures.style import COLOURS, GREY, series_style

Curve = tuple[Sequence[float], Sequence[float]]


def draw_rounds(
    panels: Mapping[str, Sequence[Tensor]],
    merged: Mapping[str, Tensor],
    multitask: Tensor,
    *,
    surface: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Figure:
    """Rounds in the plane, a panel for each way to cut a budget: tasks, merges and multitask descent.

    Args:
        panels: title -> for each round the paths of all tasks (T, e + 1, 2).
        merged: title -> the merge before the first and after each round (R + 1, 2).
        multitask: the path of multitask descent (k + 1, 2), the same in all panels.
        surface: the multitask loss, a function of two arrays of coordinates.
    """
    figure, grid = new_figure(1, len(panels), figsize=(7.4, 3.5), squeeze=False, sharex=True, sharey=True)
    for axes, (title, rounds) in zip(grid[0], panels.items(), strict=True):
        for number, tracks in enumerate(rounds):
            for t, path in enumerate(tracks):
                own = {**series_style(t), "linewidth": 1, "markersize": 3}
                axes.plot(path[:, 0], path[:, 1], label=f"task {t + 1}" if number == 0 else None, **own)
        axes.plot(multitask[:, 0], multitask[:, 1], label="multitask descent", **series_style(2))
        axes.plot(merged[title][:, 0], merged[title][:, 1], label="merge", **series_style(3))
        axes.set_title(title)
        axes.set_xlabel("θ₁")
    grid[0][0].set_ylabel("θ₂")
    for axes in grid[0]:  # when all limits are known
        axes.margins(0.1)
        contours(axes, surface)
    legend_below(figure, grid[0])
    return figure


def draw_splits(
    splits: Sequence[str],
    runs: Sequence[Sequence[float]],
    *,
    references: Mapping[str, Sequence[float]],
    xlabel: str = "rounds × epochs a round",
    ylabel: str = "mean test accuracy",
) -> Figure:
    """Results of splits of one budget, a point for each seed and a line through the means.

    Args:
        splits: the name of each split, from left to right.
        runs: for each seed the results of all splits.
        references: label -> results of all seeds of something to compare with: a line at their mean, and a
            band from the lowest to the highest.
        xlabel, ylabel: names of the axes.
    """
    figure, axes = new_figure(figsize=(6.6, 3.6))
    places, values = np.arange(len(splits)), np.asarray(runs)
    for seed in values:
        axes.plot(places, seed, ".", color=COLOURS[0], markersize=5, alpha=0.6)
    axes.plot(places, values.mean(0), label="rounds, mean of the seeds", **series_style(0))
    for i, (label, seeds) in enumerate(references.items(), start=1):
        style = {k: v for k, v in series_style(i).items() if k != "marker"}
        axes.axhline(float(np.mean(seeds)), label=label, **style)
        axes.axhspan(min(seeds), max(seeds), color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xticks(places, list(splits))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    legend_below(figure, [axes], columns=2)
    return figure


def draw_curves(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    xlabel: str,
    ylabel: str,
    log: Sequence[str] = (),
    dotted: Mapping[str, str] | None = None,
    zero: bool = False,
    sharey: bool = False,
) -> Figure:
    """Curves in panels side by side; a label looks the same in each of them.

    Args:
        panels: title -> label -> (places, values).
        xlabel, ylabel: names of the axes.
        log: which axes are logarithmic: "x", "y" or both.
        dotted: label -> what the legend calls it, for predictions and guides: these are drawn in grey dots.
        zero: whether to draw a grey line at height 0.
        sharey: whether all panels have the same upright axis.
    """
    figure, grid = new_figure(1, len(panels), figsize=(7.4, 3.4), squeeze=False, sharey=sharey)
    guides = dotted or {}
    labels = [label for curves in panels.values() for label in curves if label not in guides]
    styles = {label: series_style(i) for i, label in enumerate(dict.fromkeys(labels))}
    for axes, (title, curves) in zip(grid[0], panels.items(), strict=True):
        for label, (places, values) in curves.items():
            plain = {"color": GREY, "linestyle": ":"}
            axes.plot(places, values, label=guides.get(label, label), **styles.get(label, plain))
        if zero:
            axes.axhline(0, color=GREY, linewidth=1, zorder=1)
        axes.set_xscale("log" if "x" in log else "linear")
        axes.set_yscale("log" if "y" in log else "linear")
        axes.set_title(title)
        axes.set_xlabel(xlabel)
    grid[0][0].set_ylabel(ylabel)
    legend_below(figure, grid[0])
    return figure
