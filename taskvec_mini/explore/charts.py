"""What a chart shows, said once: the static page and the live one are drawn from the same description."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.explore.rows import ONLY, Panels

Scale = Literal["linear", "log"]
Domain = tuple[float, float]
ASPECT = {1: 560 / 300, 2: 250 / 250}  # panels side by side -> width over height of each
SERIES_LIMIT = 6  # as many as there are colours, dashes and markers


@dataclass(frozen=True)
class Reference:
    """A grey line across the whole chart, with a word on it: at the height `y`, or at the place `x`.

    Raises:
        ValueError: unless just one of the two is given, and finite.
    """

    label: str
    _: KW_ONLY
    y: float | None = None
    x: float | None = None

    def __post_init__(self) -> None:
        if (self.y is None) == (self.x is None):
            raise UserError(f"the reference {self.label!r} needs y=... or x=..., just one of the two")
        _checks.finite_number(f"the reference {self.label!r}", self.at)

    @property
    def at(self) -> float:
        """Where the line stands on its axis."""
        return self.y if self.y is not None else self.x  # type: ignore[return-value]


class _Titles:
    """The names of the axes: as given, or the columns' names in words."""

    x: str
    y: str
    x_label: str
    y_label: str

    @property
    def x_title(self) -> str:
        return self.x_label or self.x.replace("_", " ")

    @property
    def y_title(self) -> str:
        return self.y_label or self.y.replace("_", " ")


@dataclass(frozen=True)
class Lines(_Titles):
    """Points joined in the order of the rows: a curve, a path in the plane, or bare points.

    Args:
        x, y: the columns of numbers.
        series: a column of words; each word gets a colour, a dash and a marker of its own (six at most).
        title: a heading above the chart.
        x_label, y_label: what the axes are called; the columns' names if empty.
        x_scale, y_scale: "linear" or "log".
        x_domain, y_domain: the ends of the axes; if None, wide enough for every position of the sliders.
        joined: whether lines join the points. points: whether the points are marked.
        equal: whether one unit has the same length on both axes, as a path in the plane needs.
        references: grey lines to compare with.
    """

    x: str
    y: str
    _: KW_ONLY
    series: str | None = None
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    x_domain: Domain | None = None
    y_domain: Domain | None = None
    joined: bool = True
    points: bool = True
    equal: bool = False
    references: tuple[Reference, ...] = ()

    @property
    def numeric(self) -> dict[str, Scale]:
        """The columns of numbers and their scales."""
        return {self.x: self.x_scale, self.y: self.y_scale}


@dataclass(frozen=True)
class Bars(_Titles):
    """Bars from zero, with their values written on them: one for each word of the column `x`.

    Args:
        x: the column of words. y: the column of numbers.
        series: a column of words; bars of one group stand side by side in a fixed order (six at most).
        title: a heading above the chart.
        x_label, y_label: what the axes are called; the columns' names if empty.
        y_domain: the ends of the axis; if None, zero and wide enough for every position of the sliders.
        number_format: how the values are written, as in Python's `format`.
        references: grey lines to compare with, such as chance.
    """

    x: str
    y: str
    _: KW_ONLY
    series: str | None = None
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    y_domain: Domain | None = None
    number_format: str = ".2f"
    references: tuple[Reference, ...] = ()

    @property
    def numeric(self) -> dict[str, Scale]:
        """The column of numbers and its scale."""
        return {self.y: "linear"}


Chart = Lines | Bars
Charts = dict[str, Chart]  # panel -> its chart, from left to right


def named_charts(charts: Chart | Mapping[str, Chart]) -> Charts:
    """One chart or several side by side, by the names of their panels.

    Raises:
        TypeError: if one is neither `Lines` nor `Bars`.
        ValueError: if there are more than fit beside each other.
    """
    named = dict(charts) if isinstance(charts, Mapping) else {ONLY: charts}
    for name, chart in named.items():
        if not isinstance(chart, (Lines, Bars)):
            raise InputTypeError(
                f"the chart of panel {name!r} must be Lines(...) or Bars(...), got {chart!r}"
            )
    if len(named) not in ASPECT:
        raise UserError(f"got {len(named)} charts; one or two fit beside each other, so call explore again")
    return named


