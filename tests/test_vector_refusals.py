"""What task vectors refuse: each message names the thing and the remedy, and nothing is merged by halves."""

import math
import warnings

import numpy as np
import pytest
import torch

from taskvec_mini import TaskVector, _files
from taskvec_mini.errors import UserError
from taskvec_mini.rounds import Round

START = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}
FINETUNED = {"weight": torch.tensor([[1.5, 2.0]]), "bias": torch.tensor([0.0])}


def vector(values, dtype=torch.float64):
    """A task vector with these entries in one part."""
    return TaskVector(torch.tensor(values, dtype=dtype), [("bias", (len(values),))])


# --- bad input: two models that do not go together -------------------------------------------------------


def changed(**parts):
    return {**FINETUNED, **parts}


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_keys_that_differ_are_named_with_the_side_that_has_them():
    with pytest.raises(
        ValueError, match="pretrained has 'bias', finetuned has not; use two state dicts of one"
    ):
        TaskVector.between(START, without(FINETUNED, "bias"))
    with pytest.raises(
        ValueError, match="finetuned has 'bias', pretrained has not; use two state dicts of one"
    ):
        TaskVector.between(without(START, "bias"), FINETUNED)
    with pytest.raises(ValueError, match=r"finetuned has 'weight' \(and 1 more\), pretrained has not"):
        TaskVector.between({}, FINETUNED)


def test_shapes_that_differ_are_both_named():
    message = r"shapes differ at 'weight': \(1, 2\) against \(2, 1\); both sides must have one"
    with pytest.raises(ValueError, match=message):
        TaskVector.between(START, changed(weight=torch.ones(2, 1)))


def test_dtypes_that_differ_are_both_named():
    message = r"'bias': torch.float32 against torch.float64; convert one with \.to\(dtype=\.\.\.\)"
    with pytest.raises(TypeError, match=message):
        TaskVector.between(START, changed(bias=torch.zeros(1, dtype=torch.float64)))


def test_devices_that_differ_are_both_named():
    elsewhere = torch.zeros(1, device="meta")
    message = r"devices differ at 'bias': cpu against meta; move one with \.to\(device=\.\.\.\)"
    with pytest.raises(TypeError, match=message):
        TaskVector.between(START, changed(bias=elsewhere))
    with pytest.raises(TypeError, match=message):
        TaskVector.between(START, FINETUNED).apply_to({**START, "bias": elsewhere})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named_with_their_place(bad):
    spoilt = torch.tensor([[0.0, bad]])
    message = r"'weight' holds 1 value\(s\) that are NaN or infinite.*at position \(0, 1\).*lower its"
    with pytest.raises(ValueError, match=message):
        TaskVector.between(START, changed(weight=spoilt))
    with pytest.raises(ValueError, match=message):
        TaskVector.between({**START, "weight": spoilt}, FINETUNED)
    with pytest.raises(ValueError, match=message):
        TaskVector.between(START, FINETUNED).apply_to({**START, "weight": spoilt})
    with pytest.raises(ValueError, match=r"flat holds 1 value\(s\) that are NaN or infinite"):
        TaskVector(torch.tensor([bad]), [("w", (1,))])


def test_a_model_is_not_taken_for_its_state_dict():
    model, state = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1).state_dict()
    message = (
        r"{} is a module \(Linear\) and {} is none; give two modules, or .*model.state_dict\(\) makes one"
    )
    with pytest.raises(TypeError, match=message.format("pretrained", "finetuned")):
        TaskVector.between(model, state)
    with pytest.raises(TypeError, match=message.format("finetuned", "pretrained")):
        TaskVector.between(state, model)
    for nothing in (None, [model], "model.safetensors"):
        with pytest.raises(TypeError, match=r"pretrained must be a mapping from names to tensors, got"):
            TaskVector.between(nothing, state)
        with pytest.raises(TypeError, match=r"pretrained must be a mapping from names to tensors, got"):
            TaskVector.between(state, state).apply_to(nothing)


def test_values_that_are_no_tensors_are_named():
    message = "finetuned holds 'bias', which is no tensor but float; leave it out"
    with pytest.raises(TypeError, match=message):
        TaskVector.between(START, changed(bias=0.5))
    with pytest.raises(TypeError, match="pretrained holds 'bias', which is no tensor but list"):
        TaskVector.between(START, FINETUNED).apply_to({**START, "bias": [0.5]})


