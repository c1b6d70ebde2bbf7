"""A check says one friendly line, whatever the reader's function does, and draws a new instance each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from taskvec_mini.exercises import NOT_WRITTEN, check


@check
def check_sum(total: Callable[..., Any], random: torch.Generator) -> str | None:
    for numbers in (torch.tensor([1.0, 2.0]), torch.randn(5, generator=random)):
        if abs(total(numbers).item() - sum(numbers.tolist())) > 1e-5:
            return "is every number in the sum?"
    return None


def stops(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.total()  # type: ignore[operator]


def stops_inside_torch(numbers: torch.Tensor) -> torch.Tensor:
    return torch.cat([numbers, torch.ones(1, 1)])


def stub(numbers: torch.Tensor) -> Any:
    return ...


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (torch.sum, "correct"),
        (lambda numbers: numbers[0] + numbers[1], "not yet: is every number in the sum?"),
        (stub, NOT_WRITTEN),
        (lambda numbers: None, "not yet: your function gave back None; does it end with `return`?"),
        (stops, "in the line `return numbers.total()"),
        (stops_inside_torch, "in the line `return torch.cat([numbers, torch.ones(1, 1)])"),
        (lambda: 3.0, "your function stops with TypeError"),
        (lambda numbers: "3", "could not be used (AttributeError: 'str' object has no attribute 'item')"),
        (3, "your function stops with TypeError: 'int' object is not callable"),
    ],
)
def test_what_a_check_says(answer: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_sum(answer)
    printed = capsys.readouterr().out
    assert said in printed
    assert printed.count("\n") == 1
    assert printed.startswith(("correct", "not yet: ", "not written yet: "))


def test_the_random_instance_differs_from_call_to_call_and_a_seed_repeats_it() -> None:
    seen: list[float] = []

    @check
    def check_any(function: Callable[..., Any], random: torch.Generator) -> None:
        function(torch.rand((), generator=random).item())

    for seed in (None, None, 3, 3, 4):
        check_any(seen.append, seed=seed)
    assert seen[2] == seen[3]
    assert len(set(seen)) == 4


def test_a_reader_who_stops_the_kernel_stops_the_check() -> None:
    def interrupted(numbers: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_sum(interrupted)
