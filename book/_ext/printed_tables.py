"""Tables that a chapter prints become tables of HTML: read out cell by cell, and never cut on a phone.

`taskvec_mini.scores.table` writes aligned text, which a notebook shows as it is and nbval compares. On a page
the columns are found again: two blanks or more, in every line, stand between them. A line printed just above
the table is its caption, unless the cell's metadata give one: {"taskvec_mini": {"caption": "…"}}. A cell that
calls `table` through a function of another cell has to have one.
"""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes

CALL = re.compile(r"(?<!\w)(?<!reported\.)table\(")  # reported.table reads a file
ALONE = re.compile(r"^[+\-−×]?[\d.,e+\-–%]+$")  # the name of a row, where it is a number: no words beside it
NUMBER = re.compile(r"^(below )?[+\-−×]?\d.*$|^(—|nothing)?$")


def prints_table(code: str, given: dict[str, Any]) -> bool:
    """Whether a cell prints tables: it calls `table`, or has a caption for one."""
    return bool(CALL.search(code)) or "caption" in given


def columns(lines: list[str]) -> list[tuple[int, int]]:
    """Where the columns of these lines begin and end: between them all lines have two blanks or more."""
    width = max(map(len, lines))
    padded = [line.ljust(width) for line in lines]
    blank = [all(line[i] == " " for line in padded) for i in range(width)]
    gaps = [i for i in range(width - 1) if blank[i] and blank[i + 1]]
    wide = {place for gap in gaps for place in (gap, gap + 1)}
    found: list[tuple[int, int]] = []
    for i in range(width):
        if i in wide:
            continue
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found


def find_table(lines: list[str]) -> tuple[int, int] | None:
    """The first and the last line, plus one, of the table among printed lines: the largest there is."""
    best, most = None, 0
    for start in range(len(lines)):
        for end in range(start + 2, len(lines) + 1):
            block = lines[start:end]
            if not all(line.strip() for line in block):
                break
            cells = len(block) * (len(columns(block)) - 1)
            if cells > most:
                best, most = (start, end), cells
    return best


def to_html(lines: list[str], *, caption: str) -> str:
    """The HTML of the lines of one table; the first is its head."""
    places = columns(lines)
    rows = [[line[start:end].strip() for start, end in places] for line in lines]
    numeric = [all((NUMBER if i else ALONE).match(row[i]) for row in rows[1:]) for i in range(len(places))]
    look = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(cell)}</th>' if cell else f"<td{kind}></td>"
        for cell, kind in zip(rows[0], look, strict=True)
    )
    body = []
    for row in rows[1:]:
        first = f'<th scope="row"{look[0]}>{html.escape(row[0])}</th>'
        rest = "".join(
            f"<td{kind}>{html.escape(cell)}</td>" for cell, kind in zip(row[1:], look[1:], strict=True)
        )
        body.append(f"<tr>{first}{rest}</tr>")
    label = html.escape(caption or f"Table: {', '.join(filter(None, rows[0]))}")
    shown = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="table-frame" role="region" aria-label="{label}" tabindex="0">'
        f'<table class="printed" style="--longest-name: {max(len(row[0]) for row in rows)}ch">{shown}'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def replaced(text: str, *, caption: str) -> list[tuple[str, str]]:
    """Printed text as pieces: ("text", lines) and ("table", HTML); one piece of text without a table."""
    lines = text.rstrip("\n").split("\n")
    found = find_table(lines)
    if found is None:
        return [("text", text)]
    start, end = found
    above, below = lines[:start], lines[end:]
    if not caption and above and above[-1].strip():
        caption = above.pop().strip().rstrip(":")
    pieces = [("table", to_html(lines[start:end], caption=caption))]
    if any(line.strip() for line in above):
        pieces = replaced("\n".join(above), caption="") + pieces
    if any(line.strip() for line in below):
        pieces += replaced("\n".join(below).lstrip("\n"), caption="")
    return pieces


def _tables(app: Any, doctree: nodes.document) -> None:
    for cell in list(doctree.findall(nodes.container)):
        if cell.get("nb_element") != "cell_code":
            continue
        given = cell["cell_metadata"].get("taskvec_mini", {})
        for output in list(cell.findall(nodes.literal_block)):
            if "stream" not in output["classes"] or not prints_table(_code(cell), given):
                continue
            new: list[nodes.Node] = []
            for kind, piece in replaced(output.astext(), caption=given.get("caption", "")):
                if kind == "table":
                    new.append(nodes.raw("", piece, format="html", classes=output["classes"]))
                else:
                    same = output.copy()
                    same.rawsource = piece
                    same += nodes.Text(piece)
                    new.append(same)
            output.replace_self(new)


def _code(cell: nodes.container) -> str:
    sources = [part for part in cell.findall(nodes.container) if part.get("nb_element") == "cell_code_source"]
    return sources[0].astext() if sources else ""


def setup(app: Any) -> dict[str, Any]:
    app.connect("doctree-read", _tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
