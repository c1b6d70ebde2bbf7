"""Make a deck of slides of each chapter, from what the chapter stores: theses, questions, figures, tables.

usage: python scripts/slides.py [CHAPTER ...]      (all of book/*.ipynb where none is named)

The decks are in _build/slides and need no network. A deck is reveal.js with the chapter's own sentences: a
question before each figure, the figure with its caption, and what to notice as the speaker's notes (press S).
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import execute, stored

ROOT = execute.ROOT
VENDOR = ROOT / "book" / "_static" / "vendor"
VENDORED = (
    "reveal.js",
    "reveal.css",
    "reveal-notes.js",
    "reveal.LICENSE.txt",
    "tex-svg-full.js",
    "mathjax.LICENSE.txt",
)
LOOK = Path(__file__).with_name("slides.css")
TALLEST_TABLE = 16  # lines that can be read from the last row
SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[^a-z\s])")
DISPLAY = re.compile(r"\$\$.+?\$\$", re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="vendor/reveal.css">
<link rel="stylesheet" href="slides.css">
<script>window.MathJax = {{ svg: {{ fontCache: "global" }}, options: {{ enableMenu: false }} }};</script>
<script defer src="vendor/tex-svg-full.js"></script>
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="vendor/reveal.js"></script>
<script src="vendor/reveal-notes.js"></script>
<script>
Reveal.initialize({{ hash: true, slideNumber: "c/t", width: 1280, height: 720, margin: 0.03, center: false,
  controls: false, transition: "none", plugins: [RevealNotes] }});
</script>
</body>
</html>
"""


def to_html(markdown: str) -> str:
    """Markdown with formulas, as HTML that MathJax finishes. Of links, which lead out, the words stay."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    reader.use(dollarmath_plugin, renderer=_formula, double_inline=True)
    text: str = reader.render(LINK.sub(r"\1", stored.DRAWER.sub("", markdown)))
    return text.strip()


def _formula(content: str, options: dict[str, Any]) -> str:
    left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
    return f"{left}{html.escape(content)}{right}"


def slide(*parts: str, notes: str = "", kind: str = "") -> str:
    """One slide."""
    spoken = f'<aside class="notes">{notes}</aside>' if notes else ""
    return (
        f'<section class="{kind}">\n' + "\n".join(part for part in (*parts, spoken) if part) + "\n</section>"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{to_html(text).removeprefix('<p>').removesuffix('</p>')}</h{level}>"


def question(markdown: str) -> tuple[str, str] | None:
    """The last paragraph of a text that asks something: what leads to it, and what it asks."""
    prose = DISPLAY.sub("", stored.DRAWER.sub("", LINK.sub(r"\1", markdown)))
    asking = [part for part in prose.split("\n") if "?" in part and part[0] not in "#>*|<-"]
    if not asking:
        return None
    sentences = SENTENCE.split(asking[-1])
    asked = [place for place, each in enumerate(sentences) if each.endswith("?")]
    leading = [each for place, each in enumerate(sentences) if asked and place < asked[-1]]
    if not asked:
        return None
    return (
        " ".join(each for each in leading if not each.endswith("?")),
        " ".join(sentences[place] for place in asked),
    )


def tables(cell: Any) -> list[str]:
    """What a cell printed or showed as a table, where a room can read it."""
    found = []
    for output in cell.get("outputs", ()):
        shown = "".join(output.get("data", {}).get("text/html", ""))
        if "<table" in shown and "explore" not in shown:
            found.append(f'<div class="table">{shown}</div>')
        lines = "".join(output.get("text", "")).rstrip().splitlines()
        if 3 <= len(lines) <= TALLEST_TABLE and max(map(len, lines)) <= 100:
            found.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")
    return found


def deck(notebook: Any) -> str:
    """The HTML of a chapter's deck."""
    name = stored.title(notebook)
    slides = [
        slide(heading(name, 1), f"<blockquote>{to_html(stored.thesis(notebook))}</blockquote>", kind="title")
    ]
    cells, section, asked = notebook.cells[1:], name, ""
    for index, cell in enumerate(cells):
        if stored.is_solution(cell):
            continue
        following = cells[index + 1] if index + 1 < len(cells) else None
        after = (
            stored.source(following) if following is not None and following.cell_type == "markdown" else ""
        )
        if cell.cell_type == "markdown":
            text = stored.source(cell)
            if text.startswith("## "):
                section = text.splitlines()[0].removeprefix("## ")
                slides.append(_opening(section, text))
            slides += [
                slide(heading(f"{each.name}: {each.title}", 3), to_html(_task(text)), kind="exercise")
                for each in stored.exercises(cell)
            ]
            asked = text
            continue
        if guess := _guess(section, cell):
            slides.append(guess)
            asked = ""
            continue
        shown = [_picture(section, each, notes=_notes(after)) for each in stored.figures(cell)]
        shown += [slide(heading(section, 3), each, notes=_notes(after)) for each in tables(cell)]
        if shown and (asking := question(asked)):
            leading, ask = map(to_html, asking)
            slides.append(
                slide(heading(section, 3), leading, f'<div class="asked">{ask}</div>', kind="question")
            )
        asked = "" if shown else asked
        slides += shown
    return PAGE.format(title=html.escape(name), slides="\n".join(slides))


