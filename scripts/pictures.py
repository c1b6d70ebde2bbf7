"""What the README and the first page show of the chapters: chapter 1's bars, a map, minutes, the scorecard.

usage: python scripts/pictures.py

book/images/two_skills.* is the main figure of chapter 1; book/images/chapter_map.svg says which chapter needs
which. Beside each stands a drawing for a phone, `*_narrow.svg`. The tables of chapters in README.md and
book/index.md get the minutes, and both pages the scorecard, from book/scorecard.toml. A test holds all of it
to the chapters.
"""

from __future__ import annotations

import html
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import execute, stored

ROOT = execute.ROOT
IMAGES = ROOT / "book" / "images"
OPTIONAL = {"04"}
VERDICTS = ("holds", "holds where", "does not")
SCORECARD = re.compile(r"(<!-- scorecard: .*? -->\n)(.*?)(<!-- /scorecard -->)", re.DOTALL)
STYLE = 'font-family="DejaVu Sans, Verdana, sans-serif" fill="#767b84" stroke="none" text-anchor="middle"'


@dataclass(frozen=True)
class Layout:
    """How the map is drawn: pixels of a box, of a letter, and from box to box along a row and to the next."""

    width: int
    height: int
    across: int
    down: int
    letters: int
    longest: int  # letters in a line
    falls: bool  # arrows go down, not to the right


DESK = Layout(width=150, height=92, across=184, down=112, letters=17, longest=14, falls=False)
PHONE = Layout(width=110, height=74, across=119, down=106, letters=12, longest=15, falls=True)


def two_skills(chapters: list[Path]) -> dict[str, bytes]:
    """Chapter 1's bars: the names of the files and their bytes."""
    figure = stored.figure(chapters[0], "fig-two-skills")
    files = {f"two_skills.{stored.MEDIA[figure.media]}": figure.content}
    if figure.narrow:
        files["two_skills_narrow.svg"] = figure.narrow
    return files


def needs(chapters: list[Path]) -> dict[str, list[str]]:
    """What each chapter needs, less what its other needs need already."""
    asked = {path.stem: stored.needs(stored.read(path)) for path in chapters}

    def before(name: str) -> set[str]:
        return {each for needed in asked[name] for each in {needed, *before(needed)}}

    return {
        name: [each for each in needed if not any(each in before(other) for other in needed)]
        for name, needed in asked.items()
    }


def chapter_map(chapters: list[Path], layout: Layout = DESK) -> str:
    """The chapters as boxes and what they need as arrows, as SVG in colours that both pages carry."""
    titles = {path.stem: stored.title(stored.read(path)) for path in chapters}
    needed = needs(chapters)
    stage: dict[str, int] = {}
    for name in titles:
        stage[name] = max((stage[each] + 1 for each in needed[name]), default=0)
    place: dict[str, tuple[int, int]] = {}
    for name in titles:
        beside = sum(stage[each] == stage[name] for each in place)
        column, row = (beside, stage[name]) if layout.falls else (stage[name], beside)
        place[name] = (4 + layout.across * column, 4 + layout.down * row)
    width = 4 + layout.width + max(x for x, _ in place.values())
    height = 4 + layout.height + max(y for _, y in place.values())
    arrows = [_arrow(place[each], place[name], layout) for name in titles for each in needed[name]]
    boxes = [_box(place[name], name[:2], titles[name], layout) for name in titles]
    said = "; ".join(_in_words(name, needed[name]) for name in titles)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img"><title>{html.escape(said)}</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#767b84"/></marker></defs>\n'
        f'<g fill="none" stroke="#767b84" stroke-width="1.5">\n{chr(10).join(arrows + boxes)}\n</g></svg>\n'
    )


def _in_words(name: str, needed: list[str]) -> str:
    before = " and ".join(each[:2].lstrip("0") for each in needed) or "nothing"
    return f"chapter {name[:2].lstrip('0')} needs {before}"


