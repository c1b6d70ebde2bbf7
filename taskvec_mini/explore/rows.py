"""Tidy rows: what a computation returns for one position of the sliders, checked before anybody draws it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.explore.ranges import Range, Value, grid

Row = dict[str, Any]  # column -> number or word
Panels = dict[str, list[Row]]  # panel -> its rows
Compute = Callable[..., Any]

ONLY = "chart"  # the name of the panel where there is just one


def evaluate(compute: Compute, parameters: Mapping[str, Value]) -> Panels:
    """The checked rows of `compute(**parameters)`, panel by panel; plain numbers and words.

    Raises:
        TypeError, ValueError: if these are no tidy rows; the message begins with the call.
    """
    panels = compute(**parameters)
    if not isinstance(panels, Mapping):
        panels = {ONLY: panels}
    call = call_text(compute, parameters)
    checked: Panels = {}
    for name, rows in panels.items():
        where = f"{call}, panel {name!r}"
        if not isinstance(rows, (list, tuple)) or not all(isinstance(row, Mapping) for row in rows):
            raise InputTypeError(
                f"{where}: expected a list of rows, each a dictionary, got {type(rows).__name__}"
            )
        if not rows:
            raise UserError(f"{where}: no rows came back; return at least one")
        checked[name] = []
        for i, row in enumerate(rows):
            if set(row) != set(rows[0]):
                odd = ", ".join(sorted(map(str, set(row) ^ set(rows[0]))))
                raise UserError(
                    f"{where}: row {i} and row 0 differ in the columns {odd}; give all rows the same"
                )
            plain = {column: _plain(row[column], f"{where}, row {i}, {column}") for column in rows[0]}
            checked[name].append(plain)
    return checked


def rows_on_grid(compute: Compute, ranges: Mapping[str, Range]) -> dict[tuple[Value, ...], Panels]:
    """The rows at every position of the sliders: the values of the parameters -> panel -> rows.

    A static page holds just these. Nothing is rounded here.

    Args:
        compute: a function of keyword parameters that returns a list of rows, each a dictionary from columns
            to numbers or words; or a dictionary from panels to such lists.
        ranges: parameter -> `Range`.

    Raises:
        TypeError, ValueError: if the function does not take these parameters, or returns no tidy rows.
        RuntimeError: if the function fails; the message names the values of the parameters.

    Example:
        >>> square = lambda side: [{"side": side, "area": side * side}]
        >>> rows_on_grid(square, {"side": Range.steps([1, 2], default=1)})[2,]
        {'chart': [{'side': 2, 'area': 4}]}
    """
    check_call(compute, ranges)
    found: dict[tuple[Value, ...], Panels] = {}
    for parameters in grid(ranges):
        try:
            found[tuple(parameters.values())] = evaluate(compute, parameters)
        except Exception as error:
            message = f"{call_text(compute, parameters)} failed: {type(error).__name__}: {error}"
            raise RuntimeError(message) from error
    return found


def check_call(compute: Compute, ranges: Mapping[str, Range]) -> None:
    """A TypeError unless `compute` takes these parameters by name, a ValueError if there are none."""
    if not callable(compute):
        raise InputTypeError(f"compute must be a function of keyword parameters, got {compute!r}")
    if not ranges:
        raise UserError(
            "ranges is empty; give at least one, such as {'epochs': Range.steps([1, 2], default=1)}"
        )
    for name, range_ in ranges.items():
        if not isinstance(range_, Range):
            raise InputTypeError(
                f"ranges[{name!r}] must be a Range, got {range_!r}; Range.steps([...]) makes one"
            )
    try:
        inspect.signature(compute).bind(**dict.fromkeys(ranges))
    except TypeError as error:
        raise InputTypeError(f"compute does not take the parameters {', '.join(ranges)}: {error}") from error


def call_text(compute: Compute, parameters: Mapping[str, Value]) -> str:
    """The call as a reader would write it."""
    name = getattr(compute, "__name__", "compute")
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in parameters.items())})"


def _plain(value: Any, where: str) -> float | int | str:
    """A word as it is, a number (also of numpy or torch) as Python's own; an error for anything else."""
    if isinstance(value, str):
        return value
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise InputTypeError(f"{where}: expected a number or a word, got {value!r}")
    if not math.isfinite(number):
        raise UserError(f"{where}: {number} cannot be drawn; narrow the range or leave out this row")
    return number