def check_columns(charts: Charts, panels: Panels) -> None:
    """A ValueError unless every chart finds its panel, its columns, and numbers that its scales can show."""
    if set(charts) != set(panels):
        raise UserError(
            f"the charts are named {', '.join(charts)} but the rows {', '.join(panels)}; "
            "let compute return one list of rows for each chart"
        )
    for name, chart in charts.items():
        known = list(panels[name][0])
        for column in filter(None, (chart.x, chart.y, chart.series)):
            if column not in known:
                near = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"the rows have {', '.join(known)}"
                raise UserError(f"panel {name!r} has no column {column!r}: {hint}")
        for column, scale in chart.numeric.items():
            for value in (row[column] for row in panels[name]):
                if isinstance(value, str):
                    raise UserError(f"panel {name!r} needs numbers in the column {column!r}, got {value!r}")
                if scale == "log" and value <= 0:
                    raise UserError(
                        f"panel {name!r} shows {column!r} on a log scale but got {value}; "
                        "use a linear scale, or let compute return a small floor instead"
                    )


@dataclass(frozen=True)
class Frame:
    """What stays put in a chart while its marks move: the ends of the axes, series and words in order."""

    x_domain: Domain
    y_domain: Domain
    series: tuple[str, ...]
    words: tuple[str, ...] = ()


def frames(charts: Charts, panels: Panels) -> dict[str, Frame]:
    """A frame for each chart in which all these rows can be seen.

    Raises:
        ValueError: if a chart has more series than a reader can tell apart.
    """
    aspect = ASPECT[len(charts)]
    found = {}
    for name, chart in charts.items():
        rows = panels[name]
        series = _words(row[chart.series] for row in rows) if chart.series else ("",)
        if len(series) > SERIES_LIMIT:
            raise UserError(
                f"the column {chart.series!r} names {len(series)} series but a chart can tell "
                f"{SERIES_LIMIT} apart; leave some out"
            )
        heights = [row[chart.y] for row in rows] + [line.y for line in chart.references if line.y is not None]
        if isinstance(chart, Bars):
            words = _words(row[chart.x] for row in rows)
            # from zero to the longest bars, and room for the values written on them
            low, high = min(0.0, *heights), max(0.0, *heights)
            room = 0.08 * ((high - low) or 1.0)
            ends = (low - room if low < 0 else 0.0), (high + room if high > 0 else room)
            found[name] = Frame((-0.5, len(words) - 0.5), chart.y_domain or ends, series, words)
            continue
        places = [row[chart.x] for row in rows] + [line.x for line in chart.references if line.x is not None]
        x_domain = chart.x_domain or _padded(places, chart.x_scale)
        y_domain = chart.y_domain or _padded(heights, chart.y_scale)
        if chart.equal:  # one of them is widened about its middle, so that a unit is as long on either axis
            unit = max((x_domain[1] - x_domain[0]) / aspect, y_domain[1] - y_domain[0])
            x_domain = _about_its_middle(x_domain, half=unit * aspect / 2)
            y_domain = _about_its_middle(y_domain, half=unit / 2)
        found[name] = Frame(x_domain, y_domain, series)
    return found


def _words(values: Iterable[object]) -> tuple[str, ...]:
    """The different words in the order they are met."""
    return tuple(dict.fromkeys(map(str, values)))


def _padded(values: list[float], scale: Scale) -> Domain:
    """The ends of the values and 4% more on either side, so that no point is cut in half."""
    if scale == "log":
        low, high = _padded([math.log(value) for value in values], "linear")
        return math.exp(low), math.exp(high)
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def _about_its_middle(domain: Domain, *, half: float) -> Domain:
    middle = (domain[0] + domain[1]) / 2
    return middle - half, middle + half


def summary(charts: Charts, panels: Panels) -> str:
    """What the charts show for one position of the sliders, in a sentence for each series."""
    sentences = []
    for name, frame in frames(charts, panels).items():
        chart = charts[name]
        for series in frame.series:
            rows = [row for row in panels[name] if chart.series is None or str(row[chart.series]) == series]
            subject = f"{chart.y_title}, {series}" if series else chart.y_title
            if isinstance(chart, Bars):
                values = [f"{row[chart.x]} {_number(row[chart.y], chart.number_format)}" for row in rows]
                sentences.append(f"{subject}: {', '.join(values)}.")
                continue
            places = [f"{_number(row[chart.y])} at {chart.x_title} {_number(row[chart.x])}" for row in rows]
            route = f"from {places[0]} to {places[-1]}" if len(places) > 1 else places[0]
            sentences.append(f"{subject}: {route}.")
    return " ".join(sentences)


def _number(value: float, number_format: str = ".4g") -> str:
    return format(value, number_format).replace("-", "−")