def _arrow(start: tuple[int, int], end: tuple[int, int], layout: Layout) -> str:
    if layout.falls:
        (x, y), (u, v) = (start[0] + layout.width // 2, start[1] + layout.height), end
        u += layout.width // 2
        middle = (y + v) // 2
        return f'<path d="M{x} {y} C{x} {middle} {u} {middle} {u} {v - 2}" marker-end="url(#tip)"/>'
    (x, y), (u, v) = (start[0] + layout.width, start[1] + layout.height // 2), end
    v += layout.height // 2
    middle = (x + u) // 2
    return f'<path d="M{x} {y} C{middle} {y} {middle} {v} {u - 2} {v}" marker-end="url(#tip)"/>'


def _box(corner: tuple[int, int], number: str, title: str, layout: Layout) -> str:
    x, y = corner
    dashed = ' stroke-dasharray="5 4"' if number in OPTIONAL else ""
    middle = x + layout.width // 2
    line = layout.letters + 3
    heading = number.lstrip("0") + (", optional" if number in OPTIONAL else "")
    texts = [heading, *_lines(title, layout.longest)]
    first = y + layout.height // 2 + 5 - line * (len(texts) - 1) // 2
    words = "".join(
        f'<text x="{middle}" y="{first + line * row}" {STYLE} font-size="{layout.letters}" '
        f'font-weight="{400 if row else 700}">{html.escape(text)}</text>'
        for row, text in enumerate(texts)
    )
    size = f'x="{x}" y="{y}" width="{layout.width}" height="{layout.height}"'
    return f'<rect {size} rx="6" stroke="#4a74cf"{dashed}/>{words}'


def _lines(title: str, longest: int) -> list[str]:
    """A title in lines that fit into a box."""
    lines = [""]
    for word in title.split():
        if len(f"{lines[-1]} {word}".strip()) > longest:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def scorecard(chapters: list[Path], *, folder: str) -> str:
    """The scorecard as a table in Markdown, with links to chapters in `folder` ("" or "book/").

    Raises:
        ValueError: a line has an unknown verdict, or names a chapter that is not there.
    """
    files = {int(path.name[:2]): path.name for path in chapters}
    rows = ["| No. | The claim | What this edition finds | Chapter |", "|---|---|---|---|"]
    for line in tomllib.loads((ROOT / "book" / "scorecard.toml").read_text(encoding="utf-8"))["line"]:
        if line["verdict"] not in VERDICTS:
            raise ValueError(f"claim {line['number']}: verdict {line['verdict']!r} is none of {VERDICTS}")
        if missing := [number for number in line["chapters"] if number not in files]:
            raise ValueError(f"claim {line['number']}: there is no chapter {missing[0]}")
        stop = "" if line["verdict"] == "holds where" else "."
        verdict = f"**{line['verdict'].capitalize()}{stop}** {line['said']}."
        links = ", ".join(f"[{number}]({folder}{files[number]})" for number in line["chapters"])
        rows.append(f"| {line['number']} | {line['claim']} | {verdict} | {links} |")
    return "\n".join(rows) + "\n"


def with_scorecard(text: str, chapters: list[Path], *, folder: str) -> str:
    """The text of a page, with the scorecard between its marks."""
    table = scorecard(chapters, folder=folder)
    return SCORECARD.sub(lambda found: f"{found[1]}\n{table}\n{found[3]}", text)


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
    for old in IMAGES.glob("two_skills*"):
        old.unlink()
    files = two_skills(chapters)
    files["chapter_map.svg"] = chapter_map(chapters).encode()
    files["chapter_map_narrow.svg"] = chapter_map(chapters, PHONE).encode()
    for name, content in files.items():
        (IMAGES / name).write_bytes(content)
        print(IMAGES / name)
    for page, folder in ((ROOT / "README.md", "book/"), (ROOT / "book" / "index.md", "")):
        before = page.read_text(encoding="utf-8")
        after = with_scorecard(with_minutes(before, chapters), chapters, folder=folder)
        page.write_text(after, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
