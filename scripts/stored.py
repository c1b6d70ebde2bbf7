"""The chapters as they are stored: titles, theses, sections, figures, exercises.

Slides, the picture of the README and the map of the chapters are made from these, so none of them can say
something else than the chapters do.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

THESIS = re.compile(r"^> \*(.+)\*$", re.MULTILINE)
SECTION_THESIS = re.compile(r"\A## .+\n+\*([^*\n]+)\*\n", re.MULTILINE)
NEEDS = re.compile(r"\(([^()\s]+)\.ipynb\)")
EXERCISE = re.compile(r"\*\*(Exercise \d+) \(([^)]+)\)\.\s+(.+?)\*\*")
DRAWER = re.compile(r"<details>.*?</details>", re.DOTALL)
MEDIA = {"image/svg+xml": "svg", "image/png": "png"}  # the better one first
NARROW = "application/vnd.taskvec-mini.narrow+svg"  # the drawing for a phone (taskvec_mini/figures/shown.py)


@dataclass(frozen=True)
class Figure:
    """A picture that a cell drew, with the words that belong to it.

    Attributes:
        name: its name in the book, "" where it has none.
        caption: Markdown.
        alt: what it shows, in words.
        media: "image/svg+xml" or "image/png".
        content: the bytes of the file.
        chart: whether it stands for a chart with sliders, at their first positions.
        narrow: the bytes of its drawing for a phone, an SVG; empty where it has none.
    """

    name: str
    caption: str
    alt: str
    media: str
    content: bytes
    chart: bool
    narrow: bytes = b""

    @property
    def address(self) -> str:
        """The picture as an address that holds all of it."""
        return f"data:{self.media};base64,{base64.b64encode(self.content).decode()}"


def source(cell: Any) -> str:
    """A cell's text."""
    text: str = cell.source
    return text


def title(notebook: Any) -> str:
    """The heading of the first cell."""
    return source(notebook.cells[0]).splitlines()[0].lstrip("# ").strip()


def thesis(notebook: Any) -> str:
    """The sentence under the title."""
    found = THESIS.search(source(notebook.cells[0]))
    return found.group(1) if found else ""


def needs(notebook: Any) -> list[str]:
    """The chapters, by the names of their files, that the first cell asks for."""
    for line in source(notebook.cells[0]).splitlines():
        if line.startswith("runs on a CPU"):
            return NEEDS.findall(line)
    return []


@dataclass(frozen=True)
class Exercise:
    """What an exercise's title says: "Exercise 1", "5 minutes, a question", and what it is about."""

    name: str
    length: str
    title: str

    @property
    def minutes(self) -> int:
        """The stated minutes; 0 for a project, which takes as long as it takes."""
        found = re.match(r"(\d+) minutes", self.length)
        return int(found.group(1)) if found else 0


def exercises(cell: Any) -> list[Exercise]:
    """The exercises that a cell sets."""
    found = EXERCISE.findall(source(cell)) if cell.cell_type == "markdown" else []
    return [Exercise(name, length, heading.rstrip(".")) for name, length, heading in found]


def tags(cell: Any) -> set[str]:
    """A cell's tags."""
    return set(cell.metadata.get("tags", ()))


def is_solution(cell: Any) -> bool:
    """Whether a cell gives an exercise away: by its tag, or folded whole with a call of a check."""
    called = re.search(r"^check_\w+\(", source(cell), re.MULTILINE)
    return "solution" in tags(cell) or ("hide-cell" in tags(cell) and called is not None)


def words(notebook: Any) -> int:
    """The words of the prose, without code and without what is folded away."""
    prose = [DRAWER.sub("", source(cell)) for cell in notebook.cells if cell.cell_type == "markdown"]
    return len(re.findall(r"[^\W\d_]{2,}", re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", " ", "\n".join(prose))))


def minutes(notebook: Any) -> int:
    """About how long a chapter takes, to five minutes: 150 words a minute, and the exercises as they say."""
    listed = [exercise for cell in notebook.cells for exercise in exercises(cell)]
    return 5 * round((words(notebook) / 150 + sum(exercise.minutes for exercise in listed)) / 5)


def figures(cell: Any) -> Iterator[Figure]:
    """The pictures that a code cell drew; of several forms of one picture the best."""
    about = cell.metadata.get("mystnb", {})
    figure, image = about.get("figure", {}), about.get("image", {})
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        media = next((each for each in MEDIA if each in data), None)
        if media is None:
            continue
        stored = "".join(data[media])
        chart = "text/html" in data
        words = "".join(data.get("text/plain", "")).removeprefix("[chart with sliders] ")
        yield Figure(
            name=figure.get("name", ""),
            caption=figure.get("caption", words if chart else ""),
            alt=image.get("alt", words),
            media=media,
            content=base64.b64decode(stored) if media == "image/png" else stored.encode(),
            chart=chart,
            narrow="".join(data.get(NARROW, "")).encode(),
        )


def read(path: Path) -> Any:
    """The notebook at `path`."""
    return nbformat.read(path, as_version=4)


def figure(path: Path, name: str) -> Figure:
    """The figure of that name in the notebook at `path`.

    Raises:
        LookupError: it has none.
    """
    for cell in read(path).cells:
        for found in figures(cell):
            if found.name == name:
                return found
    raise LookupError(f"{path.name} stores no figure named {name}; run it with scripts/execute.py")
