"""Figures on a phone: the drawing with stacked panels where there is one, else a frame in which it scrolls.

A cell's output carries both drawings (taskvec_mini/figures/shown.py). MyST-NB shows the wide one, in a file
that it names after the sum of its bytes; the narrow one goes into a file beside it. The pictures of other
pages are files, and their narrow drawings too: images/a.svg has images/a_narrow.svg.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import nbformat

NARROW = "application/vnd.taskvec-mini.narrow+svg"
PICTURE = re.compile(r'<img [^>]*src="([^"]*_images/([\w-]+)\.(?:svg|png))"[^>]*/?>')
WIDEST_SCREEN_FOR_THE_NARROW_ONE = 700  # pixels; wider ones show letters of 9 points at 11 pixels


def narrow_figures(notebook: Path) -> dict[str, str]:
    """The narrow drawings of a chapter: sum of the wide one -> SVG."""
    found = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if NARROW in data:
                wide = os.linesep.join(data["image/svg+xml"].splitlines())
                found[hashlib.sha256(wide.encode()).hexdigest()] = data[NARROW]
    return found


def narrow_files(page: Path) -> dict[str, str]:
    """The narrow drawings beside the pictures of a page: name of the wide one -> SVG."""
    files = page.parent.glob("images/*_narrow.svg")
    return {path.stem.removesuffix("_narrow"): path.read_text(encoding="utf-8") for path in files}


def _page(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    source = Path(app.env.doc2path(pagename)) if pagename in app.env.found_docs else None
    if source is None or not context.get("body"):
        return
    narrow = narrow_figures(source) if source.suffix == ".ipynb" else narrow_files(source)
    folder = Path(app.outdir) / "_images"
    folder.mkdir(exist_ok=True)

    def framed(match: re.Match[str]) -> str:
        image, address, name = match.group(0), match.group(1), match.group(2)
        if name not in narrow:
            return f'<span class="figure-frame" role="group" aria-label="figure" tabindex="0">{image}</span>'
        (folder / f"{name}-narrow.svg").write_text(narrow[name], encoding="utf-8")
        small = f"{address.rpartition('/')[0]}/{name}-narrow.svg"
        media = f"(max-width: {WIDEST_SCREEN_FOR_THE_NARROW_ONE}px)"
        return f'<picture><source media="{media}" srcset="{small}">{image}</picture>'

    context["body"] = PICTURE.sub(framed, context["body"])


def setup(app: Any) -> dict[str, Any]:
    app.connect("html-page-context", _page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
