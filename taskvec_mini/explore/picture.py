"""The charts as one picture, drawn by matplotlib: what a kernel shows, and what stands in for scripts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from taskvec_mini.explore.charts import Bars, Chart, Charts, Frame, Lines, Reference
from taskvec_mini.explore.rows import Panels, Row
from taskvec_mini.figures.style import COLOURS, GREY, STYLE, series_style

FILLS = (1.0, 0.35, 0.75, 0.2, 0.55, 0.1)  # of bars, series by series: colour is not the only channel
SIZE = {1: (5.8, 3.3), 2: (5.8, 3.0)}  # inches, by the number of panels
LEGEND_COLUMNS = 3


def draw(charts: Charts, frames: Mapping[str, Frame], panels: Panels) -> Figure:
    """The charts side by side in the book's look. Belongs to no global state: pyplot never hears of it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE[len(charts)], layout="constrained")
        FigureCanvasAgg(figure)
        row: Any = figure.subplots(1, len(charts), squeeze=False)[0]
        for axes, (name, chart) in zip(row, charts.items(), strict=True):
            _draw_chart(axes, chart, frames[name], panels[name])
        _write_above(row, charts, frames)
    return figure


def picture(charts: Charts, frames: Mapping[str, Frame], panels: Panels) -> bytes:
    """The same as a PNG file."""
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        draw(charts, frames, panels).savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_chart(axes: Any, chart: Chart, frame: Frame, rows: list[Row]) -> None:
    for name in frame.series:
        own = [row for row in rows if chart.series is None or str(row[chart.series]) == name]
        if isinstance(chart, Bars):
            _draw_bars(axes, chart, frame, name, own)
        else:
            _draw_line(axes, chart, frame.look(name), name, own)
    for line in chart.references:
        _draw_reference(axes, line, beside=isinstance(chart, Bars))
    _finish_bars(axes, frame) if isinstance(chart, Bars) else _finish_lines(axes, chart)
    axes.set_xlim(frame.x_domain)
    axes.set_ylim(frame.y_domain)
    axes.set_xlabel(chart.x_title)
    axes.set_ylabel(chart.y_title)


def _write_above(row: Any, charts: Charts, frames: Mapping[str, Frame]) -> None:
    """Legends, and above them the titles, all at one height."""
    with_legend = [len(frames[name].series) for name, chart in charts.items() if chart.series]
    lines = -(-max(with_legend, default=0) // LEGEND_COLUMNS)
    for axes, chart in zip(row, charts.values(), strict=True):
        axes.set_title(chart.title, pad=6 + 14 * lines)
        if chart.series:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=LEGEND_COLUMNS, borderaxespad=0.2)


def _draw_line(axes: Any, chart: Lines, look: int, name: str, rows: list[Row]) -> None:
    style = series_style(look)
    style["linestyle"] = style["linestyle"] if chart.joined else "none"
    style["marker"] = style["marker"] if chart.points else "none"
    axes.plot([row[chart.x] for row in rows], [row[chart.y] for row in rows], label=name, **style)


def _finish_lines(axes: Any, chart: Lines) -> None:
    axes.set_xscale(chart.x_scale)
    axes.set_yscale(chart.y_scale)
    if chart.equal:
        axes.set_aspect("equal")


def _draw_bars(axes: Any, chart: Bars, frame: Frame, name: str, rows: list[Row]) -> None:
    width, look = 0.8 / len(frame.series), frame.look(name)
    shift = (look - (len(frame.series) - 1) / 2) * width
    places = [frame.words.index(str(row[chart.x])) + shift for row in rows]
    fill = mpl.colors.to_rgba(COLOURS[look], FILLS[look])
    line = {"edgecolor": COLOURS[look], "linewidth": 1.2}
    bars = axes.bar(places, [row[chart.y] for row in rows], width * 0.88, color=[fill], label=name, **line)
    values = [format(row[chart.y], chart.number_format).replace("-", "−") for row in rows]
    axes.bar_label(bars, values, padding=2, fontsize=8, color=GREY)


def _finish_bars(axes: Any, frame: Frame) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(range(len(frame.words)), frame.words)
    axes.grid(axis="x", visible=False)


def _draw_reference(axes: Any, line: Reference, *, beside: bool) -> None:
    look = {"color": GREY, "linewidth": 1.2, "linestyle": (0, (4, 3)), "zorder": 1.5}
    word: dict[str, Any] = {"textcoords": "offset points", "color": GREY, "fontsize": 8}
    if line.y is not None:
        axes.axhline(line.y, **look)
        place = {"ha": "left", "va": "center"} if beside else {"ha": "right", "va": "bottom"}
        shift = (4, 0) if beside else (-2, 2)
        axes.annotate(line.label, (1, line.y), shift, xycoords=("axes fraction", "data"), **place, **word)
    else:
        axes.axvline(line.x, **look)
        place = {"ha": "left", "va": "top"}
        axes.annotate(line.label, (line.x, 1), (3, -2), xycoords=("data", "axes fraction"), **place, **word)
