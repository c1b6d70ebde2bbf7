"""What a reader may turn: a named range of values, as the stops of a slider."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskvec_mini import _checks
from taskvec_mini.errors import UserError

Value = int | float | str


@dataclass(frozen=True)
class Range:
    """The values of one parameter: stops of a slider, the first of them at its left end.

    Make one with `Range.linear`, `Range.log` or `Range.steps`. On a static page a slider moves from stop to
    stop; with a kernel it also stands between them, unless the values are words.

    Args:
        values: two stops or more, all numbers (rising) or all words.
        default: the stop to start from.
        label: what stands beside the slider; the parameter's name if empty.
        unit: what stands behind the value, such as "epochs".
        number_format: how a number is shown, as in Python's `format`.
        scale: "linear", "log" or "steps"; for a slider with a kernel.

    Raises:
        ValueError: if there are fewer than two values, they do not rise, or `default` is not one of them.
    """

    values: tuple[Value, ...]
    default: Value
    label: str = ""
    unit: str = ""
    number_format: str = ".4g"
    scale: str = "steps"

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise UserError(
                f"a range needs two values or more, got {list(self.values)}; a constant belongs in compute"
            )
        if all(isinstance(value, str) for value in self.values):
            rising = len(set(self.values)) == len(self.values)
        else:
            numbers = [_checks.finite_number("a value of a range", value) for value in self.values]  # type: ignore[arg-type]
            rising = all(a < b for a, b in itertools.pairwise(numbers))
        if not rising:
            raise UserError(f"the values of a range must rise and not repeat, got {list(self.values)}")
        self.position(self.default)

    @classmethod
    def linear(
        cls,
        start: float,
        stop: float,
        *,
        step: float,
        default: float,
        label: str = "",
        unit: str = "",
        number_format: str = ".4g",
    ) -> Range:
        """Stops from `start` to `stop`, both included, `step` apart; whole numbers if all three are.

        Raises:
            ValueError: if `step` does not lead from `start` to `stop`, or `default` is not a stop.

        Example:
            >>> Range.linear(-1, 1, step=0.5, default=0.5).values
            (-1.0, -0.5, 0.0, 0.5, 1.0)
        """
        count = (stop - start) / _checks.positive_number("step", step)
        if not math.isfinite(count) or count < 1 or abs(count - round(count)) > 1e-6:
            raise UserError(
                f"steps of {step} do not lead from {start} to {stop}; choose a divisor of {stop - start:g}"
            )
        # twelve digits: 0.1 + 2 * 0.1 is to be 0.3, as the label says
        stops = tuple(float(f"{start + i * step:.12g}") for i in range(round(count) + 1))
        if all(isinstance(number, int) for number in (start, stop, step)):
            stops = tuple(round(number) for number in stops)
        return cls(stops, default, label, unit, number_format, "linear")

    @classmethod
    def log(
        cls,
        start: float,
        stop: float,
        *,
        count: int,
        default: float,
        label: str = "",
        unit: str = "",
        number_format: str = ".3g",
    ) -> Range:
        """`count` stops from `start` to `stop`, both included, each the same factor above the last.

        The stops are rounded to three significant digits, so that a label shows the very value in use.

        Raises:
            ValueError: if an end is not above 0, or `default` is not a stop.

        Example:
            >>> Range.log(0.001, 0.1, count=5, default=0.01).values
            (0.001, 0.00316, 0.01, 0.0316, 0.1)
        """
        low = math.log10(_checks.positive_number("start", start))
        high = math.log10(_checks.positive_number("stop", stop))
        places = [i / (_checks.whole_number("count", count, minimum=2) - 1) for i in range(count)]
        stops = tuple(float(f"{10 ** (low + share * (high - low)):.3g}") for share in places)
        return cls(stops, default, label, unit, number_format, "log")

    @classmethod
    def steps(
        cls,
        values: Sequence[Value],
        *,
        default: Value,
        label: str = "",
        unit: str = "",
        number_format: str = ".4g",
    ) -> Range:
        """Just these stops: rising numbers, or words.

        Raises:
            ValueError: if there are fewer than two, they do not rise, or `default` is not one of them.

        Example:
            >>> Range.steps([1, 2, 5, 10], default=1, label="epochs k").text(5)
            '5'
        """
        return cls(tuple(values), default, label, unit, number_format, "steps")

    def position(self, value: Value) -> int:
        """The place of `value` among the stops, from 0; a ValueError that names the nearest if it is none."""
        if value in self.values:
            return self.values.index(value)
        if isinstance(value, str):
            near = difflib.get_close_matches(value, [str(stop) for stop in self.values], n=1, cutoff=0)
        else:
            near = sorted(self.values, key=lambda stop: abs(float(stop) - value))[:1]  # type: ignore[assignment]
        raise UserError(
            f"{value!r} is not a stop of the range {list(self.values)}; the nearest is {near[0]!r}"
        )

    def text(self, value: Value) -> str:
        """`value` as a reader sees it, with its unit and a real minus sign."""
        shown = value if isinstance(value, str) else format(value, self.number_format).replace("-", "−")
        return f"{shown} {self.unit}".strip()


def titles(ranges: Mapping[str, Range]) -> dict[str, str]:
    """What stands beside each slider: its label, or its name in words."""
    return {name: range_.label or name.replace("_", " ") for name, range_ in ranges.items()}


def defaults(ranges: Mapping[str, Range]) -> dict[str, Value]:
    """Where all sliders start."""
    return {name: range_.default for name, range_ in ranges.items()}


def grid(ranges: Mapping[str, Range]) -> list[dict[str, Value]]:
    """Every combination of stops as keyword parameters; the last range changes fastest."""
    stops = [range_.values for range_ in ranges.values()]
    return [dict(zip(ranges, values, strict=True)) for values in itertools.product(*stops)]
