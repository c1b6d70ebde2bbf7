"""What `scripts/check.py` asks in the kernel of a chapter finds accepted wrong answers and other charts."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

import chapter_checks
from conftest import CHAPTERS
from scripts import check, execute
from taskvec_mini.explore import Lines, Range, explore

CHECK = """def check_double(function):
    print("correct" if function(2) == 4 else "not yet: try 2")"""


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_has_three_checks_and_a_chart(path: Any) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert len(chapter_checks.trials(notebook)) == 3
    assert len(chapter_checks.stored_charts(notebook)) >= 1


def chapter(wrong: list[str], *, slope: float = 1.0) -> Any:
    metadata = {"taskvec_mini": {"wrong": wrong}}
    html = lines(slope)._repr_mimebundle_()["text/html"]
    output = nbformat.v4.new_output("display_data", {"text/html": html})
    cells = [
        nbformat.v4.new_code_cell(CHECK, metadata=metadata),
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


def report(notebook: Any, *, results: list[Any] | None = None) -> str:
    """Of a kernel in which the chapter has been run."""
    namespace: dict[str, Any] = {}
    exec(CHECK, namespace)
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
    assert report(chapter(["lambda x: x + 2", "lambda x: 3"])) == "check_double accepts lambda x: x + 2"


def test_other_charts_are_found_and_rounding_is_not() -> None:
    assert "charts are as stored" in report(chapter([], slope=1.001))
    assert report(chapter([], slope=1.1)) == "chart 1: other values of y"
    assert report(chapter([]), results=[]) == "1 charts are stored, 0 were drawn"


def test_the_cell_prints_the_report_in_a_kernel(tmp_path: Any) -> None:
    """And a copy in which a wrong answer is taken prints something else than it stores."""
    for wrong, same in (([], True), (["lambda x: 4"], False)):
        path = tmp_path / f"{len(wrong)}.ipynb"
        notebook = nbformat.v4.new_notebook(cells=chapter(wrong).cells[:1])
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
        assert "3 checks refuse" in longer[-1]["outputs"][0]["text"][0]
