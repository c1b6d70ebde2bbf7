"""The charts as a Vega-Lite specification: all rows of all positions, and a parameter for each slider."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import altair as alt

from taskvec_mini.explore.charts import Bars, Chart, Charts, Frame, Lines
from taskvec_mini.explore.picture import FILLS, LEGEND_COLUMNS
from taskvec_mini.explore.ranges import Range
from taskvec_mini.explore.rows import Panels
from taskvec_mini.figures import COLOURS, DASHES, GREY

SIZE = {1: (560, 300), 2: (250, 250)}  # pixels of the plot itself, by the number of panels
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DIGITS = ".5g"  # of the stored numbers: finer than a pixel
TEXT = "currentColor"  # text takes the colour of the page around it, light or dark

AXIS = {
    "labelColor": TEXT, "titleColor": TEXT, "domainColor": GREY, "tickColor": GREY, "gridColor": GREY,
    "gridOpacity": 0.25, "labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal",
    "titlePadding": 8, "labelOverlap": True,
}  # fmt: skip
# of the marks that show where the sliders stood before and where they start: dashes in pixels, opacity
GHOSTS: dict[str, tuple[list[int], float]] = {"start": ([2, 3], 0.6), "last": ([1, 0], 0.4)}
LOOKS = ("color", "shape", "fill", "stroke")  # the channels that tell series apart
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "inherit",
    "view": {"stroke": None},
    "axis": AXIS,
    "legend": {
        "orient": "top", "title": None, "columns": LEGEND_COLUMNS, "labelColor": TEXT, "labelFontSize": 12,
        "symbolSize": 60, "symbolStrokeWidth": 2, "labelLimit": 240,
    },
    "title": {"color": TEXT, "fontSize": 14, "fontWeight": "normal", "anchor": "middle"},
    "text": {"color": TEXT, "fontSize": 12},
}  # fmt: skip


def specification(
    charts: Charts,
    frames: Mapping[str, Frame],
    *,
    ranges: Mapping[str, Range],
    positions: Iterable[Panels],
    description: str,
) -> dict[str, Any]:
    """The Vega-Lite specification, checked against its schema by altair.

    The parameter `position0` is the stop of the first slider, counted from 0, and so on. The marks shown are
    those whose `at` is the number of that combination of stops, in the order of `ranges.grid`. Ghosts show
    two more: the combination `last`, where the sliders stood before (-1: nowhere), and `start`.
    """
    shown = f"datum.at == {at_expression(ranges)}"
    start = list(itertools.product(*(range_.values for range_ in ranges.values()))).index(
        tuple(range_.default for range_ in ranges.values())
    )
    tables = list(positions)
    width, height = SIZE[len(charts)]
    views = []
    for number, (name, chart) in enumerate(charts.items()):
        bars = isinstance(chart, Bars)
        marks = _bars(chart, frames[name]) if isinstance(chart, Bars) else _lines(chart, frames[name])
        ghosts = [
            _ghost(chart, frames[name], look=look)
            .transform_filter(f"datum.at == {look}")
            .properties(name=f"ghost_{look}_{number}")
            for look in GHOSTS
        ]
        references = []
        for line in chart.references:
            base: Any = _rule(x=line.at) if line.y is None else _rule(y=line.at)
            references.append(base.mark_rule(color=GREY, strokeDash=[4, 3], strokeWidth=1.5, aria=False))
            if line.y is None:
                word = base.mark_text(align="left", baseline="top", dx=4, dy=2, aria=False)
                word = word.encode(y=alt.value(0))
            elif bars:  # beside the chart, where bars would hide it
                word = base.mark_text(align="left", dx=4, aria=False).encode(x=alt.value("width"))
            else:  # on the line, at its right end
                word = base.mark_text(align="right", baseline="bottom", dy=-2, aria=False)
                word = word.encode(x=alt.value("width"))
            references.append(word.encode(text=alt.value(line.label)))
        # all rows as one CSV text: a third of the bytes of a list of objects, and columns by plain names
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["at", "i", "x", "y", "series"])
        for at, panels in enumerate(tables):
            for i, row in enumerate(panels[name]):
                x, y = (v if isinstance(v, str) else format(v, DIGITS) for v in (row[chart.x], row[chart.y]))
                writer.writerow([at, i, x, y, row[chart.series] if chart.series else ""])
        kinds = {"at": "number", "i": "number", "x": "string" if bars else "number", "y": "number"}
        csv_format = alt.CsvDataFormat(type="csv", parse={**kinds, "series": "string"})
        data = alt.InlineData(values=file.getvalue(), format=csv_format)
        title = {"title": chart.title} if chart.title else {}
        marks = [mark.transform_filter(shown) for mark in marks]
        marks = [*marks, *ghosts] if bars else [*ghosts, *marks]  # outlines lie on bars, pale lines below
        view = alt.layer(*references, *marks, data=data)
        views.append(view.properties(width=width, height=height, **title))
    whole: Any = views[0] if len(views) == 1 else alt.hconcat(*views, spacing=28)
    if len({frame.series for frame in frames.values()}) > 1:  # or one legend mixes the series of both
        whole = whole.resolve_scale(**dict.fromkeys(LOOKS, "independent"))
    params = [
        alt.param(name=f"position{i}", value=range_.position(range_.default))
        for i, range_ in enumerate(ranges.values())
    ]
    params += [alt.param(name="last", value=-1), alt.param(name="start", value=start)]
    whole = whole.add_params(*params).properties(description=description)
    with alt.data_transformers.enable("default", consolidate_datasets=False):
        spec: dict[str, Any] = whole.to_dict()
    return {**spec, "config": CONFIG}


def at_expression(ranges: Mapping[str, Range]) -> str:
    """The number of a combination of stops, from the stops of the sliders: the last one counts singly."""
    expression = "position0"
    for i, range_ in enumerate(list(ranges.values())[1:], start=1):
        expression = f"({expression}) * {len(range_.values)} + position{i}"
    return expression


def _ghost(chart: Chart, frame: Frame, *, look: str) -> Any:
    """The marks of another position: pale lines or points, or grey outlines of bars; without a legend."""
    dash, opacity = GHOSTS[look]
    if isinstance(chart, Bars):
        return _bar_places(chart, frame).mark_bar(
            filled=False, color=GREY, strokeWidth=1.5, strokeDash=dash, clip=True, aria=False
        )
    colours = dict(zip(frame.series, COLOURS, strict=False))
    colour: Any = alt.expr(f"({json.dumps(colours)})[datum.series]")
    if frame.series == ("",):  # an empty column reads as null
        colour = COLOURS[0]
    places: Any = alt.Chart().encode(
        x=alt.X("x:Q", title=chart.x_title, axis=_axis(), scale=_scale(chart.x_scale, frame.x_domain)),
        y=alt.Y("y:Q", title=chart.y_title, axis=_axis(), scale=_scale(chart.y_scale, frame.y_domain)),
        detail="series:N",
        order=alt.Order("i:Q"),
    )
    settings: dict[str, Any] = {"opacity": opacity, "clip": True, "aria": False}
    if chart.joined:
        return places.mark_line(stroke=colour, strokeWidth=2, strokeDash=dash, **settings)
    return places.mark_point(filled=False, stroke=colour, strokeDash=dash, size=60, **settings)


def _lines(chart: Lines, frame: Frame) -> list[Any]:
    base: Any = alt.Chart().encode(
        x=alt.X("x:Q", title=chart.x_title, axis=_axis(), scale=_scale(chart.x_scale, frame.x_domain)),
        y=alt.Y("y:Q", title=chart.y_title, axis=_axis(), scale=_scale(chart.y_scale, frame.y_domain)),
        color=_by_series(alt.Color, frame, looks=COLOURS),
        order=alt.Order("i:Q"),
    )
    marks = []
    dashes = dict(zip(frame.series, [list(dash) or [1, 0] for dash in DASHES], strict=False))
    line: dict[str, Any] = {"strokeWidth": 2, "clip": True, "aria": False}
    if chart.joined and chart.points:  # no dashes in the legend: it would draw them round the markers
        marks.append(base.mark_line(strokeDash=alt.expr(f"({json.dumps(dashes)})[datum.series]"), **line))
    elif chart.joined:
        legend = alt.Legend(symbolType="stroke", symbolSize=300)
        dash = _by_series(alt.StrokeDash, frame, looks=dashes.values(), legend=legend)
        marks.append(base.mark_line(**line).encode(strokeDash=dash))
    if chart.points:
        shape = _by_series(alt.Shape, frame, looks=SHAPES)
        points = base.mark_point(filled=True, size=45, opacity=1, clip=True)
        marks.append(points.encode(shape=shape, tooltip=_tooltips(chart)))
    return marks


def _bar_places(chart: Bars, frame: Frame) -> Any:
    """A chart whose marks stand where the bars do."""
    words = list(frame.words)
    base: Any = alt.Chart().encode(
        x=alt.X(
            "x:N",
            title=chart.x_title,
            sort=words,
            axis=alt.Axis(labelAngle=0, grid=False),
            scale=alt.Scale(domain=words, paddingInner=0.25, paddingOuter=0.2),
        ),
        y=alt.Y("y:Q", title=chart.y_title, axis=_axis(), scale=_scale("linear", frame.y_domain)),
    )
    if chart.series:  # without one the column is empty, which vega reads as null: it belongs to no side
        names = list(frame.series)
        base = base.encode(xOffset=alt.XOffset("series:N", sort=names, scale=alt.Scale(domain=names)))
    return base


def _bars(chart: Bars, frame: Frame) -> list[Any]:
    base = _bar_places(chart, frame)
    fills = [f"{colour}{round(255 * fill):02x}" for colour, fill in zip(COLOURS, FILLS, strict=True)]
    bars = base.mark_bar(strokeWidth=1.5, clip=True).encode(
        fill=_by_series(alt.Fill, frame, looks=fills),
        stroke=_by_series(alt.Stroke, frame, looks=COLOURS),
        tooltip=_tooltips(chart),
    )
    values = base.mark_text(dy=alt.expr("datum.y < 0 ? 9 : -8"), aria=False)
    zero = _rule(y=0).mark_rule(color=GREY, aria=False)
    return [bars, zero, values.encode(text=alt.Text("y:Q", format=chart.number_format))]


def _by_series(channel: Any, frame: Frame, *, looks: Iterable[Any], **options: Any) -> Any:
    """A channel that tells the series apart; just the first look where there is only one without a name."""
    chosen = list(looks)[: len(frame.series)]
    if frame.series == ("",):
        return alt.value(chosen[0])
    scale = alt.Scale(domain=list(frame.series), range=chosen)
    return channel("series:N", title=None, scale=scale, **options)


def _tooltips(chart: Chart) -> list[Any]:
    x = alt.Tooltip("x:N") if isinstance(chart, Bars) else alt.Tooltip("x:Q", format=".4~g")
    tips = [x.title(chart.x_title), alt.Tooltip("y:Q", title=chart.y_title, format=".4~g")]
    if chart.series:
        tips.append(alt.Tooltip("series:N", title=chart.series.replace("_", " ")))
    return tips


def _axis() -> alt.Axis:
    return alt.Axis(format=".6~g", tickCount=5, grid=True)


def _scale(kind: Any, domain: tuple[float, float]) -> alt.Scale:
    ends = [float(format(end, ".6g")) for end in domain]
    zero: dict[str, Any] = {} if kind == "log" else {"zero": False}
    return alt.Scale(type=kind, domain=ends, nice=False, **zero)


def _rule(**at: float) -> alt.Chart:
    """A mark of its own, once and not once a row: it has data of its own, one empty row."""
    chart = alt.Chart(alt.InlineData(values=[{}]))
    return chart.encode(**{axis: alt.datum(value) for axis, value in at.items()})
