"""Every message names the thing, its value and the remedy; what is in order passes through unchanged."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from taskvec_mini import _checks

HUGE = 10**400  # beyond float64


def says(*parts):
    """A pattern that holds these words in this order."""
    return ".*".join(map(re.escape, parts))


# --- numbers ---------------------------------------------------------------------------------------------

HALVES = [0.5, Fraction(1, 2), Decimal("0.5"), np.float32(0.5), np.array(0.5), torch.tensor(0.5)]


@pytest.mark.parametrize("value", HALVES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("check", [_checks.finite_number, _checks.positive_number])
def test_any_kind_of_number_becomes_a_float(check, value):
    assert check("x", value) == 0.5
    assert type(check("x", value)) is float


@pytest.mark.parametrize(
    "value", ["0.5", "half", b"1", None, [0.5], 1j, {}, torch.ones(2), np.ones(2)], ids=repr
)
@pytest.mark.parametrize("check", [_checks.finite_number, _checks.positive_number])
def test_what_is_not_one_number_is_named(check, value):
    with pytest.raises(TypeError, match=says("the rate must be a number, got", repr(value))):
        check("the rate", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, HUGE, torch.tensor(math.nan)])
@pytest.mark.parametrize("check", [_checks.finite_number, _checks.positive_number])
def test_what_is_not_finite_is_named(check, value):
    message = says("the rate must be finite, got", "look for an overflow or a division by zero")
    with pytest.raises(ValueError, match=message):
        check("the rate", value)


def test_zero_and_negative_numbers_are_finite_but_not_positive():
    for value in (0, -0.0, -1, -1e-300):
        assert _checks.finite_number("x", value) == value
        message = says(
            "the rate must be above 0, got", str(float(value)), "choose a positive value such as 0.1"
        )
        with pytest.raises(ValueError, match=message):
            _checks.positive_number("the rate", value)
    assert _checks.positive_number("x", 5e-324) == 5e-324


def test_the_advice_about_a_number_fits_the_thing():
    with pytest.raises(ValueError, match=r"learning_rate must be above 0, got 0.0; .* such as 0\.0001$"):
        _checks.positive_number("learning_rate", 0, example=1e-4)


@pytest.mark.parametrize("value", [0, 2**63 - 1])
def test_the_seeds_that_pass_are_those_that_every_generator_takes(value):
    assert _checks.seed("seed", value) == value
    torch.Generator().manual_seed(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [(-1, "at least 0, got -1"), (2**63, "below 2**63, got 9223372036854775808"), (10**20, "below 2**63")],
)
def test_other_seeds_are_refused(value, words):
    with pytest.raises(ValueError, match=says("seed must be", words)):
        _checks.seed("seed", value)
    with pytest.raises(TypeError, match="seed must be a whole number"):
        _checks.seed("seed", 0.5)


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)], ids=lambda value: type(value).__name__)
def test_whole_numbers_become_an_int(value):
    assert _checks.whole_number("x", value) == 3
    assert type(_checks.whole_number("x", value)) is int


@pytest.mark.parametrize("value", [2.0, "2", None, True, False, Fraction(2), [2], np.float64(2)], ids=repr)
def test_what_is_not_a_whole_number_is_named(value):
    with pytest.raises(TypeError, match=says("epochs must be a whole number, got", repr(value))):
        _checks.whole_number("epochs", value)


@pytest.mark.parametrize("value", [torch.tensor(2.0), torch.ones(2).long(), np.ones(2, dtype=int)], ids=repr)
def test_arrays_and_floats_in_tensors_are_no_whole_numbers(value):
    with pytest.raises(TypeError, match=says("epochs must be a whole number, got")):
        _checks.whole_number("epochs", value)


@pytest.mark.parametrize(("minimum", "value"), [(1, 0), (1, -5), (0, -1), (3, 2)])
def test_a_whole_number_below_the_least_is_named(minimum, value):
    with pytest.raises(ValueError, match=f"^epochs must be at least {minimum}, got {value}$"):
        _checks.whole_number("epochs", value, minimum=minimum)
    assert _checks.whole_number("epochs", minimum, minimum=minimum) == minimum


# --- names -----------------------------------------------------------------------------------------------

OPTIONS = {"tanh": 1, "sigmoid": 2, "softplus": 3, "relu": 4}


def test_a_known_name_gives_its_option():
    assert _checks.named_choice("activation", "softplus", OPTIONS) == 3


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tan", "did you mean 'tanh'?"),
        ("sigmiod", "did you mean 'sigmoid'?"),
        ("RELU", "did you mean 'relu'?"),
        ("swish", "choose one of tanh, sigmoid, softplus, relu"),
        ("", "choose one of tanh, sigmoid, softplus, relu"),
        (None, "choose one of tanh, sigmoid, softplus, relu"),
        (7, "choose one of tanh, sigmoid, softplus, relu"),
    ],
)
def test_an_unknown_name_suggests_the_near_ones(name, hint):
    with pytest.raises(ValueError, match=says(f"unknown activation {name!r}: {hint}")):
        _checks.named_choice("activation", name, OPTIONS)


def test_several_near_names_are_joined():
    with pytest.raises(ValueError, match=says("did you mean 'adam' or 'adamw'?")):
        _checks.named_choice("optimizer", "adan", {"sgd": 0, "adam": 0, "adamw": 0})


# --- tensors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_flat_vector_passes_as_it_is(dtype):
    theta = torch.ones(3, dtype=dtype)
    assert _checks.flat_parameters("theta", theta) is theta


@pytest.mark.parametrize(
    ("theta", "what"),
    [
        (torch.ones(2, 3), "torch.float32 of shape (2, 3)"),
        (torch.tensor(1.0), "torch.float32 of shape ()"),
        (torch.ones(2).long(), "torch.int64 of shape (2,)"),
        (torch.ones(2).to(torch.complex64), "torch.complex64 of shape (2,)"),
        ([1.0], "list"),
        (np.ones(2), "ndarray"),
        (torch.nn.Linear(1, 1), "Linear"),
    ],
)
def test_what_is_not_a_flat_vector_is_named_with_the_remedy(theta, what):
    message = says(
        f"theta must be a 1-D floating-point tensor of parameters, got {what};", "networks.flatten"
    )
    with pytest.raises(TypeError, match=message):
        _checks.flat_parameters("theta", theta)


@pytest.mark.parametrize(
    ("tensor", "count", "first", "place"),
    [
        (torch.tensor([1.0, math.nan]), 1, "nan", "(1,)"),
        (torch.tensor([[0.0, 1.0], [-math.inf, math.nan]]), 2, "-inf", "(1, 0)"),
        (torch.tensor(math.inf), 1, "inf", "()"),
    ],
)
def test_values_that_are_not_finite_are_counted_and_the_first_is_placed(tensor, count, first, place):
    message = says(
        f"w holds {count} value(s)", f"({first})", f"at position {place}", "lower its learning rate"
    )
    with pytest.raises(ValueError, match=message):
        _checks.check_finite("w", tensor)


def test_finite_tensors_pass_even_the_largest_and_the_empty():
    _checks.check_finite("w", torch.tensor([torch.finfo(torch.float32).max, 0.0]))
    _checks.check_finite("w", torch.empty(0))


def test_not_empty_lists_what_there_is():
    assert _checks.not_empty("tasks", iter("ab")) == ["a", "b"]
    with pytest.raises(ValueError, match="tasks is empty; give at least one"):
        _checks.not_empty("tasks", iter(()))


def test_keys_are_compared_both_ways():
    _checks.check_keys({"a": 1, "b": 2}, {"b": 3, "a": 4}, name="one", other="other")
    with pytest.raises(
        ValueError, match=says("keys differ: one has 'b' (and 1 more), other has not; use two")
    ):
        _checks.check_keys({"a": 1, "b": 2, "c": 3}, {"a": 1}, name="one", other="other")
    with pytest.raises(
        ValueError, match=says("keys differ: other has 'b', one has not; use two state dicts")
    ):
        _checks.check_keys({"a": 1}, {"a": 1, "b": 2}, name="one", other="other")


def test_pairs_must_agree_in_everything():
    ones = torch.ones(2)
    _checks.check_pair("w", ones, ones, reference=ones)
    with pytest.raises(ValueError, match=says("shapes differ at 'w': (2,) against (3,); both sides")):
        _checks.check_pair("w", ones, torch.ones(3), reference=ones)
    with pytest.raises(TypeError, match=says("dtypes differ at 'w': torch.float32 against torch.float64;")):
        _checks.check_pair("w", ones, ones.double(), reference=ones)
    with pytest.raises(
        TypeError, match=says("dtypes differ at 'w' and the tensors before it: torch.float32")
    ):
        _checks.check_pair("w", ones, ones, reference=ones.double())
    with pytest.raises(TypeError, match=says("devices differ at 'w': cpu against meta; move one with .to(")):
        _checks.check_pair("w", ones, ones.to("meta"), reference=ones)
    for pair in ((ones, ones * math.nan), (ones * math.nan, ones)):
        with pytest.raises(ValueError, match=says("'w' holds 2 value(s) that are NaN or infinite")):
            _checks.check_pair("w", *pair, reference=ones)
