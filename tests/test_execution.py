"""What only a run can tell: checks of exercises refuse wrong answers, charts hold what their code computes.

That a check takes the right answer shows in the chapter; the printed outputs are compared by nbval.
"""

from __future__ import annotations

import json
import re
from typing import Any

import nbformat
import pytest

from charts import Chart, charts_in
from conftest import CHAPTERS
from scripts import execute

# Wrong whatever the question. A check cell's metadata may add more answers, such as the classic mistakes:
# {"taskvec_mini": {"wrong": ["lambda vectors, weights: vectors[0]"]}}
ALWAYS_WRONG = ["lambda *given, **named: None", "lambda *given, **named: given[0] if given else None"]
TRIAL = """
import contextlib, io, json
said = []
for check, answers in json.loads({trials!r}):
    for answer in answers:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                globals()[check](eval(answer))
            except Exception as error:
                print(type(error).__name__, error)
        said.append([check, answer, printed.getvalue()])
print("SAID" + json.dumps(said))
"""


def trials(notebook: Any) -> list[tuple[str, list[str]]]:
    """Each check's name and the answers to try on it."""
    found = []
    for cell in notebook.cells:
        name = (
            re.search(r"^def (check_\w+)\(", cell.source, re.MULTILINE) if cell.cell_type == "code" else None
        )
        if name:
            own = cell.metadata.get("taskvec_mini", {}).get("wrong", [])
            found.append((name.group(1), ALWAYS_WRONG + own))
    return found


@pytest.fixture(scope="module", params=CHAPTERS, ids=lambda path: path.stem)
def stored_and_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    """The stored chapter, and the same chapter run now with the trials behind its last cell."""
    stored = nbformat.read(request.param, as_version=4)
    longer = nbformat.read(request.param, as_version=4)
    longer.cells.append(nbformat.v4.new_code_cell(TRIAL.format(trials=json.dumps(trials(stored)))))
    copy = tmp_path_factory.mktemp("run") / request.param.name
    nbformat.write(longer, copy)
    execute.kernel_environment()
    return stored, execute.execute(copy)[0]


def test_checks_refuse_wrong_answers(stored_and_run: tuple[Any, Any]) -> None:
    stored, ran = stored_and_run
    pieces = ran.cells[-1].outputs  # where a print is cut depends on the moment
    printed = "".join(piece.get("text", "") for piece in pieces)
    said = json.loads(printed.partition("SAID")[2])
    assert len({check for check, _, _ in said}) == len(trials(stored)) == 3
    accepted = [(check, answer) for check, answer, text in said if text.startswith("correct")]
    assert accepted == []


def all_charts(notebook: Any) -> list[Chart]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [chart for output in outputs for chart in charts_in(output.get("data", {}).get("text/html", ""))]


def test_charts_hold_what_their_code_computes(stored_and_run: tuple[Any, Any]) -> None:
    stored, ran = map(all_charts, stored_and_run)
    assert len(stored) == len(ran) >= 1
    for before, after in zip(stored, ran, strict=True):
        assert before.sliders == after.sliders
        for old, new in zip(before.panels, after.panels, strict=True):
            assert len(old.rows) == len(new.rows)
            for column in ("x", "y"):
                compare([row[column] for row in old.rows], [row[column] for row in new.rows])


def compare(stored: list[str], ran: list[str]) -> None:
    """Words must be equal; numbers may differ by 2% of their span, for the rounding of another machine."""
    try:
        numbers = [float(value) for value in stored]
    except ValueError:
        assert stored == ran
        return
    room = 0.02 * (max(numbers) - min(numbers)) + 1e-12
    assert [float(value) for value in ran] == pytest.approx(numbers, abs=room)
