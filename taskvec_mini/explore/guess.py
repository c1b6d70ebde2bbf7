"""A question to guess at before the answer is seen: on the static page, in Jupyter, in Colab and on GitHub.

Plain HTML: every answer is a `<details>` element, which opens by mouse and keyboard and is read out, without
any script. On the book's own pages `book/_static/guess.js` also hides what follows until a guess is made.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError

# Each output of Colab is a document of its own, so each question brings its look along.
STYLE_SHEET = """
.guess { max-width: 700px; margin: 1rem 0; padding: .6rem 1rem .8rem; color: inherit;
  border: 1px solid #7b7b7b; border-left: 4px solid #4a74cf; border-radius: .25rem; }
.guess-question { margin: 0 0 .5rem; font-weight: 600; }
.guess .guess-answer { margin: .3rem 0 0; border: 1px solid #7b7b7b80; border-radius: .25rem; }
.guess .guess-answer > summary { display: list-item; list-style: "○" inside; box-sizing: border-box;
  min-height: 44px; padding: .6rem .8rem; line-height: 1.4; font-weight: inherit; color: inherit;
  cursor: pointer; }
.guess .guess-answer > summary::marker { content: "○\\2002"; }
.guess .guess-answer[open] > summary::marker { content: "●\\2002"; }
.guess .guess-answer > summary:focus-visible { outline: 2px solid #4a74cf; outline-offset: 2px; }
.guess .guess-answer > p { margin: 0; padding: 0 .8rem .6rem 2.1rem; }
.guess .guess-right[open] { border-color: #2fa562; border-width: 2px; }
@media print {
  .guess { break-inside: avoid; }
  .guess .guess-answer::details-content { content-visibility: visible; block-size: auto; } }
"""


@dataclass(frozen=True)
class Guess:
    """A question with its answers; shown where it is the last line of a cell."""

    question: str
    answers: Mapping[str, str]
    right: str
    hides: int

    def _repr_html_(self) -> str:
        # the same question gives the same bytes: the id is a digest of it
        name = "guess-" + hashlib.sha256(repr(self.__dict__).encode()).hexdigest()[:12]
        choices = []
        for answer, word in self.answers.items():
            look, verdict = (
                ("guess-answer guess-right", "Yes.") if answer == self.right else ("guess-answer", "No.")
            )
            choices.append(
                f'<details class="{look}"><summary>{html.escape(answer)}</summary>'
                f"<p><b>{verdict}</b> {html.escape(word)}</p></details>"
            )
        return (
            f'<div class="guess" id="{name}" role="group" aria-labelledby="{name}-question" '
            f'data-hides="{self.hides}"><style>{STYLE_SHEET}</style>'
            f'<p class="guess-question" id="{name}-question">{html.escape(self.question)}</p>'
            f"{''.join(choices)}</div>"
        )

    def __repr__(self) -> str:
        return f"[guess first] {self.question} {' / '.join(self.answers)}"


def guess(question: str, answers: Mapping[str, str], *, right: str, hides: int = 1) -> Guess:
    """Ask the reader before the answer is shown. The last line of a cell, just before the cell that answers.

    A click, or Enter on an answer, opens a word about it, behind "Yes." or "No.". On a page of the book the
    outputs of the next `hides` cells that show something (a figure, a table, a chart with sliders), and the
    paragraphs that follow the last of them up to the next cell or heading, stay hidden until a guess is made
    or "Show without a guess" is pressed. The browser's search and links into the hidden part open it too.
    In print, without scripts, in Jupyter, in Colab and on GitHub nothing is hidden: there the cell stands
    before the one that answers, and a reader who runs cell by cell guesses first.

    In a chapter:

    - give the cell the tag `remove-input` (its code names the right answer; `make execute` folds it in
      Jupyter and Colab) and no other tag: what it shows is stable, and nbval compares it;
    - leave the question out of the prose around it, and put nothing that tells the answer between the cell
      and the output that does;
    - a word says *why*, in a sentence that goes on from "Yes." or "No."; a number belongs to the figure.

    Args:
        question: one sentence, in plain text; symbols such as θ₀ as they are.
        answers: two to five answers in the order shown, each with a word about it, in plain text.
        right: the answer that is right.
        hides: how many outputs to hide; 0 for a question that needs no figure.

    Raises:
        ValueError: if a text is empty, there are not two to five answers, or `right` is none of them.

    Example:
        >>> guess(
        ...     "Where does the mean of the two networks end up?",
        ...     {
        ...         "at chance": "Random weights would; these two share their start.",
        ...         "good at both tasks": "The mean keeps half of what each has learnt.",
        ...     },
        ...     right="good at both tasks",
        ... )
        [guess first] Where does the mean of the two networks end up? at chance / good at both tasks
    """
    if not isinstance(answers, Mapping):
        raise InputTypeError(
            f"answers must be a dictionary from an answer to a word about it, got {answers!r}"
        )
    if not 2 <= len(answers) <= 5:
        raise UserError(f"a question needs two to five answers, got {len(answers)}")
    texts = (
        {"question": question} | dict(answers) | {f"answer {i}": text for i, text in enumerate(answers, 1)}
    )
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"the text of {name!r} is empty; say it in a sentence")
    _checks.named_choice("right answer", right, answers)
    return Guess(question, dict(answers), right, _checks.whole_number("hides", hides, minimum=0))
