"""The pages beside the chapters: scorecard and pictures of the first one, commands, studies, symbols."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import nbformat
import pytest

from conftest import CHAPTERS, ROOT, extension
from scripts import pictures
from taskvec_mini.benchmarks.studies import STUDIES

LINES: list[dict[str, Any]] = tomllib.loads((ROOT / "book" / "scorecard.toml").read_text(encoding="utf-8"))[
    "line"
]
INDEX = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
# A verdict on the first page: the number of the claim, and what follows up to the next one.
VERDICT = re.compile(r"^\*\*Claim (\w+)\.\*\* (.+?)(?=^\*\*Claim |^</details>)", re.MULTILINE | re.DOTALL)
CHAPTER = re.compile(r"\]\((?:book/)?(\d\d)_\w+\.ipynb\)")


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["number"])
def test_a_line_of_the_scorecard_has_a_verdict_and_names_chapters_that_exist(line: dict[str, Any]) -> None:
    assert line["verdict"] in ("holds", "holds where", "does not")
    there = {int(path.name[:2]) for path in CHAPTERS}
    assert line["chapters"]
    assert set(line["chapters"]) <= there
    assert len(line["claim"]) <= 90, "a line a claim"
    assert len(line["said"]) <= 150, "a line a claim"
    assert not line["said"].endswith(".")
    assert line["said"][0].isupper() == (line["verdict"] != "holds where")


def test_the_scorecard_and_the_verdicts_speak_of_the_same_claims_and_chapters() -> None:
    """The long verdicts are written by hand, so they are an independent list."""
    verdicts = dict(VERDICT.findall(INDEX))
    assert list(verdicts) == [line["number"] for line in LINES]
    for line in LINES:
        where = verdicts[line["number"]].split("\n: ")[1].partition(".* ")[0]
        assert {int(number) for number in CHAPTER.findall(where)} == set(line["chapters"]), line["number"]


@pytest.mark.parametrize(("page", "folder"), [(README, "book/"), (INDEX, "")], ids=["README", "index"])
def test_both_pages_show_the_scorecard_in_its_present_form(page: str, folder: str) -> None:
    (found,) = pictures.SCORECARD.findall(page)
    rows = [row for row in found[1].splitlines() if row.startswith("| ") and not row.startswith("| No.")]
    assert len(rows) == len(LINES)
    for row, line in zip(rows, LINES, strict=True):
        assert line["claim"] in row
        assert line["said"] in row
        assert f"**{line['verdict'].capitalize()}" in row
        assert [int(number) for number in CHAPTER.findall(row)] == line["chapters"]
        for target in re.findall(r"\]\(([^)]+)\)", row):
            assert target.startswith(folder)
            assert (ROOT / "book" / target.removeprefix(folder)).is_file()


def test_a_chapter_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "book").mkdir()
    line = {"number": '"4a"', "claim": '"c"', "verdict": '"holds"', "said": '"S"', "chapters": "[1, 77]"}
    monkeypatch.setattr(pictures, "ROOT", tmp_path)

    def write(**changed: str) -> None:
        text = "[[line]]\n" + "\n".join(f"{key} = {value}" for key, value in (line | changed).items())
        (tmp_path / "book" / "scorecard.toml").write_text(text, encoding="utf-8")

    write()
    with pytest.raises(ValueError, match="claim 4a: there is no chapter 77"):
        pictures.scorecard(CHAPTERS, folder="")
    write(chapters="[1]", verdict='"perhaps"')
    with pytest.raises(ValueError, match="claim 4a: verdict 'perhaps' is none of"):
        pictures.scorecard(CHAPTERS, folder="")


def test_the_first_page_opens_with_the_picture_the_question_and_the_scorecard() -> None:
    for text in (README, INDEX):
        places = [text.index(each) for each in ("two_skills.svg", "**Why does that work", "<!-- scorecard")]
        assert places == sorted(places)
    assert (
        INDEX.index("<!-- /scorecard") < INDEX.index("## What the two papers claim") < INDEX.index("<details")
    )


def test_every_picture_of_a_page_has_a_drawing_for_a_phone_with_letters_that_can_be_read() -> None:
    narrow = extension("phone_figures").narrow_files(ROOT / "book" / "index.md")
    shown = re.findall(r"^```\{figure\} images/(\w+)\.svg$", INDEX, re.MULTILINE)
    assert len(shown) >= 3
    for name in shown:
        drawn = narrow[name]
        box = re.search(r'viewBox="0 0 ([\d.]+) ', drawn)
        assert box is not None
        scale = 358 / float(box.group(1))  # a screen of 390 pixels less its margins
        points = [100 * float(each) for each in re.findall(r"scale\(([\d.]+) -", drawn)]
        pixels = [float(each) for each in re.findall(r'font-size="([\d.]+)"', drawn)]
        assert min(points + pixels) * scale >= 11 - 0.1 * ("tspan" in drawn), name  # an index may be smaller


# --- how to run, notation


def test_every_command_of_the_makefile_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) - {"help"}
    page = (ROOT / "book" / "how_to_run_this_book.md").read_text(encoding="utf-8")
    assert len(targets) >= 15
    assert targets == set(re.findall(r"^(?:\| |\*\*)`make ([a-z-]+)", page, re.MULTILINE))


def test_every_study_is_listed_with_the_chapter_behind_it() -> None:
    page = (ROOT / "book" / "how_to_run_this_book.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:chapter (\d+)|this edition's|\[My)", page, re.MULTILINE))
    assert set(rows) == set(STUDIES)
    for name, chapter in rows.items():
        if name[:2].isdigit():
            assert int(name[:2]) == int(chapter), name


def test_the_notation_has_symbols_for_each_chapter_but_those_it_names() -> None:
    page = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    none = re.search(r"^Chapters (\d+) and (\d+) introduce no symbols", page, re.MULTILINE)
    assert none is not None
    in_rows = set(re.findall(r"^\|.*\| (\d+) \|$", page, re.MULTILINE))
    in_parts = set(re.findall(r"^All of these come in chapter (\d+)", page, re.MULTILINE))
    numbers = {str(int(path.name[:2])) for path in CHAPTERS}
    assert in_rows | in_parts == numbers - set(none.groups())


def test_the_pages_do_not_contradict_the_chapters() -> None:
    """Three sentences that once did."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")}
    chapters = {int(path.name[:2]): path.read_text(encoding="utf-8") for path in CHAPTERS}
    zero_shot = pages["glossary.md"].partition("\nzero-shot head\n")[2].partition("\n```")[0]
    using = {number for number, text in chapters.items() if "zero_shot_head" in text}
    assert using
    assert {int(each) for each in re.findall(r"chapters? (\d+)", zero_shot)} == using
    folded = [cell for text in chapters.values() for cell in re.findall(r'"cellView": "form"', text)]
    assert folded, "solutions and drawers are folded in Colab"
    assert "no folded solutions" not in pages["how_to_run_this_book.md"]


