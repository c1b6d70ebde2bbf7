"""What `scripts/check.py` asks in the kernel of a chapter finds faulty exercises and other charts."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

import chapter_checks
from conftest import CHAPTERS
from scripts import check, execute
from taskvec_mini.explore import Lines, Range, explore

CHECK = """import torch

from taskvec_mini.exercises import check


@check
def check_double(double, random):
    for number in (2, torch.randint(3, 100, (), generator=random).item()):
        if double(number) != 2 * number:
            return f"try {number}"
"""
STUB = """def double(number):
    return ...


check_double(double)
"""
SOLUTION = """def double_solution(number):
    return 2 * number
"""


def chapter(wrong: list[str], *, slope: float = 1.0) -> Any:
    metadata = {"taskvec_mini": {"wrong": wrong}}
    html = lines(slope)._repr_mimebundle_()["text/html"]
    output = nbformat.v4.new_output("display_data", {"text/html": html})
    cells = [
        nbformat.v4.new_code_cell(CHECK, metadata={"tags": ["check"]} | metadata),
        nbformat.v4.new_code_cell(STUB),
        nbformat.v4.new_code_cell(SOLUTION),
        nbformat.v4.new_code_cell("", outputs=[output]),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def lines(slope: float) -> Any:
    def compute(*, rate: float) -> list[dict[str, float]]:
        return [{"x": float(x), "y": slope * rate * x} for x in range(4)]

    return explore(
        compute,
        ranges={"rate": Range.steps([1.0, 2.0], default=1.0)},
        charts=Lines(x="x", y="y"),
        question="How steep?",
        description="Lines of two slopes.",
    )


def report(notebook: Any, *, results: list[Any] | None = None, run: str = CHECK + STUB + SOLUTION) -> str:
    """Of a kernel in which the chapter has been run."""
    namespace: dict[str, Any] = {}
    exec(run, namespace)
    shown = [None, 5, lines(1.0)] if results is None else results
    return chapter_checks.report(notebook, namespace, results=shown)


@pytest.fixture(autouse=True)
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKVEC_MINI_EXPLORE", "static")


def test_a_chapter_in_which_all_is_right() -> None:
    notebook = chapter(["lambda x: x + 1", "lambda x: 1 / 0"])
    expected = "1 checks refuse 4 wrong answers; 1 charts are as stored"
    assert report(notebook) == chapter_checks.summary(notebook) == expected


def test_a_wrong_answer_that_is_taken_is_named() -> None:
    assert report(chapter(["lambda x: x + x", "lambda x: 3"])) == "check_double accepts lambda x: x + x"


def test_an_answer_that_knows_only_the_instance_in_the_open_is_refused() -> None:
    assert "charts are as stored" in report(chapter(["lambda x: x + 2", "lambda x: 4"]))


def test_a_solution_that_fails_and_one_that_takes_the_reader_s_name_are_found() -> None:
    for_two = SOLUTION.replace("2 * number", "2 + number")
    assert "check_double says of its solution, with seed 0: not yet: try" in report(
        chapter([]), run=CHECK + STUB + for_two
    )
    stored = report(chapter([]), run=CHECK + STUB + SOLUTION + "double = double_solution")
    assert stored == "check_double does not find double unwritten"


def test_other_charts_are_found_and_rounding_is_not() -> None:
    assert "charts are as stored" in report(chapter([], slope=1.001))
    assert report(chapter([], slope=1.1)) == "chart 1: other values of y"
    assert report(chapter([]), results=[]) == "1 charts are stored, 0 were drawn"


def test_the_cell_prints_the_report_in_a_kernel(tmp_path: Any) -> None:
    """And a copy in which a wrong answer is taken prints something else than it stores."""
    for wrong, same in (([], True), (["lambda x: x * 2"], False)):
        path = tmp_path / f"{len(wrong)}.ipynb"
        notebook = nbformat.v4.new_notebook(cells=chapter(wrong).cells[:3])
        nbformat.write(notebook, path)
        longer = chapter_checks.with_checks(notebook, path)
        stored = longer.cells[-1].outputs[0].text
        copy = tmp_path / f"copy_{len(wrong)}.ipynb"
        nbformat.write(longer, copy)
        execute.kernel_environment()
        ran = execute.execute(copy)[0]
        assert (ran.cells[-1].outputs[0].text == stored) == same


def test_nbval_gets_every_chapter_with_that_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    stage = check.build.stage
    monkeypatch.setattr(check, "build", SimpleNamespace(stage=lambda _: stage(tmp_path / "checked")))
    copies = check.checked_chapters()
    assert [path.name for path in copies] == [path.name for path in CHAPTERS]
    for copied, original in zip(copies, CHAPTERS, strict=True):
        longer, stored = (
            json.loads(path.read_text(encoding="utf-8"))["cells"] for path in (copied, original)
        )
        assert [cell["source"] for cell in longer[1:-1]] == [cell["source"] for cell in stored]
        assert re.search(r"[1-9] checks refuse .* [1-9] charts", longer[-1]["outputs"][0]["text"][0])
