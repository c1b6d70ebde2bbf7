"""The chapters keep the book's conventions (CONTRIBUTING.md), and their stored outputs are canonical."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import torch
import yaml

from charts import charts_in
from conftest import CHAPTERS, ROOT
from scripts import execute, home
from taskvec_mini.benchmarks.cli.parser import parser
from taskvec_mini.exercises import NOT_WRITTEN

RECORD = execute.read_record(ROOT / "book" / "recorded" / "execution.json")
EXERCISE = re.compile(
    r"\*\*Exercise (\d) \((?:\d+|an?|two|three) \w+(?:, an? (picture|experiment|question|project))?\)\. "
)
# A result: a decimal number, or one with an exponent. Whole numbers count things and settings.
RESULT = re.compile(r"(?<![\w.,])\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)(?![\w.]*\w)")
NOT_PROSE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\[arXiv:[^)]*\)|\]\([^)]*\)|<[^>]+>", flags=re.DOTALL
)
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def every_code_cell() -> list[tuple[Path, Any]]:
    return [(path, cell) for path in CHAPTERS for cell in code_cells(read(path))]


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def prose(notebook: Any, *, without: str = "") -> str:
    """The chapter's sentences, without the cells of a tag: no code, no formulas, no addresses."""
    cells = [cell for cell in markdown_cells(notebook) if without not in tags(cell)]
    return NOT_PROSE.sub(" ", "\n\n".join(cell.source for cell in cells))


def printed(notebook: Any) -> str:
    """The code and the text it printed; what a chart carries as data does not count."""
    texts = []
    for cell in code_cells(notebook):
        texts.append(cell.source)
        for output in cell.outputs:
            texts.append(output.get("text", ""))
            texts.append(output.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)


def unprinted_numbers(notebook: Any) -> list[str]:
    """Results in the prose that no cell prints and the notebook's metadata do not explain."""
    quoted = notebook.metadata.get("taskvec_mini", {}).get("quoted", {})
    known = {float(number) for number in RESULT.findall(printed(notebook))}
    known |= {float(number) for number in quoted}
    return [number for number in RESULT.findall(prose(notebook)) if float(number) not in known]


def shows_picture(cell: Any) -> bool:
    """Whether the cell draws a figure; a chart with sliders describes itself and is tested in the browser."""
    drawn = [set(output.get("data", {})) for output in cell.outputs]
    return any(
        kinds & {"image/png", "image/svg+xml", "image/jpeg"} and "text/html" not in kinds for kinds in drawn
    )


def shows_chart(cell: Any) -> bool:
    return any(charts_in(output.get("data", {}).get("text/html", "")) for output in cell.outputs)


def test_there_are_chapters_and_the_table_of_contents_names_every_page() -> None:
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [contents["root"], *(entry["file"] for part in contents["parts"] for entry in part["chapters"])]
    written = [path for path in (ROOT / "book").rglob("*.md") if path.name != "README.md"]
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in written}
    chapters = {path.relative_to(ROOT).with_suffix("").as_posix() for path in CHAPTERS}
    assert chapters
    assert sorted(listed) == sorted(pages | chapters)
    assert len(list((ROOT / "book").glob("*.ipynb"))) == len(chapters)


def test_stored_files_are_canonical() -> None:
    stale = [
        path.name for path in CHAPTERS if execute.tidy(read(path), path.stem) != path.read_bytes().decode()
    ]
    assert not stale, f"run: make execute CHAPTERS=... for {stale}"


def test_every_cell_ran_and_its_outputs_come_out_again_elsewhere() -> None:
    """None failed unmeant; none shows a widget or an address of memory; only sliders are compared apart.

    The rows of those are compared in test_execution.py, with room for the rounding of another machine.
    """
    bad = []
    for path, cell in every_code_cell():
        shown = [
            output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs
        ]
        failed = any(output.output_type == "error" for output in cell.outputs)
        found = {
            "never ran": not cell.execution_count,
            "failed": failed and "raises-exception" not in tags(cell),
            "shows a widget": any("widget" in kind for o in cell.outputs for kind in o.get("data", {})),
            "shows an address": any(re.search(r"0x[0-9a-f]{6,}", text) for text in shown),
            "is skipped": "nbval-skip" in tags(cell),
            "is not compared": ("nbval-ignore-output" in tags(cell)) != shows_chart(cell),
        }
        bad += [f"{path.stem}: {what}: {cell.source[:60]!r}" for what, is_so in found.items() if is_so]
    bad += [f"{path.stem} stores widgets" for path in CHAPTERS if "widgets" in read(path).metadata]
    assert not bad, "\n".join(bad)