def _guess(section: str, cell: Any) -> str | None:
    """The slide of a cell that asks a guess: its answers, and as notes the words about them."""
    for output in cell.get("outputs", ()):
        soup = BeautifulSoup("".join(output.get("data", {}).get("text/html", "")), "html.parser")
        if box := soup.select_one("div.guess"):
            ask = box.select_one(".guess-question").decode_contents()
            answers = [answer.decode_contents() for answer in box.select("summary")]
            told = [word.decode_contents() for word in box.select("details > p")]
            listed = "".join(f"<li>{answer}</li>" for answer in answers)
            notes = "".join(f"<li>{a}: {b}</li>" for a, b in zip(answers, told, strict=True))
            asked = f'<div class="asked">{ask}</div>'
            return slide(
                heading(section, 3), asked, f"<ol>{listed}</ol>", notes=f"<ul>{notes}</ul>", kind="question"
            )
    return None


def _opening(section: str, text: str) -> str:
    """The slide on which a section begins: its thesis and its formulas; of the last one, its lines."""
    thesis = stored.SECTION_THESIS.search(text)
    parts = [heading(section)]
    parts += [f'<div class="thesis">{to_html(thesis.group(1))}</div>'] if thesis else []
    parts += [to_html(formula) for formula in DISPLAY.findall(stored.DRAWER.sub("", text))]
    lines = [line for line in text.splitlines() if line.startswith(("- ", "| "))]
    spoken = text.partition("\n")[2].partition("**Exercise ")[0]
    return slide(*parts, to_html("\n".join(lines)), notes=_notes(spoken), kind="section")


def _task(text: str) -> str:
    """What an exercise asks, without its title, hint and mistakes."""
    begun = re.split(r"\*\*Exercise \d+[^*]*\*\*", text, maxsplit=1)[-1]
    return re.split(r"<details>|^\*Classic mistakes", begun, maxsplit=1, flags=re.MULTILINE)[0].strip()


def _notes(markdown: str) -> str:
    return "" if markdown.startswith("## ") else to_html(DISPLAY.sub("", markdown))


def _picture(section: str, figure: stored.Figure, *, notes: str) -> str:
    hint = " <small>(On the book's page you can drag this chart.)</small>" if figure.chart else ""
    caption = to_html(figure.caption).removeprefix("<p>").removesuffix("</p>")
    return slide(
        heading(section, 3),
        f'<figure><img alt="{html.escape(figure.alt, quote=True)}" src="{figure.address}">'
        f"<figcaption>{caption}{hint}</figcaption></figure>",
        notes=notes,
    )


def contents(decks: dict[str, str]) -> str:
    """The page that lists the decks: file -> title."""
    listed = "\n".join(f'<li><a href="{file}">{html.escape(name)}</a></li>' for file, name in decks.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Slides</title>'
        '<link rel="stylesheet" href="slides.css"></head>\n'
        f"<body class='contents'><h1>Slides</h1>\n<ol>\n{listed}\n</ol>\n"
        "<p>Arrow keys turn the slides, Esc shows all of them, S opens the speaker's notes. For paper or a "
        "PDF, add <code>?print-pdf</code> to a deck's address and print.</p></body></html>\n"
    )


def build(chapters: list[Path], folder: Path) -> list[Path]:
    """Write a deck for each chapter, and what all decks share, into `folder`; the decks' paths."""
    (folder / "vendor").mkdir(parents=True, exist_ok=True)
    for name in VENDORED:
        shutil.copy2(VENDOR / name, folder / "vendor" / name)
    shutil.copy2(LOOK, folder / "slides.css")
    made, titles = [], {}
    for path in chapters:
        notebook = stored.read(path)
        target = folder / f"{path.stem}.html"
        target.write_text(deck(notebook), encoding="utf-8")
        titles[target.name] = stored.title(notebook)
        made.append(target)
    (folder / "index.html").write_text(contents(titles), encoding="utf-8")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("chapters", nargs="*", type=Path, help="the chapters to show (default: all)")
    arguments = parser.parse_args()
    folder = ROOT / "_build" / "slides"
    shutil.rmtree(folder, ignore_errors=True)
    build(arguments.chapters or execute.chapters(ROOT / "book"), folder)
    print(f"The slides are ready. Open {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
