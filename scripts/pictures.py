"""What the README and the first page show of the chapters: chapter 1's bars, a map, minutes.

usage: python scripts/pictures.py

book/images/two_skills.* is the main figure of chapter 1; book/images/chapter_map.svg says which chapter needs
which. The tables of chapters in README.md and book/index.md get the minutes. A test holds all of it to the
chapters.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import execute, stored

ROOT = execute.ROOT
IMAGES = ROOT / "book" / "images"
OPTIONAL = {"04"}
WIDTH, HEIGHT, ACROSS, DOWN = 150, 58, 186, 84  # of a box, and from box to box
STYLE = (
    'font-family="DejaVu Sans, Verdana, sans-serif" font-size="13" fill="#767b84" stroke="none" '
    'text-anchor="middle"'
)


def two_skills(chapters: list[Path]) -> tuple[str, bytes]:
    """The file name and the bytes of chapter 1's bars."""
    figure = stored.figure(chapters[0], "fig-two-skills")
    return f"two_skills.{stored.MEDIA[figure.media]}", figure.content


def chapter_map(chapters: list[Path]) -> str:
    """The chapters as boxes and what they need as arrows, as SVG in colours that both pages carry."""
    notebooks = {path.stem: stored.read(path) for path in chapters}
    column: dict[str, int] = {}
    for name, notebook in notebooks.items():
        column[name] = max((column[each] + 1 for each in stored.needs(notebook)), default=0)
    place: dict[str, tuple[int, int]] = {}
    for name in notebooks:
        row = sum(column[each] == column[name] for each in place)
        place[name] = (4 + ACROSS * column[name], 4 + DOWN * row)
    width = 8 + WIDTH + ACROSS * max(column.values())
    height = 8 + HEIGHT + DOWN * max(list(column.values()).count(each) - 1 for each in column.values())
    arrows = [
        _arrow(place[needed], place[name])
        for name, each in notebooks.items()
        for needed in stored.needs(each)
    ]
    boxes = [_box(place[name], name[:2], stored.title(each)) for name, each in notebooks.items()]
    said = "; ".join(_in_words(name, notebooks[name]) for name in notebooks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img"><title>{html.escape(said)}</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#767b84"/></marker></defs>\n'
        f'<g fill="none" stroke="#767b84" stroke-width="1.5">\n{chr(10).join(arrows + boxes)}\n</g></svg>\n'
    )


def _in_words(name: str, notebook: object) -> str:
    needed = " and ".join(each[:2].lstrip("0") for each in stored.needs(notebook)) or "nothing"
    return f"chapter {name[:2].lstrip('0')} needs {needed}"


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x, y), (u, v) = (start[0] + WIDTH, start[1] + HEIGHT // 2), (end[0], end[1] + HEIGHT // 2)
    middle = (x + u) // 2
    return f'<path d="M{x} {y} C{middle} {y} {middle} {v} {u - 2} {v}" marker-end="url(#tip)"/>'


def _box(corner: tuple[int, int], number: str, title: str) -> str:
    x, y = corner
    dashed = ' stroke-dasharray="5 4"' if number in OPTIONAL else ""
    middle = x + WIDTH // 2
    lines = _lines(title)
    texts = [f"{number.lstrip('0')}{', optional' if number in OPTIONAL else ''}", *lines]
    first = y + HEIGHT // 2 + 5 - 8 * (len(texts) - 1)
    words = "".join(
        f'<text x="{middle}" y="{first + 16 * row}" {STYLE} font-weight="{400 if row else 700}">'
        f"{html.escape(text)}</text>"
        for row, text in enumerate(texts)
    )
    return f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" stroke="#4a74cf"{dashed}/>{words}'


def _lines(title: str, *, longest: int = 20) -> list[str]:
    """A title in lines that fit into a box."""
    lines = [""]
    for word in title.split():
        if len(f"{lines[-1]} {word}".strip()) > longest:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def with_minutes(text: str, chapters: list[Path]) -> str:
    """The text of a page, with the minutes of each chapter in its row of the table."""
    for path in chapters:
        row = re.compile(
            rf"^(\| \d+ \| \[[^]]+\]\((?:book/)?{path.name}\).* \| )\d+( \| \w+ \|)$", re.MULTILINE
        )
        text = row.sub(rf"\g<1>{stored.minutes(stored.read(path))}\g<2>", text)
    return text


def main() -> int:
    chapters = execute.chapters(ROOT / "book")
    name, content = two_skills(chapters)
    for old in IMAGES.glob("two_skills.*"):
        old.unlink()
    (IMAGES / name).write_bytes(content)
    (IMAGES / "chapter_map.svg").write_text(chapter_map(chapters), encoding="utf-8", newline="\n")
    for page in (ROOT / "README.md", ROOT / "book" / "index.md"):
        before = page.read_text(encoding="utf-8")
        page.write_text(with_minutes(before, chapters), encoding="utf-8", newline="\n")
    print(f"{IMAGES / name}\n{IMAGES / 'chapter_map.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
