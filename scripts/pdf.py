"""The whole book as one PDF, and the cheat sheet as another, printed by a headless Chromium.

usage: python scripts/pdf.py

The pages are built from the stored outputs, joined into one, with every drawer open, and printed until the
page numbers of the contents, read from the print before, are those of the print itself. The files are
_build/pdf/book.pdf and _build/pdf/cheat_sheet.pdf.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import build, get_chromium

ROOT = build.ROOT
LOOK = Path(__file__).with_name("paper.css")
CHEAT_SHEET = "book/teach/cheat_sheet"
OWN_NAMES = (".explore", ".guess")  # their scripts know them by name
MOST_PRINTS = 5
FLAGS = ["--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
READY = """async () => {
  if (document.querySelector(".math")) await MathJax.startup.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
  return [...document.querySelectorAll(".explore")].every((e) => /ready|failed/.test(e.dataset.state));
}"""
# In the file that Chromium writes: the name of a place, and the object of the page it lies on.
PLACE = re.compile(rb"/(\S+) \[(\d+) 0 R /XYZ")
PAGE_OBJECT = re.compile(rb"(?:^|\n)(\d+) 0 obj\n<<\s*/Type /Page\b(?!s)")


@dataclass(frozen=True)
class Page:
    """A built page of the book: its name in the table of contents, its part, its soup."""

    name: str
    part: str
    soup: BeautifulSoup

    @property
    def article(self) -> Any:
        return self.soup.select_one("article")

    @property
    def key(self) -> str:
        """What the names on this page begin with in the joined one."""
        return self.name.removeprefix("book/").replace("/", "-")


def pages(site: Path, contents: dict[str, Any]) -> list[Page]:
    """The built pages in reading order."""
    names = [(contents["root"], "")]
    names += [(entry["file"], part["caption"]) for part in contents["parts"] for entry in part["chapters"]]
    return [
        Page(name, part, BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser"))
        for name, part in names
    ]


def join(page: Page, known: dict[str, Page]) -> None:
    """Make a page's article fit to stand beside the others: names, links, addresses, drawers."""
    article = page.article
    own = {id(each) for selector in OWN_NAMES for box in article.select(selector) for each in [box, *box()]}
    for element in [*page.soup.head.find_all(["link", "script"]), *article.find_all(True)]:
        for attribute in ("id", "for", "aria-labelledby", "aria-describedby", "aria-controls"):
            if element.has_attr(attribute) and id(element) not in own:
                element[attribute] = f"{page.key}--{element[attribute]}"
        for attribute in ("src", "href") if element.name != "a" else ():
            if element.has_attr(attribute):
                element[attribute] = _from_book(page, element[attribute])
    article["id"] = page.key
    for link in article.select("a[href]"):
        target = _target(page, link["href"], known)
        if target is None:
            link.unwrap()
        else:
            link["href"] = target
    for drawer in article.select("details"):
        drawer["open"] = ""
    for gone in article.select(".headerlink, .copybtn, .guess-controls"):
        gone.decompose()


def _from_book(page: Page, address: str) -> str:
    """A relative address on the page, as one from the folder `book`."""
    if urlsplit(address).scheme:
        return address
    return posixpath.relpath(posixpath.join(posixpath.dirname(page.name), address), "book")


def _target(page: Page, href: str, known: dict[str, Page]) -> str | None:
    """Where a link leads in the joined page: the same address outside, a name inside, or nowhere."""
    parts = urlsplit(href)
    if parts.scheme:
        return href
    if not parts.path:
        return f"#{page.key}--{parts.fragment}" if parts.fragment else f"#{page.key}"
    name = posixpath.normpath(posixpath.join(posixpath.dirname(page.name), unquote(parts.path)))
    other = known.get(name.removesuffix(".html"))
    if other is None:
        return None
    return f"#{other.key}--{parts.fragment}" if parts.fragment else f"#{other.key}"


