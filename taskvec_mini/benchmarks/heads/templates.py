"""What CLIP's text encoder is told of each task: templates, and words for class codes (`templates.toml`)."""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Sequence
from pathlib import Path

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.errors import InputTypeError, UserError

_TABLE = tomllib.loads(Path(__file__).with_name("templates.toml").read_text(encoding="utf-8"))
TEMPLATES: dict[str, tuple[str, ...]] = {
    task: tuple(group["texts"]) for group in _TABLE["templates"] for task in group["tasks"]
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {
    spelling: f"the digit {number}"
    for number, word in enumerate(_NUMBERS)
    for spelling in (str(number), f"{number} - {word}")  # the second is torchvision's
}
_LETTERS = {letter: f"the letter {letter}" for letter in string.ascii_uppercase}
_SIGNS: dict[str, str] = _TABLE["words"]["gtsrb"]
_WORDS: dict[str, dict[str, str]] = {  # names of classes that are codes; others speak for themselves
    "mnist": _DIGITS,
    "svhn": _DIGITS,
    "sign_digits": _DIGITS,
    "digits": _DIGITS,
    "streetchars": _DIGITS | _LETTERS,
    "gtsrb": _SIGNS | {str(label): words for label, words in enumerate(_SIGNS.values())},
    "eurosat": _TABLE["words"]["eurosat"],
}


def templates_for(task: Task, templates: Sequence[str] | None = None) -> tuple[str, ...]:
    """The templates of a task: those given, or ours by its name.

    Raises:
        UserError: if we have none for it, none is given, or one has not exactly one `{}`.
        InputTypeError: if `templates` is one text rather than several.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> templates_for(load_tasks(["digits"], suite="digits", limit=9)["digits"])
        ('{}, written by hand, in coarse pixels',)
    """
    if templates is None:
        if task.name not in TEMPLATES:
            raise UserError(
                f"there are no templates for the task {task.name!r}, only for {', '.join(TEMPLATES)}; pass "
                "your own, such as templates=['a picture that shows {}']"
            )
        return TEMPLATES[task.name]
    if isinstance(templates, str):
        raise InputTypeError(f"templates must be several texts, got one; pass templates=[{templates!r}]")
    for template in _checks.not_empty("templates", templates):
        if template.count("{}") != 1 or len(re.findall("[{}]", template)) != 2:
            raise UserError(
                f"the template {template!r} must have one {{}}, where the class goes, and no more"
            )
    return tuple(templates)


def templates_in(suite: str, name: str) -> tuple[str, ...]:
    """The templates of a task by its name; in the suite "digits" one template serves all views.

    Raises:
        UserError: if there are none.

    Example:
        >>> templates_in("digits", "mirrored") == templates_in("digits", "digits") == TEMPLATES["digits"]
        True
    """
    found = TEMPLATES.get("digits" if suite == "digits" else name)
    if found is None:
        raise UserError(
            f"there are no templates for the task {name!r}, so it has no zero-shot head, only "
            f"{', '.join(TEMPLATES)} have; leave it out of --tasks, or take --heads prototypes for all"
        )
    return found


def words_for(task: Task) -> list[str]:
    """The words for each class of a task: its name, written out where that is a code.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> words_for(load_tasks(["digits"], suite="digits", limit=9)["digits"])[:3]
        ['the digit 0', 'the digit 1', 'the digit 2']
    """
    known = _WORDS.get(task.name, {})
    return [known.get(name, " ".join(re.split(r"[_/\s]+", name)).strip()) for name in task.class_names]
