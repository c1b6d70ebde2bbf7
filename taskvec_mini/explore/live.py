"""The chart of a running notebook: sliders that recompute, also between the stops."""

from __future__ import annotations

import base64
import html
import math
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets

from taskvec_mini.explore.charts import Charts, check_columns, frames, summary
from taskvec_mini.explore.picture import picture
from taskvec_mini.explore.ranges import Range, titles
from taskvec_mini.explore.rows import Compute, Panels, call_text, evaluate

Say = Callable[[Panels], str]
ERROR_STYLE = "border-left:4px solid #bd3323;padding:.4rem .8rem;margin:.4rem 0"
HIDDEN_STYLE = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"


class LiveChart:
    """Sliders, a picture and a line of state; `widget` is what is shown.

    Moving a slider calls `compute` with the sliders' values and draws what comes back. If that fails the
    picture gives way to a message with the error, and comes back with the next position that works. Pale
    marks show the position before this one, dotted marks the start.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        ranges: Mapping[str, Range],
        charts: Charts,
        question: str,
        description: str,
        say: Say | None,
    ):
        self.compute, self.ranges, self.charts = compute, dict(ranges), charts
        self.description, self.say = description, say
        self.sliders = _sliders(self.ranges)
        self.reset_button = ipywidgets.Button(description="Reset", tooltip="Back to the starting values")
        self.state, self.message, self.picture = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self._seen: Panels = {name: [] for name in charts}
        self._ghosts: dict[str, Panels] = {}
        self._show(evaluate(compute, self.parameters))  # at the start an error is the author's: it is raised
        self._listen(True)
        self.reset_button.on_click(lambda _: self.reset())
        heading = ipywidgets.HTML(f"<b>{html.escape(question)}</b>")
        bar = ipywidgets.HBox([self.reset_button, self.state])
        self.widget = ipywidgets.VBox([heading, *self.sliders.values(), bar, self.message, self.picture])

    @property
    def parameters(self) -> dict[str, Any]:
        """The values the sliders stand at."""
        return {name: slider.value for name, slider in self.sliders.items()}

    def update(self, *_: object) -> None:
        """Compute and draw what the sliders say; show the error if that fails."""
        self._running(True)
        try:
            self._show(evaluate(self.compute, self.parameters))
        except Exception as error:  # whatever it is, the reader is to see it
            self._show_error(error)
        finally:
            self._running(False)

    def reset(self) -> None:
        """All sliders back to where they started, and one computation, not one a slider."""
        self._listen(False)
        try:
            for name, range_ in self.ranges.items():
                self.sliders[name].value = range_.default
        finally:
            self._listen(True)
        self.update()

    def _listen(self, wanted: bool) -> None:
        for slider in self.sliders.values():
            (slider.observe if wanted else slider.unobserve)(self.update, names="value")

    def _running(self, running: bool) -> None:
        self.state.value = '<span role="status">running…</span>' if running else ""
        self.reset_button.disabled = running

    def _show(self, panels: Panels) -> None:
        check_columns(self.charts, panels)
        for name in self.charts:
            self._seen[name] += panels[name]  # the axes only grow, so that pictures can be compared
        png = picture(self.charts, frames(self.charts, self._seen), panels, ghosts=self._ghosts)
        self._ghosts = {"start": self._ghosts.get("start", panels), "last": panels}  # for the next picture
        source = "data:image/png;base64," + base64.b64encode(png).decode()
        says = html.escape((self.say or (lambda found: summary(self.charts, found)))(panels))
        words = f"<p>{says}</p>" if self.say else f'<p style="{HIDDEN_STYLE}">{says}</p>'
        image = f'<img src="{source}" alt="{html.escape(self.description)}" style="max-width:100%">'
        self.picture.value, self.message.value = image + words, ""

    def _show_error(self, error: Exception) -> None:
        call = html.escape(call_text(self.compute, self.parameters))
        what = html.escape(f"{type(error).__name__}: {error}")
        trace = html.escape("".join(traceback.format_exception(error)))
        self.picture.value = ""
        self.message.value = (
            f'<div role="alert" style="{ERROR_STYLE}"><b>This position did not work.</b><br>'
            f"<code>{call}</code><br>{what}<details><summary>Where it happened</summary>"
            f"<pre>{trace}</pre></details></div>"
        )

    def __repr__(self) -> str:
        return f"LiveChart({self.parameters})"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)  # type: ignore[no-untyped-call]


def _sliders(ranges: Mapping[str, Range]) -> dict[str, Any]:
    """An ipywidgets slider for each range, which reports when it is let go.

    All have the same room for their labels: ipywidgets cuts off a longer one.
    """
    beside = titles(ranges)
    labels = {name: f"{beside[name]} ({r.unit})" if r.unit else beside[name] for name, r in ranges.items()}
    room = 0.6 * max(map(len, labels.values())) + 1
    found = {}
    for name, range_ in ranges.items():
        settings: dict[str, Any] = {
            "value": range_.default,
            "description": labels[name],
            "continuous_update": False,
            "style": {"description_width": f"{room:.1f}em"},
            "layout": {"width": f"min(100%, {room + 22:.1f}em)"},
        }
        low: Any = range_.values[0]
        high: Any = range_.values[-1]
        parts = 10 * (len(range_.values) - 1)  # ten places from one stop to the next
        if any(isinstance(value, str) for value in range_.values):
            found[name] = ipywidgets.SelectionSlider(options=list(range_.values), **settings)
        elif all(isinstance(value, int) for value in range_.values):
            found[name] = ipywidgets.IntSlider(min=low, max=high, **settings)
        elif range_.scale == "log":
            ends = math.log10(low), math.log10(high)
            settings |= {"step": (ends[1] - ends[0]) / parts, "readout_format": range_.number_format}
            found[name] = ipywidgets.FloatLogSlider(min=ends[0], max=ends[1], **settings)
        else:
            settings |= {"step": (high - low) / parts, "readout_format": range_.number_format}
            found[name] = ipywidgets.FloatSlider(min=low, max=high, **settings)
    return found
