"""The chapters for a class: without solutions and without results; and the solutions by themselves.

usage: python scripts/student.py

_build/student gets a notebook of each chapter that runs to its end with the exercises still empty, and
_build/answers one Markdown file with every exercise, its solution and its classic mistakes.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import execute, stored

ROOT = execute.ROOT
BADGE = re.compile(r"^\[!\[Open in Colab\].*\n?", re.MULTILINE)
PAGE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\.md[^)]*\)")
SOLUTION_DRAWER = re.compile(r"<details>\s*<summary>Solution</summary>.*?</details>", re.DOTALL)
SOLUTION_NAME = re.compile(r"\b\w+_solution\b")
MISTAKES = re.compile(r"^\*Classic mistakes:\*.*", re.MULTILINE)


class LeftoverError(Exception):
    """A cell of the class's notebook still asks for a solution; the message names chapter and cell."""


def without_solutions(notebook: Any, name: str) -> Any:
    """A copy for a class: no solutions, no lists of wrong answers, no outputs.

    Raises:
        LeftoverError: a cell that stays calls a solution.
    """
    copy = nbformat.from_dict(notebook)
    copy.cells = [cell for cell in copy.cells if not stored.is_solution(cell)]
    for index, cell in enumerate(copy.cells):
        if cell.cell_type == "markdown":
            text = SOLUTION_DRAWER.sub("", BADGE.sub("", stored.source(cell)))
            cell.source = PAGE_LINK.sub(r"\1", text)
            continue
        if used := SOLUTION_NAME.search(stored.source(cell)):
            raise LeftoverError(f"{name}, cell {index} calls {used.group(0)}, which a class does not have")
        cell.metadata.pop("taskvec_mini", None)
        cell.outputs, cell.execution_count = [], None
    return copy


def answers(notebook: Any) -> str:
    """Every exercise of a chapter with its solution and its classic mistakes, as Markdown."""
    parts, current = [f"# {stored.title(notebook)}"], None
    for cell in notebook.cells:
        text = stored.source(cell)
        for exercise in stored.exercises(cell):
            current = exercise
            parts.append(f"## {exercise.name} ({exercise.length}). {exercise.title}")
            parts += MISTAKES.findall(text)
        if current is None or not stored.is_solution(cell):
            continue
        parts.append(text if cell.cell_type == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def build(chapters: list[Path], folder: Path, notes: Path) -> list[Path]:
    """Write the class's notebooks into `folder` and the answers of all chapters into `notes`."""
    folder.mkdir(parents=True, exist_ok=True)
    notes.mkdir(parents=True, exist_ok=True)
    made, solved = [], []
    for path in chapters:
        notebook = stored.read(path)
        solved.append(answers(notebook))
        target = folder / path.name
        text = execute.tidy(without_solutions(notebook, path.stem), path.stem)
        target.write_text(text, encoding="utf-8", newline="\n")
        made.append(target)
    (notes / "answers.md").write_text("\n\n".join(solved), encoding="utf-8")
    return made


def main() -> int:
    folder, notes = ROOT / "_build" / "student", ROOT / "_build" / "answers"
    for old in (folder, notes):
        shutil.rmtree(old, ignore_errors=True)
    try:
        made = build(execute.chapters(ROOT / "book"), folder, notes)
    except LeftoverError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(made)} notebooks without solutions: {folder}\nThe solutions: {notes / 'answers.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
