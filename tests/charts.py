"""Read the charts with sliders out of stored outputs and pages: their rows, and where each mark belongs."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import dataclass
from typing import Any

CHART = re.compile(
    r'<div class="explore" id="(explore-[0-9a-f]+)".*?<script type="application/json">(.*?)</script>', re.S
)


@dataclass(frozen=True)
class Scale:
    """An axis: its kind, the values at its ends, the pixels it spans. A vertical one starts at the bottom."""

    kind: str
    domain: tuple[float, float]
    pixels: tuple[float, float]

    def place(self, value: float) -> float:
        """The pixel of a value, computed here and not by Vega."""
        low, high, at = (math.log(v) if self.kind == "log" else v for v in (*self.domain, value))
        return self.pixels[0] + (at - low) / (high - low) * (self.pixels[1] - self.pixels[0])


@dataclass(frozen=True)
class Panel:
    """One of the plots of a chart: its rows, its axes and the kind of its marks."""

    rows: list[dict[str, str]]
    mark: str  # "bar", "point" or "line"
    x: (
        Scale | tuple[tuple[str, ...], tuple[str, ...]]
    )  # for bars the words and the series, from left to right
    y: Scale

    def at(self, position: int) -> list[dict[str, str]]:
        """The rows of one position of the sliders."""
        return [row for row in self.rows if int(row["at"]) == position]

    def marks(self, position: int) -> list[tuple[float, ...]]:
        """Where the marks belong: (x, y) of each point, or (top, bottom) of each bar; from left to right."""
        rows = self.at(position)
        if isinstance(self.x, Scale):
            return sorted((self.x.place(float(row["x"])), self.y.place(float(row["y"]))) for row in rows)
        words, series = self.x
        rows = sorted(rows, key=lambda row: (words.index(row["x"]), series.index(row["series"])))
        ends = [(self.y.place(float(row["y"])), self.y.place(0)) for row in rows]
        return [(min(pair), max(pair)) for pair in ends]


@dataclass(frozen=True)
class Chart:
    """A chart as the page carries it."""

    name: str
    sliders: list[dict[str, Any]]
    panels: list[Panel]

    @property
    def stops(self) -> list[int]:
        """How many stops each slider has."""
        return [len(slider["texts"]) for slider in self.sliders]

    def position(self, values: list[int]) -> int:
        """The number of a combination of stops; the last slider counts singly."""
        number = 0
        for stop, size in zip(values, self.stops, strict=True):
            number = number * size + stop
        return number


def charts_in(html: str) -> list[Chart]:
    """All charts of a page or of a cell's output."""
    return [_chart(name, json.loads(facts)) for name, facts in CHART.findall(html)]


def _chart(name: str, facts: dict[str, Any]) -> Chart:
    spec = facts["spec"]
    return Chart(name, facts["sliders"], [_panel(view) for view in spec.get("hconcat", [spec])])


def _panel(view: dict[str, Any]) -> Panel:
    rows = list(csv.DictReader(io.StringIO(view["data"]["values"])))
    kinds = {layer["mark"]["type"]: layer["encoding"] for layer in view["layer"] if "mark" in layer}
    mark = next(kind for kind in ("bar", "point", "line") if kind in kinds)
    height = _scale(kinds[mark]["y"], (view["height"], 0))
    if mark != "bar":
        return Panel(rows, mark, _scale(kinds[mark]["x"], (0, view["width"])), height)
    words = kinds[mark]["x"]["scale"]["domain"]
    series = kinds[mark].get("xOffset", {}).get("scale", {}).get("domain", [""])
    return Panel(rows, mark, (tuple(words), tuple(series)), height)


def _scale(channel: dict[str, Any], pixels: tuple[float, float]) -> Scale:
    low, high = channel["scale"]["domain"]
    return Scale(channel["scale"].get("type", "linear"), (low, high), pixels)
