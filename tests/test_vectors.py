"""The laws of the algebra of task vectors, held against exact fractions, and its refusals."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvec_mini import TaskVector, vectors

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ROUNDING = 2.0**-52
START = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}
FINETUNED = {"weight": torch.tensor([[1.5, 2.0]]), "bias": torch.tensor([0.0])}
laws = settings(deadline=None, max_examples=80, derandomize=True)
entries = st.floats(-1e3, 1e3).map(
    lambda x: x if abs(x) > 1e-6 else 0.0
)  # squares neither over- nor underflow
scalars = st.floats(-100, 100).map(lambda x: x if abs(x) > 1e-3 else 1.0)


def vector(values, dtype=torch.float64):
    """A task vector with these entries, in two parts if there are two or more."""
    flat = torch.tensor(values, dtype=dtype)
    layout = [("weight", (len(flat) - 1, 1)), ("bias", (1,))] if len(flat) > 1 else [("bias", (1,))]
    return TaskVector(flat, layout)


def several(count):
    """`count` vectors of one random layout."""
    lists = st.integers(1, 9).flatmap(
        lambda size: st.lists(st.lists(entries, min_size=size, max_size=size), min_size=count, max_size=count)
    )
    return lists.map(lambda rows: [vector(row) for row in rows])


def same(a, b):
    return a.layout == b.layout and a.carried == b.carried and torch.equal(a.flat, b.flat)


def near(a, b, *parts):
    """Equal up to a few roundings of the numbers that were added."""
    size = sum(part.flat.abs() for part in parts)
    return a.layout == b.layout and bool(((a.flat - b.flat).abs() <= 4 * ROUNDING * size).all())


def exact_dot(a, b):
    return sum(Fraction(x) * Fraction(y) for x, y in zip(a.flat.tolist(), b.flat.tolist(), strict=True))


# --- sums ------------------------------------------------------------------------------------------------


@laws
@given(several(2))
def test_addition_is_that_of_numbers_and_commutes(pair):
    a, b = pair
    assert (a + b).flat.tolist() == [x + y for x, y in zip(a.flat.tolist(), b.flat.tolist(), strict=True)]
    assert same(a + b, b + a)


@laws
@given(several(3))
def test_addition_is_associative_up_to_rounding(three):
    a, b, c = three
    assert near((a + b) + c, a + (b + c), a, b, c)


@laws
@given(several(2))
def test_subtraction_adds_the_negative(pair):
    a, b = pair
    assert (a - b).flat.tolist() == [x - y for x, y in zip(a.flat.tolist(), b.flat.tolist(), strict=True)]
    assert same(a - b, a + -b)
    assert same(-(a - b), b - a)
    assert same(-(a - a - a), a)
    assert (a - a).norm() == 0


@laws
@given(several(3))
def test_sum_adds_from_left_to_right(three):
    a, b, c = three
    assert same(sum(three), (a + b) + c)
    assert same(sum([a]), a)
    assert same(0 + a, a)
    assert same(a + 0, a)


@laws
@given(several(4))
def test_an_analogy_is_one_expression(four):
    a, b, c, d = four
    expected = [c_ + (b_ - a_) - d_ for a_, b_, c_, d_ in zip(*(v.flat.tolist() for v in four), strict=True)]
    assert (c + (b - a) - d).flat.tolist() == expected


# --- scaling ---------------------------------------------------------------------------------------------


@laws
@given(several(1), scalars)
def test_scaling_is_that_of_numbers_from_both_sides(one, s):
    (a,) = one
    assert (s * a).flat.tolist() == [s * x for x in a.flat.tolist()]
    assert (a / s).flat.tolist() == [x / s for x in a.flat.tolist()]
    assert same(s * a, a * s)
    assert same(-1 * a, -a)
    assert near(a / s * s, a, a)


@laws
@given(several(2), scalars, scalars)
def test_scaling_distributes_up_to_rounding(pair, s, t):
    a, b = pair
    assert near(s * (a + b), s * a + s * b, s * a, s * b)
    assert near((s + t) * a, s * a + t * a, s * a, t * a)
    assert near((s * t) * a, s * (t * a), s * t * a)


@pytest.mark.parametrize(
    "half",
    [
        0.5,
        Fraction(1, 2),
        np.float64(0.5),
        np.float32(0.5),
        np.float16(0.5),
        np.array(0.5),
        torch.tensor(0.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_kind_of_number_scales_from_both_sides(half):
    a = vector([3.0, -1.0])
    for scaled in (half * a, a * half, a / (2 * half) / 2):
        assert isinstance(scaled, TaskVector)
        assert scaled.flat.tolist() == [1.5, -0.5]


@pytest.mark.parametrize("two", [2, np.int64(2), torch.tensor(2)], ids=lambda value: type(value).__name__)
def test_whole_numbers_scale_too(two):
    a = vector([3.0, -1.0])
    assert (two * a).flat.tolist() == (a * two).flat.tolist() == [6.0, -2.0]
    assert (a / two).flat.tolist() == [1.5, -0.5]


# --- geometry --------------------------------------------------------------------------------------------


@laws
@given(several(2))
def test_dot_and_norm_agree_with_exact_fractions(pair):
    a, b = pair
    scale = float(sum(abs(x * y) for x, y in zip(a.flat.tolist(), b.flat.tolist(), strict=True)))
    assert abs(Fraction(a.dot(b)) - exact_dot(a, b)) <= 16 * ROUNDING * scale
    assert a.norm() == pytest.approx(math.sqrt(exact_dot(a, a)), rel=1e-14, abs=0)
    assert a.norm() == pytest.approx(math.hypot(*a.flat.tolist()), rel=1e-14, abs=0)


@laws
@given(several(2))
def test_cosine_agrees_with_exact_fractions(pair):
    a, b = pair
    if a.norm() == 0 or b.norm() == 0:
        with pytest.raises(ValueError, match=r"zero and so has no direction; was the model finetuned"):
            a.cosine(b)
        return
    exact = float(exact_dot(a, b)) / math.sqrt(exact_dot(a, a)) / math.sqrt(exact_dot(b, b))
    assert a.cosine(b) == pytest.approx(exact, abs=1e-14)
    assert -1 <= a.cosine(b) <= 1
    assert a.cosine(a) == pytest.approx(1, abs=1e-15)
    assert a.cosine(-a) == pytest.approx(-1, abs=1e-15)


@laws
@given(several(3), scalars)
def test_the_inner_product_is_one(three, s):
    a, b, c = three
    lengths = (a.norm() + b.norm()) * c.norm()
    assert a.dot(b) == b.dot(a)
    assert abs((a + b).dot(c) - (a.dot(c) + b.dot(c))) <= 1e-14 * lengths
    assert abs((s * a).dot(c) - s * a.dot(c)) <= 1e-14 * abs(s) * lengths
    assert (s * a).norm() == pytest.approx(abs(s) * a.norm(), rel=1e-14, abs=0)


@laws
@given(several(2))
def test_cauchy_schwarz_and_the_triangle_inequality(pair):
    a, b = pair
    assert abs(a.dot(b)) <= a.norm() * b.norm() * (1 + 1e-14)
    assert (a + b).norm() <= (a.norm() + b.norm()) * (1 + 1e-14)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 6, 100])
def test_long_vectors_are_summed_piece_by_piece(chunk, monkeypatch):
    monkeypatch.setattr(vectors, "_CHUNK", chunk)
    a, b = vector([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), vector([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert a.dot(b) == 6 + 10 + 12 + 12 + 10 + 6


def test_lengths_and_angles_of_long_float32_vectors_are_accumulated_in_float64():
    """A large entry first, then a million ones that a float32 sum of the squares swallows whole."""
    ones, large = 1_000_000, 2.0**13
    values = torch.ones(ones + 1)
    values[0] = large
    naive = np.cumsum(np.square(values.numpy()), dtype=np.float32)[-1]
    truth = large**2 + ones
    assert abs(naive / truth - 1) > 0.01  # otherwise this test could not fail
    a = TaskVector(values, [("weight", (ones + 1,))])
    assert a.dot(a) == truth
    assert a.norm() == math.sqrt(truth)
    assert a.cosine(a) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_short_floats_keep_their_dtype_and_do_not_overflow_in_a_norm(dtype):
    a = vector([300.0, 400.0], dtype)  # 400² is beyond float16
    assert a.norm() == 500
    assert a.dot(a) == 250_000
    for result in (a + a, a - a, -a, 2 * a, a / 2):
        assert result.flat.dtype == dtype
    assert (a * 0.5).flat.tolist() == [150, 200]


def test_an_angle_beyond_float64_is_an_error_and_not_a_wrong_number():
    a = vector([1e200])
    with pytest.raises(ValueError, match="the product of the two norms must be finite"):
        a.cosine(-a)


# --- between two models, and back ------------------------------------------------------------------------


def random_state(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first.weight": (4, 3), "first.bias": (4,), "scale": (), "empty": (0, 2)}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in shapes.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_between_subtracts_part_by_part(dtype):
    pretrained, finetuned = random_state(dtype, 0), random_state(dtype, 1)
    tv = TaskVector.between(pretrained, finetuned)
    assert tv.layout == tuple((name, tuple(tensor.shape)) for name, tensor in pretrained.items())
    assert len(tv) == 4 * 3 + 4 + 1
    for name, part in tv.items():
        assert part.dtype == dtype
        assert part.shape == pretrained[name].shape
        assert torch.equal(part, finetuned[name] - pretrained[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_to_goes_back_to_the_finetuned_model_up_to_rounding(dtype):
    pretrained, finetuned = random_state(dtype, 0), random_state(dtype, 1)
    back = TaskVector.between(pretrained, finetuned).apply_to(pretrained)
    assert list(back) == list(pretrained)
    for name, tensor in back.items():
        size = pretrained[name].abs() + finetuned[name].abs()
        assert tensor.dtype == dtype
        assert bool(((tensor - finetuned[name]).abs() <= 2 * torch.finfo(dtype).eps * size).all())


@laws
@given(several(2), scalars)
def test_apply_to_is_pretrained_plus_the_scaled_vector(pair, s):
    start, tv = pair
    moved = tv.apply_to(dict(start.items()), scaling_coef=s)
    flat = torch.cat([tensor.reshape(-1) for tensor in moved.values()])
    assert flat.tolist() == [x + s * y for x, y in zip(start.flat.tolist(), tv.flat.tolist(), strict=True)]
    assert all(torch.equal(part, moved[name]) for name, part in (start + s * tv).items())


def test_a_scaling_coefficient_of_zero_gives_an_equal_model_with_tensors_of_its_own():
    result = TaskVector.between(START, FINETUNED).apply_to(START, scaling_coef=0)
    assert all(torch.equal(result[name], START[name]) for name in START)
    assert all(result[name].data_ptr() != START[name].data_ptr() for name in START)


def test_a_state_dict_in_another_order_fits_by_name():
    tv = TaskVector.between(START, dict(reversed(FINETUNED.items())))
    result = tv.apply_to(dict(reversed(START.items())))
    assert list(result) == ["bias", "weight"]
    assert all(torch.equal(result[name], FINETUNED[name]) for name in START)


def test_a_vector_from_modules_that_still_train_carries_no_graph():
    pretrained, finetuned = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    tv = TaskVector.between(dict(pretrained.named_parameters()), dict(finetuned.named_parameters()))
    result = tv.apply_to(dict(pretrained.named_parameters()))
    assert not tv.flat.requires_grad
    assert not any(tensor.requires_grad for tensor in result.values())


def test_tensors_that_do_not_lie_in_one_piece_are_read_in_their_order():
    pretrained = {"weight": torch.arange(6.0).reshape(2, 3).T}
    tv = TaskVector.between({"weight": torch.zeros(3, 2)}, pretrained)
    assert tv.flat.tolist() == [0, 3, 1, 4, 2, 5]


# --- integer buffers -------------------------------------------------------------------------------------

BUFFER = {**START, "batches": torch.tensor(3)}
LATER = {**FINETUNED, "batches": torch.tensor(7)}


@pytest.mark.parametrize("buffer", [torch.tensor(3), torch.tensor([True]), torch.ones(2, dtype=torch.uint8)])
def test_integer_buffers_are_refused_by_default(buffer):
    with pytest.raises(TypeError, match=rf"'batches' is {buffer.dtype}.*integer_buffers=\"carry\""):
        TaskVector.between({**START, "batches": buffer}, {**FINETUNED, "batches": buffer})


def test_carried_buffers_stay_those_of_the_pretrained_model():
    tv = TaskVector.between(BUFFER, LATER, integer_buffers="carry")
    result = (2 * tv - tv).apply_to(BUFFER)
    assert tv.carried == ("batches",)
    assert len(tv) == 3
    assert result["batches"].item() == 3
    assert result["batches"].data_ptr() != BUFFER["batches"].data_ptr()
    assert torch.equal(result["weight"], FINETUNED["weight"])


def test_a_carried_buffer_must_be_there_when_the_vector_is_applied():
    tv = TaskVector.between(BUFFER, LATER, integer_buffers="carry")
    with pytest.raises(ValueError, match="the task vector has 'batches', pretrained has not"):
        tv.apply_to(START)


def test_carried_buffers_of_other_shapes_tell_of_another_architecture():
    other = {**LATER, "batches": torch.tensor([7])}
    with pytest.raises(ValueError, match=r"shapes differ at 'batches': \(\) against \(1,\)"):
        TaskVector.between(BUFFER, other, integer_buffers="carry")


def test_a_weight_is_not_carried_because_the_other_one_is_an_integer():
    other = {**FINETUNED, "bias": torch.tensor([0])}
    for pair in ((START, other), (other, START)):
        with pytest.raises(TypeError, match=r"dtypes differ at 'bias': .*convert one with \.to"):
            TaskVector.between(*pair, integer_buffers="carry")


def test_an_unknown_way_with_integer_buffers_suggests_the_known():
    with pytest.raises(ValueError, match="unknown integer_buffers 'cary': did you mean 'carry'"):
        TaskVector.between(START, FINETUNED, integer_buffers="cary")


# --- nothing is written into, nothing is shared ----------------------------------------------------------


def test_no_operation_writes_into_its_inputs():
    pretrained, finetuned = copy.deepcopy(BUFFER), copy.deepcopy(LATER)
    a = TaskVector.between(pretrained, finetuned, integer_buffers="carry")
    before = a.flat
    for result in (a + a, a - a, -a, a * 2, a / 2, sum([a, a]), a + 0):
        assert result.carried == ("batches",)
    a.dot(a), a.norm(), a.cosine(a), a.apply_to(pretrained, 3.0), repr(a), list(a.items())
    assert torch.equal(a.flat, before)
    for now, then in ((pretrained, BUFFER), (finetuned, LATER)):
        assert all(torch.equal(now[name], then[name]) for name in then)


def test_storage_is_its_own_when_the_inputs_change_afterwards():
    pretrained, finetuned, flat = copy.deepcopy(START), copy.deepcopy(FINETUNED), torch.ones(2)
    tv, made = TaskVector.between(pretrained, finetuned), TaskVector(flat, [("w", (2,))])
    result = tv.apply_to(pretrained)
    for tensor in (*pretrained.values(), *finetuned.values(), flat):
        tensor.fill_(99)
    assert tv.flat.tolist() == [0.5, 0, -0.5]
    assert made.flat.tolist() == [1, 1]
    assert all(torch.equal(result[name], FINETUNED[name]) for name in FINETUNED)


@pytest.mark.parametrize("layout", [[("w", (3,))], [("w", (2,)), ("v", (1,))]])
def test_what_a_vector_hands_out_are_copies(layout):
    tv = TaskVector(torch.ones(3), layout)
    for tensor in (tv.flat, *dict(tv.items()).values(), *tv.apply_to(dict(tv.items()), 0).values()):
        tensor.fill_(99)
    assert tv.flat.tolist() == [1, 1, 1]


def test_a_vector_of_tensors_that_still_train_carries_no_graph():
    flat = torch.ones(2, requires_grad=True)
    assert not TaskVector(flat, [("w", (2,))]).flat.requires_grad
    assert flat.requires_grad


def test_each_result_has_storage_of_its_own():
    a = vector([1.0, 2.0])
    results = [a + 0, 0 + a, sum([a]), 1 * a, a / 1, a + a - a]
    pointers = {result._flat.data_ptr() for result in [a, *results]}
    assert len(pointers) == 1 + len(results)
    assert all(same(result, a) for result in results)


def test_a_single_part_is_not_the_tensor_it_came_from():
    flat = torch.ones(2)
    tv = TaskVector.between({"w": torch.zeros(2)}, {"w": flat})
    assert tv._flat.data_ptr() != flat.data_ptr()
    assert dict(tv.items())["w"].data_ptr() != tv._flat.data_ptr()


def test_repr_tells_the_size_the_dtype_and_the_length():
    assert repr(vector([3.0, 4.0])) == "TaskVector(2 entries in 2 tensors, torch.float64, norm 5)"
    assert len(vector([3.0, 4.0])) == 2


# --- kinds and orders ------------------------------------------------------------------------------------


def test_another_kind_has_the_same_entries_rounded():
    vector = TaskVector(torch.tensor([1.0, 2.0, 1 / 3], dtype=torch.float64), [("w", (3,))], ["steps"])
    found = vector.to(dtype=torch.float32, device="cpu")
    assert found.flat.equal(torch.tensor([1.0, 2.0, 1 / 3]))
    assert (found.layout, found.carried) == (vector.layout, vector.carried)
    with pytest.raises(ValueError, match="infinite"):
        (1e5 * vector).to(dtype=torch.float16)
    with pytest.raises(TypeError, match="int64"):
        vector.to(dtype=torch.int64)


def test_two_orders_of_the_same_tensors_can_be_made_one():
    first = TaskVector(torch.tensor([1.0, 2.0, 3.0]), [("w", (2, 1)), ("v", (1,))])
    second = TaskVector(torch.tensor([30.0, 10.0, 20.0]), [("v", (1,)), ("w", (2, 1))])
    assert (first + second.ordered_like(first)).flat.tolist() == [11.0, 22.0, 33.0]
    assert dict((first.ordered_like(second) + second).items())["w"].tolist() == [[11.0], [22.0]]
    other = TaskVector(torch.tensor([30.0, 10.0, 20.0]), [("v", (1,)), ("w", (1, 2))])
    with pytest.raises(ValueError, match="shapes differ at 'w'"):
        other.ordered_like(first)
