"""The script of the questions (taskvec_mini.explore.guess), on the pages that ask one and on no other."""

from __future__ import annotations

from typing import Any


def _page(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    if '<div class="guess"' in context.get("body", ""):
        app.add_js_file("guess.js", loading_method="defer")


def setup(app: Any) -> dict[str, Any]:
    app.connect("html-page-context", _page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