def test_open_cells_are_short_and_the_prose_is_as_long_as_a_chapter() -> None:
    """What lies in a drawer may be as long as it needs; answers to questions are no part of the reading."""
    bad = []
    for path in CHAPTERS:
        cells = [cell for cell in code_cells(read(path)) if not tags(cell) & execute.FOLDED]
        lengths = sorted(len([line for line in cell.source.splitlines() if line.strip()]) for cell in cells)
        most = lengths[math.ceil(0.9 * len(lengths)) - 1]
        if statistics.median(lengths) > 6 or most > 18 or lengths[-1] > 25:
            bad.append(f"{path.stem}: lines of its cells: {lengths}")
        words = len(re.findall(r"\w[\w'’-]*", prose(read(path), without="solution")))
        if not 1000 <= words <= 2000:
            bad.append(f"{path.stem}: {words} words")
    assert not bad, "\n".join(bad)


def test_every_chapter_begins_with_thesis_seconds_badge_and_a_figure_and_has_sliders() -> None:
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    owner = home.current().removeprefix("https://github.com/")
    bad = []
    for path in CHAPTERS:
        cells = read(path).cells
        first = cells[0].source
        title, thesis = first.split("\n\n")[:2]
        link = f"https://colab.research.google.com/github/{owner}/blob/main/book/{path.name}"
        seconds = RECORD["chapters"][path.stem]
        stated = execute.RUNS_IN.search(first)
        found = {
            "title": re.fullmatch(r"# \S.*", title),
            "thesis": thesis.startswith("> *"),
            "badge": f"[![Open in Colab]({badge})]({link})" in first,
            "needs": "· needs " in first,
            "seconds": stated and int(stated.group(1)) == execute.stated_seconds(seconds) and seconds <= 60,
            "figure": any(cell.cell_type == "code" and shows_picture(cell) for cell in cells[:6]),
            "sliders": any(shows_chart(cell) for cell in code_cells(read(path))),
        }
        bad += [f"{path.stem}: {what}" for what, is_there in found.items() if not is_there]
    assert not bad, "\n".join(bad)


def test_the_record_names_these_chapters_and_no_others() -> None:
    assert set(RECORD["chapters"]) == {path.stem for path in CHAPTERS}
    assert set(RECORD["versions"]) >= {"python", "torch", "numpy", "matplotlib", "jupyter-book"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", RECORD["date"])


def test_set_up_cells_are_identical_and_name_the_book_s_address() -> None:
    cells = [read(path).cells[1] for path in CHAPTERS]
    assert all("remove-cell" in tags(cell) for cell in cells)
    assert len({cell.source for cell in cells}) == 1
    assert f'HOME = "{home.current()}"' in cells[0].source


def test_every_figure_has_a_name_a_caption_and_an_alternative_text() -> None:
    names = []
    for path, cell in every_code_cell():
        if not shows_picture(cell):
            continue
        chapter = path.stem
        described = cell.metadata.get("mystnb", {})
        names.append(described.get("figure", {}).get("name", ""))
        assert re.fullmatch(r"fig-[a-z0-9-]+", names[-1]), f"{chapter}: {cell.source}"
        assert len(described["figure"].get("caption", "")) >= 20, f"{chapter}: {names[-1]}"
        assert len(described.get("image", {}).get("alt", "")) >= 40, f"{chapter}: {names[-1]}"
        pictures = [o for o in cell.outputs if {"image/png", "image/svg+xml"} & set(o.get("data", {}))]
        assert len(pictures) == 1, f"{chapter}: {names[-1]} shows {len(pictures)} pictures under one caption"
    assert len(set(names)) == len(names)


@every_chapter
def test_the_exercises_of_each_kind_have_their_cells(path: Path) -> None:
    """CONTRIBUTING.md says which: a function, a picture or an experiment, a question, a project."""
    cells = read(path).cells
    asked = [
        i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and EXERCISE.search(cell.source)
    ]
    found = [EXERCISE.findall(cells[i].source) for i in asked]
    assert all(len(each) == 1 for each in found)
    numbers, kinds = zip(*(each[0] for each in found), strict=True)
    assert list(numbers) == [str(n) for n in range(1, len(numbers) + 1)]
    assert {"question", "project"} <= set(kinds)
    assert {"picture", "experiment"} & set(kinds)
    for i, kind in zip(asked, kinds, strict=True):
        expected = {
            "": [{"check", "hide-input"}, {"stub"}, {"solution", "hide-cell"}],
            "picture": [{"stub"}, {"solution", "hide-cell"}],
            "experiment": [{"stub"}, {"solution", "hide-cell"}],
            "question": [{"solution"}],
            "project": [],
        }[kind]
        following = cells[i + 1 : i + 1 + len(expected)]
        assert [tags(cell) for cell in following] == expected, cells[i].source
        if kind == "":
            function_exercise(cells[i], *following)
        elif kind == "question":
            assert following[0].source.startswith("<details><summary>Solution</summary>")
        elif kind != "project":
            solution = following[1]
            assert solution.source.startswith("# @title Solution\n")
            assert shows_picture(solution) or any("text" in output for output in solution.outputs)


def function_exercise(text: Any, check: Any, stub: Any, solution: Any) -> None:
    """The reader's function keeps its name after "Run all"; the solution has a name of its own."""
    assert "<details><summary>Hint</summary>" in text.source
    assert "*Classic mistake" in text.source
    name, function = re.findall(r"^@check\ndef (check_\w+)\((\w+), random\):", check.source, re.MULTILINE)[0]
    assert check.source.startswith("# @title How the check works\n")
    assert re.match(
        rf"def {function}\(.*\n    return \.\.\.\n\n\n{name}\({function}\)$", stub.source, re.DOTALL
    )
    assert solution.source.startswith("# @title Solution\n")
    assert f"def {function}_solution(" in solution.source
    assert solution.source.endswith(f"{name}({function}_solution)")
    said = [[output.get("text") for output in cell.outputs] for cell in (stub, solution)]
    assert said == [[f"{NOT_WRITTEN}\n"], ["correct\n"]]


@every_chapter
def test_folded_cells_say_what_they_hold_and_guesses_come_first(path: Path) -> None:
    cells = code_cells(read(path))[1:]
    folded = [cell for cell in cells if tags(cell) & {"hide-input", "hide-cell"}]
    unnamed = [cell.source[:60] for cell in folded if not execute.TITLE.match(cell.source)]
    assert not unnamed, unnamed
    assert all(cell in folded for cell in cells if shows_chart(cell)), "fold the call of explore"
    guesses = [cell for cell in cells if "remove-input" in tags(cell)]
    assert len(guesses) >= 2
    assert all(re.search(r"^guess\(", cell.source, re.MULTILINE) for cell in guesses)


def test_results_in_the_prose_are_printed_by_a_cell_or_quoted_with_their_source() -> None:
    """MyST directives and roles would show raw on GitHub and in Colab, so the prose has none."""
    bad = []
    for path in CHAPTERS:
        notebook = read(path)
        bad += [f"{path.stem}: {number} is typed" for number in unprinted_numbers(notebook)]
        quoted = notebook.metadata.get("taskvec_mini", {}).get("quoted", {})
        bad += [f"{path.stem}: {number} has no source" for number in quoted if len(quoted[number]) <= 10]
        for cell in markdown_cells(notebook):
            if re.search(r"^(```|:::)\s*\{|\{[a-z:]+\}`", cell.source, re.MULTILINE):
                bad.append(f"{path.stem}: a directive in {cell.source[:60]!r}")
    assert not bad, "\n".join(bad)


def notebook_of(markdown: str, *outputs: str, code: str = "f()", **metadata: Any) -> Any:
    cell = nbformat.v4.new_code_cell(
        code, outputs=[nbformat.v4.new_output("stream", text=t) for t in outputs]
    )
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(markdown), cell], metadata=metadata)


