"""What the theme leaves to us: the book's title, readable colours of code, a valid list."""

from __future__ import annotations

from typing import Any

# Colours of code with a contrast of 7:1 or more; some of the theme's own are below 4.5:1.
CODE = {
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# docutils calls a bibliography a list, but its entries are no list items: a screen reader
# finds it empty.
BIBLIOGRAPHY = '<div role="list" class="citation-list">'


def _options(app: Any, config: Any) -> None:
    # html_theme_options in _config.yml would replace all that Jupyter Book puts there,
    # launch buttons too.
    options = config.html_theme_options
    options.update(CODE)
    options.setdefault("logo", {})["text"] = config.html_title


def _page(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    if body := context.get("body"):
        context["body"] = body.replace(BIBLIOGRAPHY, '<div class="citation-list">')


def setup(app: Any) -> dict[str, Any]:
    app.connect("config-inited", _options)
    app.connect("html-page-context", _page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
