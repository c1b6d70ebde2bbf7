"""The charts in words, for readers who do not see them."""

from __future__ import annotations

from taskvec_mini.explore.charts import Bars, Chart, Charts, frames
from taskvec_mini.explore.rows import Panels, Row


def summary(charts: Charts, panels: Panels) -> str:
    """What the charts show for one position of the sliders, in a sentence for each series."""
    settled = frames(charts, panels)
    sentences = [
        _sentence(chart, series, panels[name])
        for name, chart in charts.items()
        for series in settled[name].series
    ]
    return " ".join(sentences)


def _sentence(chart: Chart, series: str, rows: list[Row]) -> str:
    own = [row for row in rows if chart.series is None or str(row[chart.series]) == series]
    subject = f"{chart.y_title}, {series}" if series else chart.y_title
    if isinstance(chart, Bars):
        values = ", ".join(f"{row[chart.x]} {_number(row[chart.y], chart.number_format)}" for row in own)
        return f"{subject}: {values}."
    first, last = own[0], own[-1]
    start = f"{_number(first[chart.y])} at {chart.x_title} {_number(first[chart.x])}"
    if len(own) == 1:
        return f"{subject}: {start}."
    return f"{subject}: from {start} to {_number(last[chart.y])} at {chart.x_title} {_number(last[chart.x])}."


def _number(value: float, format_: str = ".4g") -> str:
    return format(value, format_).replace("-", "−")
