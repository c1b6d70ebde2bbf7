"""The chart of a static page: everything computed beforehand, for every stop of every slider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskvec_mini.errors import UserError
from taskvec_mini.explore.charts import ASPECT, Charts, Lines, check_columns, frames, summary
from taskvec_mini.explore.page import page
from taskvec_mini.explore.picture import picture
from taskvec_mini.explore.ranges import Range, defaults, titles
from taskvec_mini.explore.rows import Compute, Panels, rows_on_grid

LARGEST_PAGE = 1_000_000  # bytes of one chart; a page holds one or two and is to stay below 2 MB

Say = Callable[[Panels], str]


@dataclass(frozen=True)
class StaticChart:
    """A chart with sliders that needs no kernel: `html` for the book and Jupyter, `png` for a print-out."""

    html: str
    png: bytes
    question: str
    spec: dict[str, Any]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {
            "text/html": self.html,
            "image/png": self.png,
            "text/plain": f"[chart with sliders] {self.question}",
        }


def static_chart(
    compute: Compute,
    *,
    ranges: Mapping[str, Range],
    charts: Charts,
    question: str,
    description: str,
    say: Say | None,
) -> StaticChart:
    """Compute every position, put all of it into one piece of HTML; a ValueError if that grows too large."""
    from taskvec_mini.explore.spec import specification  # altair, which a reader with a kernel need not have

    positions = rows_on_grid(compute, ranges)
    for panels in positions.values():
        check_columns(charts, panels)
    together = {name: [row for panels in positions.values() for row in panels[name]] for name in charts}
    settled = frames(charts, together)
    start = tuple(defaults(ranges).values())
    png = picture(charts, settled, positions[start])
    spec = specification(
        charts, settled, ranges=ranges, positions=positions.values(), description=description
    )
    labels = titles(ranges)
    sliders = [
        {
            "name": name,
            "label": labels[name],
            "texts": [range_.text(value) for value in range_.values],
            "start": range_.position(range_.default),
        }
        for name, range_ in ranges.items()
    ]
    text = page(
        spec,
        sliders,
        shapes=[
            ASPECT[len(charts)] if isinstance(chart, Lines) and chart.equal else None
            for chart in charts.values()
        ],
        question=question,
        description=description,
        says=[say(panels) if say else summary(charts, panels) for panels in positions.values()],
        says_visibly=say is not None,
        at=list(positions).index(start),
        png=png,
    )
    size = len(text.encode())
    if size > LARGEST_PAGE:
        raise UserError(
            f"the chart takes {size / 1e3:.0f} kB for {len(positions)} positions of the sliders, and may "
            f"take {LARGEST_PAGE / 1e3:g} kB; give the ranges fewer stops or return fewer rows"
        )
    return StaticChart(text, png, question, spec)
