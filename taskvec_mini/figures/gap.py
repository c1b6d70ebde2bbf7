"""Figures of the gap between merging and multitask descent: data in, Figure out; none computes results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from taskvec_mini.figures.common import contours, legend_below, new_figure
from taskvec_mini.figures.shown import NARROW_WIDTH
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
    for here, there in zip(merged, multitask, strict=True):
        axes.plot(*zip(here, there, strict=True), color=GREY, linewidth=1, zorder=1)
    axes.set_aspect("equal")
    axes.margins(0.12)
    contours(axes, surface)
    axes.set_xlabel("θ₁")
    axes.set_ylabel("θ₂")
    legend_below(figure, [axes])
    for epoch in dict.fromkeys((1, len(merged) - 1)):
        _name_beside(figure, merged[epoch], name=f"epoch {epoch}")
    return figure


def _name_beside(figure: Figure, point: Tensor, *, name: str) -> None:
    """Write a name near a point of the panel, best below, where neither a line nor another name is.

    A thin line leads from the name to the point, for other points may be nearer.

    A figure for a phone is drawn with the same distances in points but shorter lines: both are looked at.
    """
    (axes,), (x, y) = figure.axes, point.tolist()
    centred: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
    lead = {"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
    text = axes.annotate(name, (x, y), (0, 0), fontsize=9, arrowprops=lead, **centred)
    figure.draw_without_rendering()
    box = Text.get_window_extent(text)  # of the letters alone
    half = np.array([box.width, box.height]) / 2 * 72 / figure.dpi + 2
    lines = [np.asarray(line.get_xydata()) for line in axes.lines]
    shares = np.linspace(0, 1, 50)[:, None]
    dots = np.concatenate([a + shares * (b - a) for line in lines for a, b in pairwise(line)])
    limits = np.stack([axes.get_xlim(), axes.get_ylim()], 1)
    others = [other for other in axes.texts if isinstance(other, Annotation) and other is not text]

    def room(place: tuple[float, float]) -> float:
        """0 where nothing touches the name at this place, else minus the points that are missing."""
        found = []
        for width in (axes.bbox.width * 72 / figure.dpi, 72 * NARROW_WIDTH * 0.8):
            scale = width / (limits[1, 0] - limits[0, 0])
            away = np.abs((dots - (x, y)) * scale - place) - half
            inside = ((limits - (x, y)) * scale - place) * [[-1], [1]] - half
            found += [away.max(1).min(), inside.min()]
            for other in others:
                centre = (np.array(other.xy) - (x, y)) * scale + other.get_position()
                found.append((np.abs(centre - place) - 2 * half).max())
        return float(min(0.0, *found))

    heights = (-27, -23, -19, -15, -11, 0, 11, 15, 19, 23, 27)
    places = [(across, up) for across in range(-32, 33, 4) for up in heights]
    places.sort(key=lambda place: math.hypot(*place) + (place[1] >= 0) * 8)  # below is better by 8 points
    text.set_position(max(places, key=room))  # the first of those that are equally good


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
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(False)
    grid[0][0].set_ylabel(labels[1])
    legend_below(figure, grid[0])
    return figure
