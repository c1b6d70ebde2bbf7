"""The charts as one picture, drawn by matplotlib: what a kernel shows, and what stands in for scripts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from taskvec_mini.explore.charts import Bars, Charts, Frame
from taskvec_mini.explore.rows import Panels
from taskvec_mini.figures import COLOURS, GREY, STYLE, series_style

FILLS = (1.0, 0.35, 0.75, 0.2, 0.55, 0.1)  # of bars, series by series: colour is not the only channel
SIZE = {1: (5.8, 3.3), 2: (5.8, 3.0)}  # inches, by the number of panels
LEGEND_COLUMNS = 3


def draw(charts: Charts, frames: Mapping[str, Frame], panels: Panels) -> Figure:
    """The charts side by side in the book's look. Belongs to no global state: pyplot never hears of it."""
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
                rows = [r for r in panels[name] if chart.series is None or str(r[chart.series]) == series]
                if isinstance(chart, Bars):
                    width = 0.8 / len(frame.series)
                    shift = (number - (len(frame.series) - 1) / 2) * width
                    bars = axes.bar(
                        [frame.words.index(str(row[chart.x])) + shift for row in rows],
                        [row[chart.y] for row in rows],
                        width * 0.88,
                        color=[mpl.colors.to_rgba(COLOURS[number], FILLS[number])],
                        label=series,
                        edgecolor=COLOURS[number],
                        linewidth=1.2,
                    )
                    values = [format(row[chart.y], chart.number_format).replace("-", "−") for row in rows]
                    axes.bar_label(bars, values, padding=2, fontsize=8, color=GREY)
                else:
                    style = series_style(number)
                    style["linestyle"] = style["linestyle"] if chart.joined else "none"
                    style["marker"] = style["marker"] if chart.points else "none"
                    places = [row[chart.x] for row in rows], [row[chart.y] for row in rows]
                    axes.plot(*places, label=series, **style)
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


def picture(charts: Charts, frames: Mapping[str, Frame], panels: Panels) -> bytes:
    """The same as a PNG file."""
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        draw(charts, frames, panels).savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
