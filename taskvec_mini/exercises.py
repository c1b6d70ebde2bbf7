"""Exercises that answer kindly: a check runs the reader's function and says one line, never a traceback.

A check is written once per exercise. It tries the function on an instance that everybody sees and on a
random one, and returns what to look at, or nothing where all is right. The decorator does the rest.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

import torch

NOT_WRITTEN = "not written yet: put your own code in place of the three dots, then run the cell again"


def check(complaint: Callable[[Callable[..., Any], torch.Generator], str | None]) -> Callable[..., None]:
    """Turn a function that finds fault with an answer into a check that prints one friendly line.

    The line begins with `correct`, with `not yet` and what to look at, or with `not written yet` where the
    answer gives back `...`, as the empty cells of the exercises do. An error in the reader's function is a
    `not yet` as well.

    Args:
        complaint: gets the reader's function and a generator for its random instance. It returns a sentence
            about the first thing that is wrong, or `None`.

    Returns:
        The check. It takes the reader's function, prints and returns nothing. Its argument `seed` repeats a
        random instance; without it every call draws a new one.

    Example:
        >>> @check
        ... def check_double(double, random):
        ...     for number in (3, torch.randint(100, (), generator=random).item()):
        ...         if double(number) != 2 * number:
        ...             return f"twice {number} is not {double(number)}"
        >>> check_double(lambda number: ...)
        not written yet: put your own code in place of the three dots, then run the cell again
        >>> check_double(lambda number: number + 3, seed=0)
        not yet: twice 44 is not 47
        >>> check_double(lambda number: number / 0)  # doctest: +ELLIPSIS
        not yet: your function stops with ZeroDivisionError: division by zero, in ...
        >>> check_double(lambda number: 2 * number)
        correct
    """

    @functools.wraps(complaint)
    def checked(function: Callable[..., Any], *, seed: int | None = None) -> None:
        random = torch.Generator()
        if seed is None:
            random.seed()
        else:
            random.manual_seed(seed)
        answer = _Answer(function)
        try:
            wrong = complaint(answer, random)
        except _NotWrittenError:
            print(NOT_WRITTEN)
        except Exception as error:  # whatever the reader wrote must not end in a traceback
            print("not yet:", answer.in_words(error))
        else:
            print("correct" if wrong is None else f"not yet: {wrong}")

    return checked


class _NotWrittenError(Exception):
    """The function still gives back its three dots."""


class _Answer:
    """The reader's function, which remembers what it gave back last, or the error with which it stopped."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.last: Any = ...

    def __call__(self, *given: Any, **named: Any) -> Any:
        try:
            self.last = self.function(*given, **named)
        except Exception as error:
            self.last = error
            raise
        if self.last is ...:
            raise _NotWrittenError
        return self.last

    def in_words(self, error: Exception) -> str:
        """What went wrong: in the function, with its line, or in the check with what it was given back."""
        said = f"{type(error).__name__}: {error}"
        if error is self.last:
            code = getattr(self.function, "__code__", None)
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame.line for frame in frames if code and frame.filename == code.co_filename]
            where = f", in the line `{own[-1]}`" if own and own[-1] else ""
            return f"your function stops with {said}{where}"
        if self.last is None:
            return "your function gave back None; does it end with `return`?"
        return f"what your function gave back could not be used ({said}); is it what the text asks for?"
