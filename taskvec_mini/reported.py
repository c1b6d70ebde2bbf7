"""Tables of results that others published: read with a checksum, each with its source.

The tables lie beside the book, in book/reported. Its README.md says what each column means and which faults
are known; sources.json names the repository, the commit and the files behind each table, and its SHA-256.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from taskvec_mini import _checks, _files
from taskvec_mini.errors import UserError

__all__ = ["names", "source", "table"]

FOLDER = Path(__file__).resolve().parents[1] / "book" / "reported"
_REMEDY = (
    "the tables come with the book's repository: clone it and install the library from there with "
    "`pip install -e .`, or restore them with `git checkout -- book/reported`"
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def names() -> list[str]:
    """The names of all tables, in alphabetical order.

    Example:
        >>> "gradient_norms" in names()
        True
    """
    return sorted(_sources()["tables"])


def table(name: str, **where: int | float | str | None) -> list[dict[str, Any]]:
    """The rows of one table, each a dictionary from columns to values; you may change them, they are yours.

    A whole number is an int, another number a float, an empty cell None, anything else a str.

    Args:
        name: the table's name, without ".csv"; see `names`.
        where: column=value; only rows with exactly these values are returned.

    Raises:
        ValueError: if the name or a column is unknown, no row has these values, or the file is not the one
            whose checksum was recorded.
        FileNotFoundError: if the library was installed without the book's files.

    Example:
        >>> table("gradient_norms", dataset="DTD", epoch=1)
        [{'dataset': 'DTD', 'epoch': 1, 'mean_minibatch_gradient_norm': 123.46044, 'share': 0.124217}]
    """
    recorded = _checks.named_choice("table", name, _sources()["tables"])
    path = FOLDER / f"{name}.csv"
    _files.check_sha256(path, recorded["sha256"], remedy=_REMEDY)
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            row: dict[str, Any] = {}
            for column, text in line.items():
                if not text:
                    row[column] = None
                elif re.fullmatch(r"[+-]?\d+", text):
                    row[column] = int(text)
                else:
                    row[column] = float(text) if _NUMBER.fullmatch(text) else text
            rows.append(row)
    for column, wanted in where.items():
        present = {row[_checks.named_choice("column", column, dict.fromkeys(row, column))] for row in rows}
        rows = [row for row in rows if row[column] == wanted]
        if not rows:
            seen = ", ".join(sorted(map(repr, present))[:12])
            raise UserError(f"table {name!r} has no row with {column} = {wanted!r}; values there: {seen}")
    return rows


def source(name: str) -> str:
    """Where a table comes from, in one line: repository, commit, date, files, licence.

    Raises:
        ValueError: if there is no table of this name.

    Example:
        >>> print(source("gradient_norms").split(", notebooks")[0])
        crisostomi/task-vectors-playground at commit 57068573 (2025-01-29)
    """
    sources = _sources()
    recorded = _checks.named_choice("table", name, sources["tables"])
    places, licences = [], []
    for key, files in recorded["from"].items():
        place = sources["repositories"][key]
        places.append(f"{place['repository']} at commit {place['commit'][:8]} ({place['date']}), {files}")
        licences.append(place.get("licence", sources["licence"]))
    return f"{'; '.join(places)}. {'; '.join(dict.fromkeys(licences))}"


def _sources() -> dict[str, Any]:
    return _files.read_json(FOLDER / "sources.json", what="list of sources", remedy=_REMEDY)
