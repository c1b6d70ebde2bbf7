"""Figures of the gap between merging and multitask descent: data in, Figure out; none computes results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from taskvec_mini.figures.common import contours, legend_below, new_figure
from taskvec_mini.figures.style import COLOURS, GREY, SEQUENTIAL, series_style


def draw_parting(
    tasks: Mapping[str, Tensor],
    merged: Tensor,
    multitask: Tensor,
    *,
    surface: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Figure:
    """Paths of tasks in the plane, their merge epoch by epoch, and multitask descent, over contours.

    Args:
        tasks: label -> the path of one task (k + 1, 2).
        merged: the merge after 0, 1, ..., k epochs (k + 1, 2).
        multitask: the path of multitask descent (k + 1, 2).
        surface: the multitask loss, a function of two arrays of coordinates.
    """
    figure, axes = new_figure(figsize=(6.4, 4.2))
    for i, (label, path) in enumerate(tasks.items()):
        axes.plot(
            path[:, 0], path[:, 1], label=label, **{**series_style(i), "linewidth": 1.2, "markersize": 4}
        )
    axes.plot(multitask[:, 0], multitask[:, 1], label="multitask descent", **series_style(2))
    axes.plot(merged[:, 0], merged[:, 1], label="merge", **series_style(3))
    for epoch, (here, there) in enumerate(zip(merged, multitask, strict=True)):
        axes.plot(*zip(here, there, strict=True), color=GREY, linewidth=1, zorder=1)
        if epoch in (1, len(merged) - 1):
            at = {"textcoords": "offset points", "ha": "center", "fontsize": 9}
            axes.annotate(f"epoch {epoch}", here, (0, -17), **at)
    axes.set_aspect("equal")
    axes.margins(0.12)
    contours(axes, surface)
    axes.set_xlabel("θ₁")
    axes.set_ylabel("θ₂")
    legend_below(figure, [axes])
    return figure


def draw_panels(
    step_sizes: Sequence[float],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    linear: Sequence[str] = (),
    references: Mapping[str, Sequence[float]] | None = None,
    xlabel: str = "learning rate η",
) -> Figure:
    """Curves over the learning rate in panels side by side; a label looks the same in each of them.

    Args:
        step_sizes: the learning rates, on a logarithmic axis.
        panels: title -> label -> values. Shorter lists belong to the last step sizes, as slopes between
            neighbours do.
        linear: titles of the panels with a linear upright axis; the others have a logarithmic one.
        references: title -> heights of grey lines.
        xlabel: what the axis of step sizes is called.
    """
    figure, grid = new_figure(1, len(panels), figsize=(7.4, 3.4), squeeze=False)
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    for axes, (title, curves) in zip(grid[0], panels.items(), strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("linear" if title in linear else "log")
        for label, values in curves.items():
            style = series_style(labels.index(label))
            axes.plot(step_sizes[len(step_sizes) - len(values) :], values, label=label, **style)
        for height in (references or {}).get(title, ()):
            axes.axhline(height, color=GREY, linestyle=":", zorder=1)
        axes.set_title(title)
        axes.set_xlabel(xlabel)
    legend_below(figure, grid[0])
    return figure


def draw_landscape(
    across: np.ndarray,
    up: np.ndarray,
    heights: Mapping[str, np.ndarray],
    *,
    paths: Mapping[str, Tensor],
    labels: tuple[str, str],
) -> Figure:
    """Heights over a plane as shaded maps side by side, each with the same paths drawn on it.

    Args:
        across, up: the coordinates of the grid, (n,) and (m,).
        heights: title -> heights (m, n).
        paths: label -> points in the plane (K, 2).
        labels: names of the two axes.
    """
    figure, grid = new_figure(1, len(heights), figsize=(7.4, 3.9), squeeze=False, sharey=True)
    colours = (COLOURS[2], COLOURS[3], COLOURS[1])
    rim = withStroke(linewidth=4, foreground="white")  # so that lines are seen on every shade
    for axes, (title, values) in zip(grid[0], heights.items(), strict=True):
        shades = axes.contourf(across, up, values, levels=18, cmap=SEQUENTIAL, alpha=0.75)
        axes.contour(across, up, values, levels=shades.levels, colors="white", linewidths=0.4, alpha=0.6)
        figure.colorbar(shades, ax=axes, orientation="horizontal", aspect=30, ticks=MaxNLocator(5))
        for i, (label, path) in enumerate(paths.items()):
            style = {**series_style(i), "color": colours[i % len(colours)]}
            axes.plot(path[:, 0], path[:, 1], label=label, path_effects=[rim], **style)
        axes.set_title(title)
        axes.set_xlabel(labels[0])
        axes.grid(False)
    grid[0][0].set_ylabel(labels[1])
    legend_below(figure, grid[0])
    return figure