def edition(root: Path = ROOT) -> dict[str, str]:
    """Title, authors, version and date of this edition."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    cited = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        "title": config["title"],
        "author": config["author"],
        "version": project["version"],
        "date": str(cited["date-released"]),
    }


def cover(about: dict[str, str]) -> str:
    said = {key: html.escape(value) for key, value in about.items()}
    return (
        f'<header class="cover"><p class="name">{said["title"]}</p><p>{said["author"]}</p>'
        f"<p>Version {said['version']}, {said['date']}</p>"
        "<p>Prose and figures: CC BY 4.0. Code: MIT.</p>"
        "<p>On paper every drawer is open, the solutions of the exercises too, and charts with sliders stand "
        "at their first positions.</p></header>"
    )


def contents_of(book: list[Page], numbers: dict[str, int]) -> str:
    """The table of contents: parts, pages and their sections, with page numbers where they are known."""
    lines, part = [], ""
    for page in book:
        if page.part != part:
            part = page.part
            lines.append(f'<li class="part">{html.escape(part)}</li>')
        lines.append(_line("chapter", page.article.find("h1"), page.key, numbers))
        for heading in page.article.select("h2"):
            section = heading.find_parent("section")
            if section is not None and section.get("id"):
                lines.append(_line("section", heading, section["id"], numbers))
    listed = "\n".join(lines)
    return f'<nav class="paper-contents" id="contents"><h1>Contents</h1><ul>\n{listed}\n</ul></nav>'


def _line(kind: str, heading: Any, name: str, numbers: dict[str, int]) -> str:
    number = numbers.get(name, "")
    words = heading.decode_contents()
    return f'<li class="{kind}"><a href="#{name}"><span>{words}</span> <b>{number}</b></a></li>'


def whole(book: list[Page], front: str = "", *, kind: str = "book") -> str:
    """One HTML page of all articles; it has to lie in the folder `book` of the site."""
    first = book[0]
    sheets = [str(link) for link in first.soup.head.select('link[rel="stylesheet"]')]
    scripts = {str(script): None for page in book for script in page.soup.head.select("script")}
    formulas = [script for script in scripts if "MathJax" in script or "tex-svg" in script]
    articles = "\n".join(str(page.article) for page in book)
    return (
        f'<!DOCTYPE html>\n<html lang="en" data-theme="light">\n<head><meta charset="utf-8">'
        f"<title>{html.escape(edition()['title'])}</title>\n{''.join(sheets)}\n"
        f"<style>{LOOK.read_text(encoding='utf-8')}</style>\n{''.join(formulas)}</head>\n"
        f'<body class="paper {kind}"><main class="bd-content"><div class="bd-article-container">\n'
        f"{front}\n{articles}\n</div></main></body></html>\n"
    )


def places(pdf: bytes) -> dict[str, int]:
    """The number of the page on which each named place of a PDF lies, from 1."""
    order = {int(number): place for place, number in enumerate(PAGE_OBJECT.findall(pdf), 1)}
    return {
        unquote(name.decode("latin-1").replace("#", "%")): order[int(number)]
        for name, number in PLACE.findall(pdf)
        if int(number) in order
    }


def print_page(browser: Any, path: Path) -> bytes:
    """The PDF of an HTML file, when its formulas and charts have been drawn."""
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_function(READY, timeout=180_000)
    printed: bytes = page.pdf(prefer_css_page_size=True, print_background=True, outline=True, tagged=True)
    page.close()
    return printed


def joined_book(site: Path, contents: dict[str, Any]) -> tuple[list[Page], Page | None, Any]:
    """All pages, fit to stand beside each other; the cheat sheet among them, and its style, taken out."""
    book = pages(site, contents)
    known = {page.name: page for page in book}
    sheet = known.get(CHEAT_SHEET)
    # the style is meant for a print of that page alone
    look = sheet.article.find("style").extract() if sheet else ""
    for page in book:
        join(page, known)
    return book, sheet, look


def print_book(site: Path, contents: dict[str, Any], folder: Path, *, browser: Any) -> list[Path]:
    """Write book.pdf and cheat_sheet.pdf into `folder`; the built site at `site` gets two more pages."""
    book, sheet, look = joined_book(site, contents)
    folder.mkdir(parents=True, exist_ok=True)
    joined, numbers = site / "book" / "whole_book.html", dict[str, int]()
    for _ in range(MOST_PRINTS):
        front = cover(edition()) + contents_of(book, numbers)
        joined.write_text(whole(book, front), encoding="utf-8")
        printed = print_page(browser, joined)
        before, numbers = numbers, places(printed)
        if numbers == before:  # a longer line of the contents may have moved a heading to the next page
            break
    (folder / "book.pdf").write_bytes(printed)
    if sheet:
        alone = site / "book" / "cheat_sheet_alone.html"
        alone.write_text(whole([sheet], str(look), kind="sheet"), encoding="utf-8")
        (folder / "cheat_sheet.pdf").write_bytes(print_page(browser, alone))
    return sorted(folder.glob("*.pdf"))


def main() -> int:
    from playwright.sync_api import sync_playwright

    chromium = get_chromium.find() or get_chromium.install()
    if chromium is None:
        print(get_chromium.REMEDY, file=sys.stderr)
        return 1
    folder = ROOT / "_build" / "pdf"
    shutil.rmtree(folder, ignore_errors=True)
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    site = build.build_pages(build.stage(folder / "stage"), folder).parents[1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        made = print_book(site, contents, folder, browser=browser)
        browser.close()
    for path in made:
        print(f"{path} ({os.path.getsize(path) / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
