"""Charts with sliders: one call, alive on the static page of the book, in Jupyter and in Colab.

A chapter has a question and a function: parameters in, tidy rows out. `explore` does the rest. Where there is
a kernel it shows ipywidgets sliders that call the function, also for values between the stops. Where there is
none it shows a Vega-Lite chart that holds the rows of every stop, computed beforehand by the same function.

The environment variable TASKVEC_MINI_EXPLORE chooses: "static", "live", or "auto" (the default): live in a
notebook with a kernel and ipywidgets, static elsewhere. The book's build sets "static".
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.explore.charts import Bars, Chart, Lines, Reference, check_columns, named_charts
from taskvec_mini.explore.page import VEGA_URLS
from taskvec_mini.explore.ranges import Range, defaults
from taskvec_mini.explore.rows import Panels, check_call, evaluate, rows_on_grid
from taskvec_mini.explore.static import StaticChart, static_chart

if TYPE_CHECKING:
    from taskvec_mini.explore.live import LiveChart

__all__ = ["VEGA_URLS", "Bars", "Lines", "Range", "Reference", "explore", "rows_on_grid"]

MODE_VARIABLE = "TASKVEC_MINI_EXPLORE"


def explore(
    compute: Callable[..., Any],
    *,
    ranges: Mapping[str, Range],
    charts: Chart | Mapping[str, Chart],
    question: str,
    description: str,
    say: Callable[[Panels], str] | None = None,
) -> StaticChart | LiveChart:
    """Show what `compute` returns, with a slider for each of its parameters. The last line of a cell.

    Args:
        compute: keyword parameters in, tidy rows out: a list of dictionaries from columns to numbers or
            words. For two charts side by side it returns a dictionary from their names to such lists.
        ranges: parameter -> `Range`, the stops of its slider. A static chart computes every combination.
        charts: `Lines(...)` or `Bars(...)`, or a dictionary of two of them, from left to right.
        question: what the reader is to find out; stands above the sliders.
        description: what the chart shows, in a sentence, for readers who do not see it.
        say: panels -> a sentence, shown below the chart and read out when it changes. It is given a
            dictionary from names of charts to rows; a single chart has the name "chart". If None, the values
            are read out to those who do not see the chart.

    Raises:
        ValueError: if a column is unknown, a value cannot be drawn, or the static chart would be over 1 MB.
        TypeError: if `compute` does not take these parameters or returns no rows.
        RuntimeError: if `compute` fails at a stop of a static chart; the message names the parameters.

    Example:
        >>> def descend(learning_rate, epochs):
        ...     return [{"epoch": k, "loss": (1 - learning_rate) ** (2 * k)} for k in range(epochs + 1)]
        >>> chart = explore(
        ...     descend,
        ...     ranges={
        ...         "learning_rate": Range.log(0.01, 1, count=5, default=0.1, label="learning rate η"),
        ...         "epochs": Range.steps([1, 2, 5, 10], default=5),
        ...     },
        ...     charts=Lines("epoch", "loss", y_domain=(0, 1)),
        ...     question="How fast does the loss fall?",
        ...     description="The loss against the epoch, a falling curve.",
        ... )
        >>> chart.spec["$schema"]
        'https://vega.github.io/schema/vega-lite/v6...json'
    """
    named = named_charts(charts)
    check_call(compute, ranges)
    for name, text in (("question", question), ("description", description)):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{name} is empty; say it in a sentence, some readers have nothing else")
    check_columns(named, evaluate(compute, defaults(ranges)))  # one position first: an error comes at once
    settings: dict[str, Any] = {
        "ranges": ranges,
        "charts": named,
        "question": question,
        "description": description,
        "say": say,
    }
    if _mode() == "static":
        return static_chart(compute, **settings)
    from taskvec_mini.explore.live import LiveChart

    return LiveChart(compute, **settings)


def _mode() -> str:
    """How to show a chart, as "static" or "live": as the variable says, or as this process allows."""
    wanted = os.environ.get(MODE_VARIABLE, "auto") or "auto"
    _checks.named_choice(MODE_VARIABLE, wanted, dict.fromkeys(("static", "live", "auto")))
    if wanted != "auto":
        return wanted
    ipython = sys.modules.get("IPython")  # only where somebody has already started it
    shell = ipython.get_ipython() if ipython is not None else None
    in_notebook = getattr(shell, "kernel", None) is not None
    return "live" if in_notebook and importlib.util.find_spec("ipywidgets") else "static"