def test_state_dicts_without_parameters_are_refused():
    for empty in ({}, {"batches": torch.tensor(3)}):
        with pytest.raises(ValueError, match="no floating-point tensors; give a state dict with parameters"):
            TaskVector.between(empty, empty, integer_buffers="carry")


@pytest.mark.parametrize("flat", [torch.ones(1, 2), torch.ones(()), torch.tensor([1, 2]), [1.0, 2.0], None])
def test_a_vector_is_made_from_one_flat_tensor(flat):
    with pytest.raises(TypeError, match=r"flat must be a 1-D floating-point tensor.*networks.flatten"):
        TaskVector(flat, [("w", (2,))])


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([("w", (3,))], "the layout names 3 entries but flat holds 2; they must agree"),
        ([], "the layout names 0 entries but flat holds 2"),
        ([("w", (1,)), ("v", (0,)), ("w", (1,))], "the layout names 'w' twice; give every part a name"),
        ([("w", (2**62, 4)), ("v", (2,))], "the layout names 18446744073709551618 entries but flat holds 2"),
        ([("w", (-1, -2))], r"'w' has the shape \(-1, -2\), but no length can be below 0"),
    ],
)
def test_a_layout_must_fit(layout, message):
    with pytest.raises(ValueError, match=message):
        TaskVector(torch.ones(2), layout)


# --- bad input: two vectors that do not go together ------------------------------------------------------

BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "dot": lambda a, b: a.dot(b),
    "cosine": lambda a, b: a.cosine(b),
    "sum": lambda a, b: sum([a, b]),
    "apply_to": lambda a, b: a.apply_to(dict(b.items())),
}
pairwise = pytest.mark.parametrize("combine", BINARY.values(), ids=BINARY)


@pairwise
def test_vectors_of_other_parts_do_not_mix(combine):
    a, b = TaskVector(torch.ones(2), [("w", (2,))]), TaskVector(torch.ones(2), [("v", (2,))])
    with pytest.raises(ValueError, match=r"keys differ: .* has 'w', .* has not; use two state dicts of one"):
        combine(a, b)


@pairwise
def test_vectors_of_other_shapes_do_not_mix(combine):
    a, b = TaskVector(torch.ones(2), [("w", (2,))]), TaskVector(torch.ones(2), [("w", (1, 2))])
    with pytest.raises(ValueError, match=r"shapes differ at 'w': \(2,\) against \(1, 2\)"):
        combine(a, b)


@pairwise
def test_vectors_of_other_dtypes_do_not_mix(combine):
    with pytest.raises(TypeError, match=r"float32 against torch.float64; convert one with \.to"):
        combine(vector([1.0, 2.0], torch.float32), vector([1.0, 2.0]))


@pytest.mark.parametrize("name", ["+", "-", "dot", "cosine", "sum"])
def test_vectors_on_other_devices_do_not_mix(name):
    a, b = vector([1.0]), vector([1.0])
    b._flat = b._flat.to("meta")
    with pytest.raises(TypeError, match=r"devices differ at the task vectors: cpu against meta; move one"):
        BINARY[name](a, b)


@pytest.mark.parametrize("name", ["+", "-", "dot", "cosine", "sum"])
def test_vectors_in_another_order_are_not_added_entry_by_entry(name):
    a = TaskVector(torch.tensor([1.0, 2.0]), [("w", (1,)), ("v", (1,))])
    b = TaskVector(torch.tensor([2.0, 1.0]), [("v", (1,)), ("w", (1,))])
    with pytest.raises(ValueError, match=r"different orders; second\.ordered_like"):
        BINARY[name](a, b)


@pytest.mark.parametrize(
    "wrong", [None, "2", [2.0], 1j, torch.ones(1), np.ones(1), np.ones(2), {"w": 1}], ids=repr
)
def test_other_things_neither_scale_nor_add(wrong):
    a = vector([1.0, 2.0])
    for attempt in (
        lambda: a * wrong,
        lambda: wrong * a,
        lambda: a / wrong,
        lambda: wrong / a,
        lambda: a + wrong,
        lambda: wrong + a,
        lambda: a - wrong,
        lambda: wrong - a,
    ):
        with pytest.raises(TypeError):
            attempt()


@pytest.mark.parametrize("wrong", [torch.ones(1), {"bias": torch.ones(1)}, 1.0, None], ids=repr)
def test_angles_to_other_things_are_refused(wrong):
    for measure in (vector([1.0]).dot, vector([1.0]).cosine):
        message = f"the other one must be a task vector, got {type(wrong).__name__}; TaskVector.between"
        with pytest.raises(TypeError, match=message):
            measure(wrong)


