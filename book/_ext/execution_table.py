"""The directive `execution-table`: how long each chapter ran, where and with what.

It shows recorded/execution.json, which `make book` writes afresh for its machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class ExecutionTable(SphinxDirective):
    """Two tables: the seconds of every chapter, and the versions they ran with."""

    def run(self) -> list[nodes.Node]:
        folder = Path(self.env.doc2path(self.env.docname)).parent
        path = folder / "recorded" / "execution.json"
        self.env.note_dependency(str(path))
        record = json.loads(path.read_text(encoding="utf-8"))
        seconds: dict[str, float] = record["chapters"]
        rows = [[title(folder, name), f"{value:.1f}"] for name, value in seconds.items()]
        rows.append(["All chapters", f"{sum(seconds.values()):.1f}"])
        where = f"Run on {record['date']} on {record['machine']}."
        versions = [[*pair] for pair in record["versions"].items()]
        return [
            nodes.paragraph(text=where),
            table(["Chapter", "Seconds"], rows, widths=[80, 20]),
            table(["Package", "Version"], versions, widths=[80, 20]),
        ]


def title(folder: Path, name: str) -> str:
    """The heading of a chapter's first cell."""
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    heading: str = notebook.cells[0].source.splitlines()[0]
    return heading.lstrip("# ").strip()


def table(head: list[str], rows: list[list[str]], *, widths: list[int]) -> nodes.table:
    """A docutils table of plain texts."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *[_row(row) for row in rows])
    return nodes.table("", group, classes=["execution-table"])


def _row(texts: list[str]) -> nodes.row:
    return nodes.row("", *[nodes.entry("", nodes.paragraph(text=text)) for text in texts])


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("execution-table", ExecutionTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
