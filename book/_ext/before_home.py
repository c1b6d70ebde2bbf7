"""Before the book has a public address, no page shows a link or a badge that leads to the placeholder.

The placeholder's owner has two hyphens in a row, which no owner on GitHub can have. `make home` writes
another address into `_config.yml`, and with it all of this is shown.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from docutils import nodes


def is_placeholder(address: str) -> bool:
    """Whether a repository's address has an owner that nobody can have."""
    return "--" in urlsplit(address).path.split("/")[1]


def _options(app: Any, config: Any) -> None:
    options = config.html_theme_options
    app.placeholder = None
    if is_placeholder(options["repository_url"]):
        app.placeholder = urlsplit(options["repository_url"]).path
        options.update(launch_buttons={}, use_repository_button=False, use_issues_button=False)


def _links(app: Any, doctree: nodes.document) -> None:
    if app.placeholder is None:
        return
    for link in list(doctree.findall(nodes.reference)):
        if app.placeholder not in link.get("refuri", ""):
            continue
        if next(link.findall(nodes.image), None) is None:
            link.replace_self(link.children)
        elif len(link.parent.children) == 1:
            link.parent.parent.remove(link.parent)  # a badge's own paragraph
        else:
            link.parent.remove(link)


def setup(app: Any) -> dict[str, Any]:
    app.connect("config-inited", _options)
    app.connect("doctree-read", _links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