@pytest.mark.parametrize("attempt", [lambda a: a * a, lambda a: a / a, lambda a: 1 + a, lambda a: a - 1])
def test_meaningless_operations_are_refused(attempt):
    with pytest.raises(TypeError):
        attempt(vector([1.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float64("inf")])
def test_scaling_by_what_is_not_finite_is_refused(bad):
    a = vector([1.0])
    for attempt in (lambda: a * bad, lambda: bad * a):
        with pytest.raises(ValueError, match="a scaling coefficient must be finite, got"):
            attempt()
    with pytest.raises(ValueError, match="a divisor must be finite, got"):
        a / bad
    with pytest.raises(ValueError, match="scaling_coef must be finite, got"):
        a.apply_to({"bias": torch.zeros(1, dtype=torch.float64)}, scaling_coef=bad)


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, np.float64(0), torch.tensor(0)])
def test_division_by_zero_is_refused(zero):
    with pytest.raises(ZeroDivisionError, match="cannot be divided by 0; choose another divisor"):
        vector([1.0]) / zero


def test_a_result_too_large_for_its_dtype_is_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        vector([6e4], torch.float16) * 2


# --- what a state dict may hold besides ------------------------------------------------------------------


def test_running_statistics_are_told_of_and_named_parameters_have_none():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = model.state_dict()
    with pytest.warns(UserWarning, match=r"'1.running_mean' looks like a running stat.*named_parameters\(\)"):
        TaskVector.between(state, state, integer_buffers="carry", statistics="merge")
    named = dict(model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(TaskVector.between(named, named)) == 2 * 3 + 3 + 3 + 3


def test_tied_weights_are_refused_by_both_names():
    model = torch.nn.ModuleDict({"wte": torch.nn.Embedding(4, 2), "head": torch.nn.Linear(2, 4, bias=False)})
    model["head"].weight = model["wte"].weight
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"one tensor under two names, 'wte.weight' and 'head.weight'.*leave"
    ):
        TaskVector.between(start, model.state_dict())
    start.pop("head.weight")
    assert len(TaskVector.between(start, dict(model.named_parameters()))) == 8


def test_parts_of_one_storage_are_not_taken_for_tied():
    whole = torch.arange(6.0)
    state = {"a": whole[:3], "b": whole[3:], "none": whole[:0], "nothing": whole[:0]}
    assert TaskVector.between(state, state).norm() == 0


@pytest.mark.parametrize("integer_buffers", ["refuse", "carry"])
def test_complex_tensors_are_refused_and_never_dropped(integer_buffers):
    state = {"w": torch.ones(2), "phase": torch.ones(2, dtype=torch.complex64)}
    with pytest.raises(TypeError, match=r"'phase' is torch.complex64.*leave it out, or give torch.view_as"):
        TaskVector.between(state, state, integer_buffers=integer_buffers)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_the_prefix_of_a_wrapper_is_named(prefix):
    wrapped = {f"{prefix}{name}": tensor for name, tensor in START.items()}
    for pair in ((START, wrapped), (wrapped, START)):
        with pytest.raises(ValueError, match=f"keys differ.*take '{prefix}' away in front of the keys"):
            TaskVector.between(*pair)


def test_an_edited_model_beyond_its_kind_is_refused():
    start = {"w": torch.zeros(2, dtype=torch.float16)}
    vector = TaskVector(torch.tensor([1.0, 1000.0], dtype=torch.float16), [("w", (2,))])
    with pytest.raises(ValueError, match=r"'w' of the edited model, at scaling_coef=100, holds 1 value"):
        vector.apply_to(start, 100)


def test_a_round_is_not_taken_for_a_task_vector(tmp_path):
    two, none = torch.ones(2), ((1.0,),)
    Round(0, two, two, (1.0,), (0.0,), none, (0.0,), none).save(tmp_path / "round")
    with pytest.raises(ValueError, match=r"is a taskvec_mini\.Round/1 but no task vector"):
        TaskVector.load(tmp_path / "round")


def test_a_round_without_its_facts_is_refused(tmp_path):
    two = {"theta": torch.ones(2), "pretrained": torch.ones(2)}
    _files.write_tensors(tmp_path / "round", two, {"number": 3}, kind="taskvec_mini.Round/1")
    with pytest.raises(
        UserError, match=r"round does not hold what a round needs \(.*losses.*; copy it again"
    ):
        Round.load(tmp_path / "round")
