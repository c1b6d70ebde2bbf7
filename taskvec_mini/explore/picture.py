"""The charts as one picture, drawn by matplotlib: what a kernel shows, and what stands in for scripts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from taskvec_mini.explore.charts import Bars, Chart, Charts, Frame
from taskvec_mini.explore.rows import Panels, Row
from taskvec_mini.figures import COLOURS, GREY, STYLE, series_style

FILLS = (1.0, 0.35, 0.75, 0.2, 0.55, 0.1)  # of bars, series by series: colour is not the only channel
SIZE = {1: (5.8, 3.3), 2: (5.8, 3.0)}  # inches, by the number of panels
LEGEND_COLUMNS = 3
GHOSTS: dict[str, dict[str, Any]] = {  # marks of two more positions, as on the static page
    "start": {"linestyle": (0, (1, 1.5)), "alpha": 0.6},
    "last": {"linestyle": "-", "alpha": 0.4},
}


def draw(
    charts: Charts,
    frames: Mapping[str, Frame],
    panels: Panels,
    *,
    ghosts: Mapping[str, Panels] | None = None,
) -> Figure:
    """The charts side by side in the book's look. Belongs to no global state: pyplot never hears of it.

    `ghosts` are the panels of where the sliders stood before ("last") and where they start ("start").
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE[len(charts)], layout="constrained")
        FigureCanvasAgg(figure)
        grid: Any = figure.subplots(1, len(charts), squeeze=False)[0]
        # legends stand above the plots, and above all of these the titles, at one height
        with_legend = [len(frames[name].series) for name, chart in charts.items() if chart.series]
        legend_lines = -(-max(with_legend, default=0) // LEGEND_COLUMNS)
        for axes, (name, chart) in zip(grid, charts.items(), strict=True):
            frame = frames[name]
            for number, series in enumerate(frame.series):
                for look, ghost in (ghosts or {}).items():
                    rows = _rows_of(chart, ghost[name], series=series)
                    _draw_ghost(axes, chart, frame=frame, rows=rows, number=number, look=look)
                rows = _rows_of(chart, panels[name], series=series)
                if isinstance(chart, Bars):
                    places, heights, width = _bars(chart, frame, rows, number=number)
                    look_of_bars = {
                        "color": [mpl.colors.to_rgba(COLOURS[number], FILLS[number])],
                        "edgecolor": COLOURS[number],
                        "linewidth": 1.2,
                    }
                    bars = axes.bar(places, heights, width, label=series, **look_of_bars)
                    values = [format(height, chart.number_format).replace("-", "−") for height in heights]
                    axes.bar_label(bars, values, padding=2, fontsize=8, color=GREY)
                else:
                    style = series_style(number)
                    style["linestyle"] = style["linestyle"] if chart.joined else "none"
                    style["marker"] = style["marker"] if chart.points else "none"
                    axes.plot([r[chart.x] for r in rows], [r[chart.y] for r in rows], label=series, **style)
            grey: dict[str, Any] = {"color": GREY, "linewidth": 1.2, "linestyle": (0, (4, 3)), "zorder": 1.5}
            word: dict[str, Any] = {"textcoords": "offset points", "color": GREY, "fontsize": 8}
            for line in chart.references:
                if line.y is None:
                    axes.axvline(line.x, **grey)
                    at = {"xy": (line.x, 1), "xycoords": ("data", "axes fraction")}
                    place = {"xytext": (3, -2), "ha": "left", "va": "top"}
                else:
                    axes.axhline(line.y, **grey)
                    at = {"xy": (1, line.y), "xycoords": ("axes fraction", "data")}
                    place = {"xytext": (-2, 2), "ha": "right", "va": "bottom"}
                    if isinstance(chart, Bars):  # beside the chart, where bars would hide it
                        place = {"xytext": (4, 0), "ha": "left", "va": "center"}
                axes.annotate(line.label, **at, **place, **word)
            if isinstance(chart, Bars):
                axes.axhline(0, color=GREY, linewidth=0.8)
                axes.set_xticks(range(len(frame.words)), frame.words)
                axes.grid(axis="x", visible=False)
            else:
                axes.set_xscale(chart.x_scale)
                axes.set_yscale(chart.y_scale)
                axes.set_aspect("equal" if chart.equal else "auto")
            axes.set_xlim(frame.x_domain)
            axes.set_ylim(frame.y_domain)
            axes.set_xlabel(chart.x_title)
            axes.set_ylabel(chart.y_title)
            axes.set_title(chart.title, pad=6 + 14 * legend_lines)
            if chart.series:
                above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "borderaxespad": 0.2}
                axes.legend(ncols=LEGEND_COLUMNS, **above)
    return figure


def _draw_ghost(axes: Any, chart: Chart, *, frame: Frame, rows: list[Row], number: int, look: str) -> None:
    """The marks of one series at another position: outlines of bars, pale lines or hollow points."""
    faint: dict[str, Any] = {**GHOSTS[look], "linewidth": 1.3}
    if isinstance(chart, Bars):
        places, heights, width = _bars(chart, frame, rows, number=number)
        axes.bar(places, heights, width, fill=False, edgecolor=GREY, zorder=3, **faint)
        return
    points = [row[chart.x] for row in rows], [row[chart.y] for row in rows]
    if chart.joined:
        axes.plot(*points, color=COLOURS[number], zorder=1.8, **faint)
    else:
        axes.scatter(*points, facecolors="none", edgecolors=COLOURS[number], zorder=1.8, **faint)


def _rows_of(chart: Chart, rows: list[Row], *, series: str) -> list[Row]:
    return [row for row in rows if chart.series is None or str(row[chart.series]) == series]


def _bars(
    chart: Bars, frame: Frame, rows: list[Row], *, number: int
) -> tuple[list[float], list[float], float]:
    """Places, heights and width of the bars of one series; series stand side by side."""
    width = 0.8 / len(frame.series)
    shift = (number - (len(frame.series) - 1) / 2) * width
    places = [frame.words.index(str(row[chart.x])) + shift for row in rows]
    return places, [row[chart.y] for row in rows], width * 0.88


def picture(
    charts: Charts,
    frames: Mapping[str, Frame],
    panels: Panels,
    *,
    ghosts: Mapping[str, Panels] | None = None,
) -> bytes:
    """The same as a PNG file."""
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        draw(charts, frames, panels, ghosts=ghosts).savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
