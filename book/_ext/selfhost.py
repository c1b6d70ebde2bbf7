"""Serve what a page loads from the site itself, offline and as plain files too.

The chapters name public addresses, because they are also read on GitHub and in Colab. On a
built page each of them becomes a path to a file under `_static`. MathJax needs no such
change: `_config.yml` names its file.
"""

from __future__ import annotations

import re
from typing import Any

CHARTS = re.compile(r"https://cdn\.jsdelivr\.net/npm/(vega|vega-lite|vega-embed)@[\w.]+(?:/[\w./-]*)?")
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
# A page opened as a file may not read its neighbours: the search lists titles alone.
SEARCH_AS_FILES = """
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
"""


def localise(body: str, static: str) -> str:
    """`body` with every public address that a page would load put under `static`."""
    body = CHARTS.sub(lambda match: f"{static}/vendor/{match.group(1)}.min.js", body)
    return body.replace(f'src="{BADGE}"', f'src="{static}/colab-badge.svg"')


def _page(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    if context.get("body"):
        static = context["pathto"]("_static/x", 1).rpartition("/")[0]
        context["body"] = localise(context["body"], static)
    if pagename == "search":
        app.add_js_file(None, body=SEARCH_AS_FILES, priority=900)
    # The scripts of a button for a kernel elsewhere: there is no such button here, and they
    # declare a constant twice.
    scripts = context["script_files"]
    scripts[:] = [script for script in scripts if "thebe" not in _text(script)]


def _text(script: Any) -> str:
    return f"{script} {getattr(script, 'attributes', {}).get('body', '')}".lower()


def setup(app: Any) -> dict[str, Any]:
    app.connect("html-page-context", _page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