def test_the_words_of_the_glossary_are_those_of_the_book() -> None:
    """A word counts where a page, a cell or what it printed has it, also as a part of a name in code."""
    page = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    block = page.partition("```{glossary}")[2].partition("\n```")[0]
    entries = re.findall(r"^([^\s:].*)$", block, re.MULTILINE)
    assert len(entries) >= 60
    pages = [each for each in (ROOT / "book").rglob("*.md") if each.name != "glossary.md"]
    texts = [each.read_text(encoding="utf-8") for each in pages]
    for path in CHAPTERS:
        for cell in nbformat.read(path, as_version=4).cells:
            texts += [cell.source, *(output.get("text", "") for output in cell.get("outputs", []))]
    book = re.sub(r"[\s_*-]+", " ", " ".join(texts)).lower()
    for entry in entries:
        words = " ".join(reversed(entry.replace("-", " ").lower().split(", ")))  # "accuracy, normalised"
        assert re.search(rf"\b{re.escape(words)}", book), f"nothing in the book says {entry!r}"


def test_a_screen_that_gets_the_wide_drawing_is_wide_enough_for_its_letters() -> None:
    """Letters of 9 points, figures 7.4 inches wide, 15 pixels of margin on both sides of the page."""
    screen = extension("phone_figures").WIDEST_SCREEN_FOR_THE_NARROW_ONE
    assert 9 * (screen - 30) / (7.4 * 72) >= 11
    look = (ROOT / "book" / "_static" / "custom.css").read_text(encoding="utf-8")
    assert f"@media (max-width: {screen}px) {{ .bd-article picture img" in look
