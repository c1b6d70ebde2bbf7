"""What the theme leaves to us: the title, colours of code, lists, names of drawers, formulas in a line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes

# Colours of code with a contrast of 7:1 or more; some of the theme's own are below 4.5:1.
CODE = {
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# docutils calls a bibliography a list, but its entries are no list items: a screen reader
# finds it empty.
DRAWER = '<summary aria-label="Toggle hidden content">'  # would be read out in place of the drawer's name
ICONS = re.compile(r'<script (src="[^"]*/fontawesome\.js)')
SENTENCE = 40  # letters of a cell
SHORT = 30  # letters of code that a phone has room for in a line
MARKS = re.compile("[.,:;!?)’”]+")
PICTURES = {"image/png", "image/svg+xml"}
BIBLIOGRAPHY = '<div role="list" class="citation-list">'


def _options(app: Any, config: Any) -> None:
    # html_theme_options in _config.yml would replace all that Jupyter Book puts there,
    # launch buttons too.
    options = config.html_theme_options
    options.update(CODE)
    options.setdefault("logo", {})["text"] = config.html_title


def _page(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    if body := context.get("body"):
        body = body.replace(BIBLIOGRAPHY, '<div class="citation-list">')
        context["body"] = body.replace(DRAWER, "<summary>")


def _drawers(app: Any, doctree: nodes.document) -> None:
    """Name each folded cell for what it holds, unless its metadata do.

    They say {"mystnb": {"code_prompt_show": "…"}}.
    """
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code" or not cell.get("hide_mode"):
            continue
        given = cell["cell_metadata"].get("mystnb", {})
        if "code_prompt_show" not in given:
            cell["prompt_show"] = _drawer(cell)
        cell["prompt_hide"] = given.get("code_prompt_hide", cell["prompt_show"])


def _merged(app: Any, doctree: nodes.document) -> None:
    """Folded cells that follow each other and show nothing become one drawer, that of the last of them."""
    for cell in list(doctree.findall(nodes.container)):
        following = cell.next_node(descend=False, siblings=True)
        if not (_folded(cell) and len(cell.children) == 1 and isinstance(following, nodes.container)):
            continue
        given = cell["cell_metadata"].get("mystnb", {})
        if _folded(following) and "code_prompt_show" not in given:
            following.children[0].children[:0] = cell.children[0].children
            for block in following.children[0].children:
                block.parent = following.children[0]
            cell.parent.remove(cell)


def _folded(cell: nodes.container) -> bool:
    """Whether the code of this cell is folded, and its output is not."""
    folded: bool = cell.get("nb_element") == "cell_code" and cell.get("hide_mode") == "input"
    return folded


def _with_their_marks(app: Any, doctree: nodes.document) -> None:
    """Formulas and short code keep the punctuation behind them: a browser would break between the two."""
    short = [code for code in doctree.findall(nodes.literal) if len(code.astext()) <= SHORT]
    for part in [*doctree.findall(nodes.math), *short]:
        following = part.next_node(descend=False, siblings=True)
        if isinstance(following, nodes.Text) and (marks := MARKS.match(str(following))):
            paragraph, place = part.parent, part.parent.index(part)  # equal texts are one to `replace`
            together = nodes.inline("", "", classes=["together"])
            paragraph[place] = together
            together += [part, nodes.Text(marks.group())]
            paragraph[place + 1] = nodes.Text(str(following)[marks.end() :])


def _columns_of_sentences(app: Any, doctree: nodes.document) -> None:
    """Name the columns of a table that hold sentences, which should not stand a word a line on a phone."""
    for table in doctree.findall(nodes.table):
        rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
        for column in zip(*rows, strict=False):
            if max(len(cell.astext()) for cell in column) > SENTENCE:
                for cell in column:
                    cell["classes"].append("of-sentences")


def _drawer(cell: nodes.container) -> str:
    if cell["hide_mode"] == "all":
        return "Solution"
    kinds = {node["mime_type"] for node in cell.findall(nodes.Element) if "mime_type" in node}
    if "text/html" in kinds and kinds & PICTURES:
        return "How the chart is made"
    if kinds & PICTURES:
        return "How the figure is drawn"
    return "How this is computed"


def _icons_later(app: Any, exception: Exception | None) -> None:
    """Let the first view not wait for the icons, whose large script the theme's template has in the head."""
    if exception is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            text = path.read_text(encoding="utf-8")
            path.write_text(ICONS.sub(r"<script defer \1", text), encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    app.connect("config-inited", _options)
    app.connect("doctree-read", _merged)
    app.connect("doctree-read", _drawers)
    app.connect("doctree-read", _with_their_marks)
    app.connect("doctree-read", _columns_of_sentences)
    app.connect("html-page-context", _page)
    app.connect("build-finished", _icons_later)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
