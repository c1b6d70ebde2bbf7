"""What only a run of a chapter can tell, asked in its own kernel by a cell that `scripts/check.py` appends.

The checks of exercises have to take the solution, on other random instances too, and to refuse wrong answers;
charts have to hold what their code computes. What cells print is compared by nbval anyway.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from charts import Chart, charts_in
from taskvec_mini.exercises import NOT_WRITTEN

# Wrong whatever the question. A check cell's metadata may add more answers, such as the classic mistakes:
# {"taskvec_mini": {"wrong": ["lambda vectors, weights: vectors[0]"]}}
ALWAYS_WRONG = ["lambda *given, **named: None", "lambda *given, **named: given[0] if given else None"]
SEEDS = 3  # random instances on which a solution is tried
ROOM = 0.02  # of their span, by which numbers of a chart may differ on another machine


@dataclass(frozen=True)
class Exercise:
    """An exercise in which the reader writes a function: the names in the chapter, and answers to refuse."""

    function: str
    check: str
    solution: str
    wrong: list[str]


def exercises(notebook: Any) -> list[Exercise]:
    """The exercises with a check. The first argument of `check_...` is the name of the reader's function."""
    found = []
    for cell in notebook.cells:
        if "check" in cell.metadata.get("tags", ()):
            check, function = re.findall(r"^@check\ndef (check_\w+)\((\w+), random\):", cell.source, re.M)[0]
            own = cell.metadata.get("taskvec_mini", {}).get("wrong", [])
            found.append(Exercise(function, check, f"{function}_solution", ALWAYS_WRONG + own))
    return found


def faults(notebook: Any, namespace: Mapping[str, Any]) -> list[str]:
    """What is wrong with the exercises of a chapter that has been run, in the chapter's own names.

    The cell that the reader fills must be what is checked, so its name still has to hold the three dots. The
    solution has to pass on further random instances, and no wrong answer may.
    """

    def said(function: Any, seed: int) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            namespace[each.check](function, seed=seed)
        return printed.getvalue().strip()

    wrong = []
    for each in exercises(notebook):
        if said(namespace[each.function], 0) != NOT_WRITTEN:
            wrong.append(f"{each.check} does not find {each.function} unwritten")
        wrong += [
            f"{each.check} says of its solution, with seed {seed}: {verdict}"
            for seed in range(SEEDS)
            if (verdict := said(namespace[each.solution], seed)) != "correct"
        ]
        wrong += [
            f"{each.check} accepts {answer}"
            for answer in each.wrong
            if not said(eval(answer, dict(namespace)), 0).startswith("not yet")
        ]
    return wrong


def differences(stored: list[Chart], computed: list[Chart]) -> list[str]:
    """Where charts do not hold the same: words and sliders must be equal, numbers nearly."""
    if len(stored) != len(computed):
        return [f"{len(stored)} charts are stored, {len(computed)} were drawn"]
    found = []
    for number, (before, after) in enumerate(zip(stored, computed, strict=True), 1):
        if before.sliders != after.sliders:
            found.append(f"chart {number}: other sliders")
        for old, new in zip(before.panels, after.panels, strict=True):
            pairs = {axis: [[row[axis] for row in panel.rows] for panel in (old, new)] for axis in ("x", "y")}
            found += [
                f"chart {number}: other values of {a}" for a, pair in pairs.items() if not _alike(*pair)
            ]
    return found


def _alike(stored: list[str], computed: list[str]) -> bool:
    try:
        numbers = [float(value) for value in stored]
        others = [float(value) for value in computed]
    except ValueError:
        return stored == computed
    room = ROOM * (max(numbers) - min(numbers)) + 1e-12
    return len(numbers) == len(others) and all(
        abs(one - other) <= room for one, other in zip(numbers, others, strict=True)
    )


def stored_charts(notebook: Any) -> list[Chart]:
    """The charts among the stored outputs of a chapter."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [chart for output in outputs for chart in charts_in(output.get("data", {}).get("text/html", ""))]


def summary(notebook: Any) -> str:
    """What `report` says of a chapter in which all is right."""
    tried = [each.wrong for each in exercises(notebook)]
    answers = sum(map(len, tried))
    charts = len(stored_charts(notebook))
    return f"{len(tried)} checks refuse {answers} wrong answers; {charts} charts are as stored"


def report(notebook: Any, namespace: Mapping[str, Any], *, results: list[Any]) -> str:
    """What is wrong with a chapter that has just been run, a line each; or its `summary`.

    Args:
        notebook: the stored chapter.
        namespace: the names of its kernel.
        results: what its cells have returned.
    """
    bundles = [each._repr_mimebundle_() for each in results if hasattr(each, "_repr_mimebundle_")]
    shown = [bundle[0] if isinstance(bundle, tuple) else bundle for bundle in bundles]
    drawn = [chart for bundle in shown for chart in charts_in(bundle.get("text/html", ""))]
    wrong = faults(notebook, namespace)
    wrong += differences(stored_charts(notebook), drawn)
    return "\n".join(wrong) or summary(notebook)


def results_from_now_on() -> list[Any]:
    """A list that gets what every later cell of this kernel returns; nbval keeps no history of them."""
    from IPython import get_ipython

    results: list[Any] = []
    get_ipython().events.register("post_run_cell", lambda done: results.append(done.result))  # type: ignore[union-attr]
    return results


def with_checks(notebook: Any, path: Path) -> Any:
    """The chapter between two more cells, of which the last prints the `report`; it stores the summary."""
    first = nbformat.v4.new_code_cell(
        f"import sys\n\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import chapter_checks\n\nresults_of_cells = chapter_checks.results_from_now_on()",
        id="results-from-now-on",
        execution_count=1,
    )
    last = nbformat.v4.new_code_cell(
        "import nbformat\n\n"
        f"stored_chapter = nbformat.read({str(path)!r}, as_version=4)\n"
        "print(chapter_checks.report(stored_chapter, globals(), results=results_of_cells))",
        id="what-only-a-run-can-tell",
        outputs=[nbformat.v4.new_output("stream", name="stdout", text=summary(notebook) + "\n")],
        execution_count=1,
    )
    longer = copy.deepcopy(notebook)
    longer.cells = [first, *longer.cells, last]
    return longer