@pytest.mark.parametrize(
    ("markdown", "output", "found"),
    [
        ("It reaches 0.93.", "accuracy 0.93\n", []),
        ("It reaches 0.94.", "accuracy 0.93\n", ["0.94"]),
        ("An error of 1e-13 and 2.5e-3.", "error 1e-13", ["2.5e-3"]),
        ("In $x = 0.5$, `0.25` and [a link](https://example.org/0.75) nothing is claimed.", "", []),
        ("In 3 of 12 runs, see 2.1.", "", ["2.1"]),
        ("Half of 0.50 is 0.25", "0.5 and 0.250", []),
    ],
)
def test_unprinted_numbers_are_found(markdown: str, output: str, found: list[str]) -> None:
    assert unprinted_numbers(notebook_of(markdown, output)) == found


def test_a_quoted_number_needs_its_source() -> None:
    quoted = {"taskvec_mini": {"quoted": {"0.92": "Ilharco et al. 2023, table 1"}}}
    assert unprinted_numbers(notebook_of("They report 0.92 and 0.93.", **quoted)) == ["0.93"]


# --- the cells that need a GPU, which no test of the chapters runs -----------------------------------------


def cells_of_chapter_8(words: str) -> list[str]:
    notebook = read(next(path for path in CHAPTERS if path.stem.startswith("08")))
    return [cell.source for cell in code_cells(notebook) if words in cell.source]


def test_where_there_is_a_gpu_the_cells_run_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open_clip")
    scope: dict[str, Any] = {"torch": SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))}
    exec(cells_of_chapter_8("def on_a_gpu")[0], scope)
    scope["on_a_gpu"]("throughput --backbone tiny-clip --images 4 --batch-size 2 --passes 1 --device cpu")
    assert "images/s" in capsys.readouterr().out


def test_the_command_line_takes_the_words_of_these_cells() -> None:
    said: list[str] = []
    scope = {"torch": torch, "find_spec": lambda name: True, "on_a_gpu": said.append}
    for cell in cells_of_chapter_8("\non_a_gpu(") + cells_of_chapter_8('on_a_gpu("throughput'):
        exec(cell, scope)
    found = {(options := parser().parse_args(words.split())).command: options for words in said}
    assert found.keys() == {"throughput", "record"}
    assert found["record"].gpu
    assert None not in (found["record"].data, found["record"].runs, found["record"].out)
