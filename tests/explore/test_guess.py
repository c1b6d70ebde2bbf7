"""Questions to guess at: their HTML, and a page with one in a real Chromium."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.explore import Guess, guess

ANSWERS = {"it falls": "Noise < signal & more.", "it rises": "Each step helps.", "neither": "It moves."}


def asked(hides: int = 1) -> Guess:
    return guess("What does the loss do?", ANSWERS, right="it rises", hides=hides)


class Texts(HTMLParser):
    """The texts of each kind of element, in order, with all that is escaped undone."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.found: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.path.append(tag)
        self.found.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.path:
            self.found[tag][-1] += data


def test_without_scripts_every_answer_is_a_drawer_with_its_word() -> None:
    parser = Texts()
    parser.feed(asked()._repr_html_())
    assert parser.path == []
    assert parser.found["summary"] == list(ANSWERS)
    assert parser.found["details"] == [
        "it fallsNo. Noise < signal & more.",
        "it risesYes. Each step helps.",
        "neitherNo. It moves.",
    ]
    assert "script" not in parser.found


def test_the_same_question_gives_the_same_bytes_and_another_one_another_id() -> None:
    assert asked()._repr_html_() == asked()._repr_html_()
    ids = {each._repr_html_().split('id="')[1][:20] for each in (asked(), asked(2))}
    assert len(ids) == 2


def test_as_text_the_answers_stand_without_telling_which_is_right() -> None:
    assert repr(asked()) == "[guess first] What does the loss do? it falls / it rises / neither"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "the text of 'question' is empty"),
        ({"answers": {"yes": "Indeed."}}, "two to five answers, got 1"),
        ({"answers": {str(i): "word" for i in range(6)}}, "two to five answers, got 6"),
        ({"answers": {"it rises": "", "it falls": "Word."}}, "the text of 'it rises' is empty"),
        ({"answers": {"": "Word.", "it rises": "Word."}}, "the text of 'answer 1' is empty"),
        ({"right": "it rise"}, "did you mean 'it rises'"),
        ({"hides": -1}, "hides must be at least 0"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"question": "What?", "answers": ANSWERS, "right": "it rises"} | change
    with pytest.raises(UserError, match=message):
        guess(call.pop("question"), call.pop("answers"), **call)


def test_a_list_of_answers_is_no_dictionary() -> None:
    with pytest.raises(InputTypeError, match="dictionary from an answer to a word"):
        guess("What?", ["yes", "no"], right="yes")  # type: ignore[arg-type]


# --- in a browser


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    """A page cut like the book's: a question, code, an output, its remark, another output."""
    static = (ROOT / "book" / "_static").as_uri()

    def cell(output: str, name: str) -> str:
        code = '<div class="cell_input">code</div>'
        return f'<div class="cell">{code}<div class="cell_output" id="{name}">{output}</div></div>'

    def write(hides: int = 1, script: bool = True) -> Any:
        scripts = f'<script defer src="{static}/guess.js"></script>' if script else ""
        (tmp_path / "page.html").write_text(
            f'<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8"><title>t</title>'
            f'<link rel="stylesheet" href="{static}/custom.css">{scripts}'
            f'<main class="bd-article"><section>{cell(asked(hides)._repr_html_(), "question")}'
            f'<p id="before">Now the code.</p><div class="cell"><div class="cell_input">no output</div></div>'
            f'{cell("a falling curve", "first")}<p id="remark">So it rises.</p>{cell("another", "second")}'
            f'<p id="later">Later.</p><section><h2 id="next">Next</h2></section></section></main></html>',
            encoding="utf-8",
        )
        opened.goto((tmp_path / "page.html").as_uri())
        return opened

    opened = browser.new_page(viewport={"width": 390, "height": 800})
    yield write
    opened.close()


def seen(page: Any, *names: str) -> list[bool]:
    """Which of these a reader sees: what is hidden until found has a place of its own but shows nothing."""
    return [
        page.locator(f"#{name}").evaluate(
            "one => one.checkVisibility({contentVisibilityAuto: true}) && !one.hidden"
        )
        for name in names
    ]


PARTS = ("before", "first", "remark", "second", "later", "next")


def test_a_click_on_an_answer_opens_its_word_and_what_waits(page: Any) -> None:
    shown = page()
    assert seen(shown, *PARTS) == [True, False, False, True, True, True]
    shown.locator("summary", has_text="it falls").click()
    shown.wait_for_selector(".guess[data-state=open]")
    assert seen(shown, *PARTS) == [True] * 6
    assert shown.get_by_text("No. Noise < signal & more.").is_visible()
    assert not shown.get_by_text("Each step helps.").is_visible()
    assert shown.get_by_role("status").inner_text() == "The answer is shown below."
    assert not shown.get_by_role("button", name="Show without a guess").is_visible()


def test_the_keyboard_reaches_every_answer_and_enter_guesses(page: Any) -> None:
    shown = page()
    focus = []
    for _ in range(4):
        shown.keyboard.press("Tab")
        focus.append(shown.evaluate("document.activeElement.textContent"))
    assert focus == [*ANSWERS, "Show without a guess"]
    assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    shown.keyboard.press("Shift+Tab")
    assert seen(shown, "first") == [False], "moving about is no guess"
    shown.keyboard.press("Enter")
    shown.wait_for_selector(".guess[data-state=open]")
    assert shown.get_by_text("No. It moves.").is_visible()
    assert seen(shown, "first", "remark") == [True, True]


def test_show_opens_without_a_guess_and_leaves_the_focus_in_the_question(page: Any) -> None:
    shown = page()
    button = shown.get_by_role("button", name="Show without a guess")
    button.focus()
    shown.keyboard.press("Space")
    assert seen(shown, "first", "remark") == [True, True]
    assert shown.evaluate("document.activeElement.textContent") == "it falls"
    assert not shown.get_by_text("Noise").is_visible()


def test_as_many_outputs_wait_as_asked(page: Any) -> None:
    assert seen(page(2), *PARTS) == [True, False, True, False, False, True]
    assert seen(page(0), *PARTS) == [True] * 6
    assert not page(0).get_by_role("button").count()


def test_a_link_into_what_waits_opens_it(page: Any) -> None:
    shown = page()
    shown.evaluate("location.hash = 'remark'")
    shown.wait_for_selector(".guess[data-state=open]")
    assert seen(shown, "first", "remark") == [True, True]


@pytest.mark.parametrize("script", [True, False])
def test_in_print_and_without_scripts_everything_is_shown(page: Any, script: bool) -> None:
    shown = page(script=script)
    if not script:
        assert seen(shown, *PARTS) == [True] * 6
    shown.emulate_media(media="print")
    for text in ["a falling curve", "So it rises.", *ANSWERS.values()]:
        box = shown.get_by_text(text).bounding_box()
        assert box["height"] > 10, text
    printed = shown.evaluate("document.querySelector('main').innerText")
    assert all(word in printed for word in ["a falling curve", "So it rises.", *ANSWERS.values()])
    assert not shown.get_by_role("button").count()


def test_answers_are_large_enough_for_a_finger_and_nothing_is_wider_than_a_phone(page: Any) -> None:
    shown = page()
    for target in [*shown.locator("summary").all(), shown.get_by_role("button")]:
        assert target.bounding_box()["height"] >= 44
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
