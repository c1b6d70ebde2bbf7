"""What chapter 8 draws and quotes: arrows that reach their boxes, means that are those of their rows."""

from __future__ import annotations

import tomllib
from importlib.util import find_spec
from typing import Any

import matplotlib as mpl
import nbformat
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from conftest import CHAPTERS, ROOT

TABLES = "# @title The published table of one family"
MEANS = "# @title The published means, with their sources"


def cell(words: str) -> str:
    notebook = nbformat.read(next(path for path in CHAPTERS if path.stem.startswith("08")), as_version=4)
    (found,) = [each.source for each in notebook.cells if each.cell_type == "code" and words in each.source]
    return str(found)


def names_after(*sources: str) -> dict[str, Any]:
    eight = ["SUN397", "Cars", "RESISC45", "EuroSAT", "SVHN", "GTSRB", "MNIST", "DTD"]
    scope: dict[str, Any] = {"EIGHT": eight, "table": lambda *rows, **settings: ""}
    for source in sources:
        exec(source, scope)
    return scope


def test_no_arrow_of_the_diagram_floats() -> None:
    """Each begins at the edge of a box and ends at the edge of another, in both drawings."""
    with mpl.rc_context():
        figure = names_after(cell("get_bbox_patch"))["figure"]
        axes = figure.axes[0]
        for width in (4.6, 3.4):
            figure.set_size_inches(width, 3.7)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            renderer = canvas.get_renderer()
            labels = [each.get_window_extent(renderer) for each in axes.texts if each.get_bbox_patch()]
            arrows = [each.arrow_patch for each in axes.texts if getattr(each, "arrow_patch", None)]
            assert len(labels) == 7
            assert len(arrows) == 6
            for arrow in arrows:
                line = arrow.get_transform().transform_path(arrow.get_path()).vertices
                touched = [at_the_edge(line[0], labels), at_the_edge(line[2], labels)]
                assert [len(each) for each in touched] == [1, 1]
                assert touched[0] != touched[1]


def at_the_edge(point: Any, labels: list[Any]) -> list[int]:
    """Which labels a point touches: outside of the words, but no further away than the frame around them."""
    return [i for i, box in enumerate(labels) if box.padded(14).contains(*point) and not box.contains(*point)]


def test_published_means_are_those_of_their_rows() -> None:
    """To the rounding of eight printed numbers; a slip of the hand in one of them would be ten times that."""
    for name, row in names_after(cell(TABLES))["page"].items():
        assert sum(row[:8]) / 8 == pytest.approx(row[8], abs=0.11), name
        assert len(row) == 9, name


def test_the_means_by_family_repeat_the_table_of_family_c() -> None:
    scope = names_after(cell(TABLES), cell(MEANS))
    page, by_family = scope["page"], scope["by_family"]
    same = {
        "task arithmetic": "sum × 0.3",
        "TIES": "TIES × 0.3",
        "Iso-C": "Iso-C × 1.5",
        "Iso-CTS": "Iso-CTS × 1.5",
    }
    for name, row in by_family.items():
        listed = page.get(same.get(name, name))
        assert row["C"] == ("—" if listed is None else listed[8]), name
    individual = by_family.pop("individual")
    for family in "ABCD":
        others = [row[family] for row in by_family.values() if row[family] != "—"]
        assert max(others) < individual[family]


def test_what_colab_installs_is_what_the_package_asks_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {each for extra in extras["optional-dependencies"].values() for each in extra}
    needed = names_after(cell("# @title What Colab has to install"))["needed"]
    assert set(needed.values()) <= known
    assert all(find_spec(module) for module in needed)
