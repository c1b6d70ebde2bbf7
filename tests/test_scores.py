"""Accuracies against plain loops, and tables a reader can print."""

import copy
import math

import pytest
import torch
from torch import nn

from taskvec_mini.networks import MLP, flatten
from taskvec_mini.scores import accuracy, normalised_accuracy, share_kept, table
from taskvec_mini.tasks import OUTPUTS, Task, digit_tasks

SUITE = digit_tasks()
MODEL = MLP((64, 8, OUTPUTS), generator=torch.Generator().manual_seed(0))


def random_theta(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(flatten(MODEL)), generator=generator, dtype=torch.float64)


def plain_accuracy(model, theta, task):
    """One example at a time, on a copy of the model that really holds theta."""
    model = copy.deepcopy(model)
    nn.utils.vector_to_parameters(theta, model.parameters())
    right = 0
    for image, label in zip(task.test_inputs, task.test_labels.tolist(), strict=True):
        answers = model(image.unsqueeze(0))[0].tolist()[task.outputs]
        right += answers.index(max(answers)) == label
    return right / len(task.test_labels)


@pytest.mark.parametrize("name", SUITE)
def test_accuracy_is_the_share_of_right_answers(name):
    theta = random_theta()
    assert accuracy(MODEL, theta, SUITE[name]) == pytest.approx(plain_accuracy(MODEL, theta, SUITE[name]))


def test_accuracy_leaves_the_model_and_the_vector_alone():
    before, theta = copy.deepcopy(MODEL.state_dict()), random_theta()
    kept = theta.clone()
    accuracy(MODEL, theta, SUITE["digits"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in MODEL.state_dict().items())
    assert all(parameter.grad is None for parameter in MODEL.parameters())
    assert torch.equal(theta, kept)


def test_accuracy_judges_the_test_examples_and_only_the_tasks_head():
    """Weights that answer with the pixel of their number: right on the test part only."""
    eye = torch.eye(4)
    task = Task(
        "own", "?", eye[:2], torch.tensor([1, 0]), eye[1:3], torch.tensor([0, 1]), ("a", "b"), slice(1, 3)
    )
    model = nn.Linear(4, 4, bias=False)
    assert accuracy(model, eye.reshape(-1), task) == 1
    assert accuracy(model, -eye.reshape(-1), task) == 0
    loud = eye.clone()
    loud[0] = loud[3] = 100  # outputs of other heads, which must not compete
    assert accuracy(model, loud.reshape(-1), task) == 1


@pytest.mark.parametrize(
    ("theta", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"theta has shape \(3,\) but the model has"),
        (torch.zeros(2, 2), TypeError, "theta must be a 1-D floating-point tensor"),
        (torch.full((5,), math.nan), ValueError, r"theta holds 5 value\(s\) that are NaN or infinite"),
    ],
)
def test_accuracy_refuses_what_are_no_parameters_of_the_model(theta, error, message):
    with pytest.raises(error, match=message):
        accuracy(MODEL, theta, SUITE["digits"])


# --- normalised accuracy ---------------------------------------------------------------------------------


def test_normalised_accuracy_is_the_mean_of_the_ratios():
    merged, individual = {"a": 0.8, "b": 0.3, "c": 0.5}, {"c": 1.0, "a": 0.8, "b": 0.9}
    assert normalised_accuracy(merged, individual) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert normalised_accuracy(individual, individual) == 1


@pytest.mark.parametrize(
    ("merged", "individual"),
    [
        ({"a": 1.0}, {"b": 1.0}),
        ({"a": 1.0}, {"a": 1.0, "b": 1.0}),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0}),
        ({}, {}),
    ],
)
def test_both_sides_need_the_same_tasks(merged, individual):
    with pytest.raises(ValueError, match=r"tasks differ: merged has \[.*\], individual has \[.*\]; give an"):
        normalised_accuracy(merged, individual)


@pytest.mark.parametrize("zero", [0.0, -0.1, math.nan])
def test_an_individual_accuracy_must_be_above_zero(zero):
    with pytest.raises(ValueError, match="the individual accuracy of 'b' must be"):
        normalised_accuracy({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": zero})


# --- share kept ------------------------------------------------------------------------------------------


def test_the_share_kept_is_one_for_the_specialists_and_zero_for_the_start():
    start, individual = {"a": 0.2, "b": 0.6}, {"b": 0.7, "a": 0.9}
    parts = {"start": start, "individual": individual}
    assert share_kept(individual, **parts) == 1
    assert share_kept(start, **parts) == 0
    assert share_kept({"a": 0.6, "b": 0.4}, **parts) == pytest.approx((0.4 - 0.2) / (0.7 + 0.1))
    assert share_kept({"b": 0.5, "a": 0.1}, **parts) < 0


@pytest.mark.parametrize("missing", ["merged", "start", "individual"])
def test_all_three_need_the_same_tasks(missing):
    sides = {name: {"a": 0.1, "b": 0.2} for name in ("merged", "start", "individual")}
    sides[missing] = {"a": 0.1}
    with pytest.raises(ValueError, match=r"tasks differ: merged has .*, start has .*, individual has"):
        share_kept(sides.pop("merged"), **sides)
    with pytest.raises(ValueError, match="tasks differ"):
        share_kept({}, start={}, individual={})


def test_specialists_that_gained_nothing_leave_nothing_to_keep():
    start = {"a": 0.2, "b": 0.6}
    for individual in (start, {"a": 0.4, "b": 0.3}):
        with pytest.raises(ValueError, match=r"gained -?0\.\d+ on the mean, so there is nothing to keep"):
            share_kept(start, start=start, individual=individual)


# --- tables ----------------------------------------------------------------------------------------------


def test_words_stand_to_the_left_and_numbers_to_the_right():
    rows = [
        {"task": "digits", "right": 9, "share": 0.97123},
        {"task": "odd or even", "right": 120, "share": 1.0},
    ]
    assert table(rows).split("\n") == [
        "task         right  share",
        "digits           9  0.971",
        "odd or even    120  1.000",
    ]


def test_columns_are_chosen_and_ordered():
    rows = [{"a": 1, "b": "x", "c": 2.0}]
    assert table(rows, columns=["c", "a"], digits=1) == "  c  a\n2.0  1"
    with pytest.raises(KeyError, match="d"):
        table(rows, columns=["d"])


def test_no_line_ends_in_spaces_and_the_rows_stay_as_they_are():
    rows = [{"a": 1.0, "word": "long enough"}, {"a": 2.0, "word": "x"}]
    kept = copy.deepcopy(rows)
    assert all(line == line.rstrip() for line in table(rows).split("\n"))
    assert rows == kept


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.97125, 3, "0.971"),
        (0.97125, 0, "1"),
        (2.0, 2, "2.00"),
        (0.0, 3, "0.000"),
        (-0.0, 3, "0.000"),
        (-0.3, 0, "0"),
        (1.2345e-5, 3, "1.2e-05"),
        (-1.2345e-5, 3, "-1.2e-05"),
        (0.0006, 3, "0.001"),
        (0.0004, 3, "4.0e-04"),
        (0.004, 1, "0.0"),
        (math.nan, 3, "nan"),
        (math.inf, 3, "inf"),
        (7, 3, "7"),
        (True, 3, "True"),
        (None, 3, "None"),
    ],
)
def test_how_a_value_is_written(value, digits, text):
    assert table([{"x": value}], digits=digits).split("\n")[1].strip() == text


def test_a_table_without_rows_is_refused():
    with pytest.raises(ValueError, match="the list of rows is empty; give at least one"):
        table([])
