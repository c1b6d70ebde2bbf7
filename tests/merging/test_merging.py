"""The merging rules against arithmetic written out, slow loops in plain Python, and the laws they obey."""

import inspect
import math
import re
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from small_vectors import noise, source, vector
from taskvec_mini import TaskVector, merging

slowly = settings(deadline=None, max_examples=40, derandomize=True)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def options(rule, **given_options):
    return pytest.param(lambda vectors: rule(vectors, **given_options), id=f"{rule.__name__} {given_options}")


LINEAR = [options(merging.task_arithmetic), options(merging.mean)]
TIES = [
    options(merging.ties, density=density, per_tensor=per_tensor, elect=elect, combine=combine)
    for density, per_tensor, elect, combine in [
        (0.5, False, "mass", "mean"),
        (0.5, True, "mass", "sum"),
        (0.3, True, "count", "mean"),
        (1, False, "count", "sum"),
    ]
]
CRUMBS = [options(merging.breadcrumbs, smallest=0.4, largest=0.2)]
DARE = [pytest.param(lambda vectors: merging.dare(vectors, drop_rate=0.5, generator=source(5)), id="dare")]
MATRICES = [
    options(merging.tsv),
    options(merging.tsv, kernels="matrix"),
    options(merging.iso_c),
    options(merging.iso_cts, common_share=0.3),
    options(merging.regmean_from_vectors, ridge=0.1),
    options(merging.wudi),
]
CONSENSUS = [options(merging.consensus, agreeing=1)]
STEPS = [options(merging.wudi, steps=30, step_size=0.01)]  # which have a length of their own
NO_CHANCE = [*LINEAR, *TIES, *CRUMBS, *CONSENSUS, *MATRICES, *STEPS]
WITHOUT_CHANCE = pytest.mark.parametrize("rule", NO_CHANCE)
EVERY = pytest.mark.parametrize("rule", [*NO_CHANCE, *DARE])  # dare: the same masks at each call
OF_NO_SCALE = pytest.mark.parametrize("rule", [rule for rule in [*NO_CHANCE, *DARE] if rule not in STEPS])


# --- arithmetic written out ------------------------------------------------------------------------------


def test_the_sum_and_the_mean_of_three():
    three = [vector([1.0, 4.0, 0.0]), vector([3.0, -2.0, 0.5]), vector([-1.0, 1.0, 1.0])]
    assert merging.task_arithmetic(three).flat.tolist() == [3.0, 3.0, 1.5]  # 1 + 3 − 1, 4 − 2 + 1, 0 + ½ + 1
    assert merging.mean(three).flat.tolist() == [1.0, 1.0, 0.5]  # each a third


def test_the_mean_with_lambda_one_is_the_average_model_and_its_lambda_is_t_times_that_of_the_sum():
    start = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([8.0])}
    ends = [
        {"weight": torch.tensor([[3.0, 2.0]]), "bias": torch.tensor([4.0])},
        {"weight": torch.tensor([[1.0, -2.0]]), "bias": torch.tensor([6.0])},
    ]
    pair = [TaskVector.between(start, end) for end in ends]
    average = merging.mean(pair).apply_to(start, scaling_coef=1.0)
    assert average["weight"].tolist() == [[2.0, 0.0]]
    assert average["bias"].tolist() == [5.0]
    same = merging.task_arithmetic(pair).apply_to(start, scaling_coef=1 / 2)
    assert all(torch.equal(average[name], same[name]) for name in start)


# Trimmed to the 3 largest of 6:  a = [6, ·, ·, −2, 4, ·]   b = [·, 5, ·, −6, −3, ·]   c = [2, ·, ·, 3, −3, ·]
A = [6.0, 1.0, 0.5, -2.0, 4.0, 0.0]
B = [1.0, 5.0, -2.0, -6.0, -3.0, 0.0]
C = [2.0, -1.0, 0.5, 3.0, -3.0, 0.0]


@pytest.mark.parametrize(
    ("elect", "combine", "expected"),
    [
        # mass: 6 + 2 > 0 | 5 > 0 | nobody | −2 − 6 + 3 = −5 < 0 | 4 − 3 − 3 = −2 < 0 | nobody
        ("mass", "mean", [4.0, 5.0, 0.0, -4.0, -3.0, 0.0]),  # (6+2)/2, 5/1, 0, (−2−6)/2, (−3−3)/2, 0
        ("mass", "sum", [8.0, 5.0, 0.0, -8.0, -6.0, 0.0]),
        ("count", "mean", [4.0, 5.0, 0.0, -4.0, -3.0, 0.0]),  # two to one at the fourth and the fifth
        ("count", "sum", [8.0, 5.0, 0.0, -8.0, -6.0, 0.0]),
    ],
)
def test_ties_of_three(elect, combine, expected):
    merged = merging.ties([vector(A), vector(B), vector(C)], density=0.5, elect=elect, combine=combine)
    assert merged.flat.tolist() == expected


def test_ties_elects_by_mass_against_the_majority_and_by_count_with_it():
    three = [vector([5.0]), vector([-1.0]), vector([-2.0])]  # mass 5 − 3 > 0; count one against two
    assert merging.ties(three, density=1).flat.tolist() == [5.0]
    assert merging.ties(three, density=1, elect="count").flat.tolist() == [-1.5]


def test_ties_leaves_zero_where_no_sign_wins():
    pair = [vector([2.0, 3.0, 1.0]), vector([-2.0, -1.0, 3.0])]  # masses 0, 2, 4; counts 0, 0, 2
    assert merging.ties(pair, density=1).flat.tolist() == [0.0, 3.0, 2.0]
    assert merging.ties(pair, density=1, elect="count").flat.tolist() == [0.0, 0.0, 2.0]


def test_ties_trims_the_whole_vector_or_each_tensor():
    one = [vector([9.0, 8.0, 7.0, 6.0, 0.4, 0.3], [(2, 2), (2,)])]
    assert merging.ties(one, density=0.5).flat.tolist() == [9.0, 8.0, 7.0, 0.0, 0.0, 0.0]
    merged = merging.ties(one, density=0.5, per_tensor=True)
    assert merged.flat.tolist() == [9.0, 8.0, 0.0, 0.0, 0.4, 0.0]


def test_ties_keeps_the_earlier_of_equal_entries():
    one = [vector([1.0, -2.0, 2.0, 2.0, -1.0])]
    assert merging.ties(one, density=0.4).flat.tolist() == [0.0, -2.0, 2.0, 0.0, 0.0]  # ⌈0.4 · 5⌉ = 2 stay


@pytest.mark.parametrize(
    ("density", "size", "kept"),
    [(0.2, 10, 2), (0.1, 30, 3), (0.1, 31, 4), (0.29, 100, 29), (1e-9, 7, 1), (1, 7, 7), (0.999, 7, 7)],
)
def test_ties_keeps_exactly_the_share_rounded_up(density, size, kept):
    """0.1 * 30 is 3.0000000000000004 in floating point, and 0.29 * 100 is 28.999999999999996."""
    merged = merging.ties([vector([float(i) for i in range(1, size + 1)])], density=density)
    assert merged.flat.tolist() == [float(i) if i > size - kept else 0.0 for i in range(1, size + 1)]


def test_shares_from_a_grid_of_any_precision_mean_what_they_say():
    one = [vector([float(i) for i in range(1, 11)])]
    for density in (np.float32(0.2), torch.tensor(0.2), np.arange(0.1, 1, 0.1)[1]):
        assert int((merging.ties(one, density=density).flat != 0).sum()) == 2


def test_dare_drops_and_rescales_by_the_numbers_drawn():
    """The numbers drawn, task by task, decide: below 3/4 an entry is dropped, else multiplied by 4."""
    values = [[float(i + 10 * t) for i in range(1, 10)] for t in range(3)]
    merged = merging.dare([vector(row) for row in values], drop_rate=0.75, generator=source(3))
    numbers = source(3)
    drawn = [torch.rand(9, generator=numbers).tolist() for _ in values]
    expected = [
        sum(4 * row[i] for row, u in zip(values, drawn, strict=True) if u[i] >= 0.75) for i in range(9)
    ]
    assert merged.flat.tolist() == expected
    assert 0 < sum(x != 0 for x in expected) < 9


def test_breadcrumbs_masks_both_ends_of_each_tensor():
    one = vector([9.0, -4.0, 0.1, 3.0, -90.0, 1.0, 40.0, 30.0], [(4,), (2, 2)])
    merged = merging.breadcrumbs([one], smallest=0.25, largest=0.25)  # one of four at each end of each tensor
    assert merged.flat.tolist() == [0.0, -4.0, 0.0, 3.0, 0.0, 0.0, 40.0, 30.0]
    other = vector([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0], [(4,), (2, 2)])
    merged = merging.breadcrumbs([one, other], smallest=0.25, largest=0.25)
    assert merged.flat.tolist() == [0.0, -2.0, 3.0, 3.0, 0.0, 2.0, 43.0, 30.0]  # + [·, 2, 3, ·] twice


def test_breadcrumbs_with_one_end_only():
    """A slice that ends at −0 would be empty and erase everything."""
    one = [vector([1.0, -2.0, 3.0, -4.0])]
    assert merging.breadcrumbs(one, smallest=0.5, largest=0).flat.tolist() == [0.0, 0.0, 3.0, -4.0]
    assert merging.breadcrumbs(one, smallest=0, largest=0.5).flat.tolist() == [1.0, -2.0, 0.0, 0.0]


def test_breadcrumbs_takes_the_earlier_of_equal_entries_for_the_larger():
    one = [vector([5.0, 5.0, -5.0, 5.0, 5.0])]  # two of five go as the smallest, one as the largest
    merged = merging.breadcrumbs(one, smallest=0.4, largest=0.2)
    assert merged.flat.tolist() == [0.0, 5.0, -5.0, 0.0, 0.0]


def test_breadcrumbs_rounds_down_and_so_leaves_something_of_every_tensor():
    small = vector([3.0, 1.0, 2.0, 7.0], [(), (3,)])  # ⌊0.85 · 1⌋ = 0 and ⌊0.85 · 3⌋ = 2 go
    assert merging.breadcrumbs([small]).flat.tolist() == [3.0, 0.0, 0.0, 7.0]


def test_consensus_of_three():
    """Used where 2 |τ_t| ≥ |the others' sum|: by all, by the first alone, by the last two, by none."""
    rows = [
        [1.0, 9.0, 1.0, 1.0, -3.0],
        [2.0, 1.0, 5.0, 1.0, 4.0],
        [1.0, 2.0, -4.0, -4.0, 0.0],
    ]
    vectors = [vector(row) for row in rows]
    # per column, |others|: 3 2 3 | 3 11 10 | 1 3 6 | 3 3 2 | 4 3 1
    # used:                 no yes no | yes no no | yes yes yes | no no yes | yes yes no
    two = merging.consensus(vectors, threshold=0.5)
    assert two.flat.tolist() == [0.0, 0.0, 2.0, 0.0, 1.0]
    assert merging.consensus(vectors, threshold=0.5, agreeing=3).flat.tolist() == [0.0, 0.0, 2.0, 0.0, 0.0]
    one = merging.consensus(vectors, threshold=0.5, agreeing=1)
    assert one.flat.tolist() == [4.0, 12.0, 2.0, -2.0, 1.0]


def test_consensus_counts_an_entry_at_the_threshold_as_used():
    pair = [vector([1.0, 1.0]), vector([2.0, 2.5])]  # 1 ≥ ½ · 2, but 1 < ½ · 2.5
    assert merging.consensus(pair, threshold=0.5).flat.tolist() == [3.0, 0.0]


def test_consensus_takes_a_threshold_for_each_task():
    pair = [vector([1.0, 4.0]), vector([4.0, 1.0])]  # the small one needs a threshold of at most a quarter
    assert merging.consensus(pair, threshold=[0.25, 0.5]).flat.tolist() == [5.0, 0.0]
    assert merging.consensus(pair, threshold=(0.5, 0.25)).flat.tolist() == [0.0, 5.0]


@pytest.mark.parametrize(("count", "left"), [(2, 2.0), (3, 3.0), (4, 0.0), (8, 0.0)])
def test_consensus_of_equal_vectors_is_their_sum_or_nothing(count, left):
    """Four drown each of them: 1 < 0.4 · 3."""
    assert merging.consensus([vector([1.0])] * count).flat.tolist() == [left]


def test_the_published_settings_are_the_defaults():
    rows = [vector([float(i) for i in range(1, 201)])]
    assert torch.equal(merging.ties(rows).flat, merging.ties(rows, density=0.2).flat)
    kept = merging.breadcrumbs(rows).flat
    assert kept.nonzero().squeeze(1).tolist() == list(range(170, 198))  # 0.85 and 0.01 of 200: 170 and 2 go
    dropped = merging.dare(rows, generator=source()).flat
    assert torch.equal(dropped, merging.dare(rows, drop_rate=0.9, generator=source()).flat)
    pair = [vector(A), vector(B)]
    agreed = merging.consensus(generic(), threshold=0.4, agreeing=2).flat
    assert torch.equal(merging.consensus(generic()).flat, agreed)
    assert torch.equal(
        merging.ties(pair, density=1).flat,
        merging.ties(pair, density=1, per_tensor=False, elect="mass", combine="mean").flat,
    )


# --- a second implementation: loops over plain numbers ---------------------------------------------------

# quarters: few values, so that ties and zeros abound, and every sum is exact
quarters = st.integers(-6, 6).map(lambda n: n / 4)
SHAPES = [(2, 2), (3,), (), (0, 2), (1, 4)]
SIZE = 12


def tasks(numbers=quarters, most=4):
    return st.lists(st.lists(numbers, min_size=SIZE, max_size=SIZE), min_size=1, max_size=most)


def ranges(per_tensor):
    """The positions of each part, or all in one."""
    start, found = 0, []
    for shape in SHAPES:
        found.append(range(start, start + math.prod(shape)))
        start += math.prod(shape)
    return found if per_tensor else [range(start)]


def from_the_largest(row, positions):
    """The positions by falling magnitude; sorting is stable, so the earlier of equals comes first."""
    return sorted(positions, key=lambda i: -abs(row[i]))


def slow_ties(rows, density, per_tensor, elect, combine):
    trimmed = []
    for row in rows:
        kept = set()
        for positions in ranges(per_tensor):
            kept |= set(from_the_largest(row, positions)[: math.ceil(density * len(positions))])
        trimmed.append([x if i in kept else 0.0 for i, x in enumerate(row)])
    merged = []
    for column in zip(*trimmed, strict=True):
        up, down = [x for x in column if x > 0], [x for x in column if x < 0]
        ballot = sum(up) + sum(down) if elect == "mass" else len(up) - len(down)
        winners = up if ballot > 0 else down if ballot < 0 else []
        merged.append(sum(winners) / (len(winners) if combine == "mean" and winners else 1))
    return merged


@slowly
@given(
    rows=tasks(),
    twentieths=st.integers(1, 20),
    per_tensor=st.booleans(),
    elect=st.sampled_from(["mass", "count"]),
    combine=st.sampled_from(["mean", "sum"]),
)
def test_ties_as_loops_do_it(rows, twentieths, per_tensor, elect, combine):
    how = {"per_tensor": per_tensor, "elect": elect, "combine": combine}
    merged = merging.ties([vector(row, SHAPES) for row in rows], density=twentieths / 20, **how)
    assert merged.flat.tolist() == slow_ties(rows, density=Fraction(twentieths, 20), **how)


@slowly
@given(rows=tasks(), small=st.integers(0, 20), large=st.integers(0, 19))
def test_breadcrumbs_as_loops_do_it(rows, small, large):
    small = min(small, 19 - large)
    expected = [0.0] * SIZE
    for row in rows:
        for positions in ranges(per_tensor=True):
            first = math.floor(Fraction(large * len(positions), 20))
            last = len(positions) - math.floor(Fraction(small * len(positions), 20))
            assert last > first or not positions
            for i in from_the_largest(row, positions)[first:last]:
                expected[i] += row[i]
    merged = merging.breadcrumbs(
        [vector(row, SHAPES) for row in rows], smallest=small / 20, largest=large / 20
    )
    assert merged.flat.tolist() == expected


@slowly
@given(tasks(st.floats(-1e6, 1e6)))
def test_the_sum_and_the_mean_as_exact_fractions_do_it(rows):
    exact = [sum(map(Fraction, column)) for column in zip(*rows, strict=True)]
    sizes = [sum(map(abs, column)) for column in zip(*rows, strict=True)]
    vectors = [vector(row, SHAPES) for row in rows]
    for merged, divisor in ((merging.task_arithmetic(vectors), 1), (merging.mean(vectors), len(rows))):
        for ours, theirs, size in zip(merged.flat.tolist(), exact, sizes, strict=True):
            assert abs(ours - theirs / divisor) <= 2.0**-50 * size


@slowly
@given(rows=tasks(), seed=st.integers(0, 99), eighths=st.integers(0, 7))
def test_dare_as_loops_do_it(rows, seed, eighths):
    numbers, expected = source(seed), [0.0] * SIZE
    for row in rows:
        for i, drawn in enumerate(torch.rand(SIZE, generator=numbers).tolist()):
            if drawn >= eighths / 8:
                expected[i] += row[i]
    merged = merging.dare(
        [vector(row, SHAPES) for row in rows], drop_rate=eighths / 8, generator=source(seed)
    )
    assert merged.flat.tolist() == [x / (1 - eighths / 8) for x in expected]


@slowly
@given(rows=tasks(), eighths=st.lists(st.integers(0, 16), min_size=4, max_size=4), agreeing=st.integers(1, 4))
def test_consensus_as_loops_do_it(rows, eighths, agreeing):
    """In quarters and eighths, so that nothing is rounded and equality is met often."""
    agreeing = min(agreeing, len(rows))
    thresholds = [number / 8 for number in eighths[: len(rows)]]
    expected = []
    for column in zip(*rows, strict=True):
        users = 0
        for task, entry in enumerate(column):
            others = sum(column[:task]) + sum(column[task + 1 :])
            users += abs(entry) >= thresholds[task] * abs(others)
        expected.append(sum(column) if users >= agreeing else 0.0)
    vectors = [vector(row, SHAPES) for row in rows]
    merged = merging.consensus(vectors, threshold=thresholds, agreeing=agreeing)
    assert merged.flat.tolist() == expected
    same = merging.consensus(vectors, threshold=thresholds[0], agreeing=agreeing).flat
    alike = merging.consensus(vectors, threshold=[thresholds[0]] * len(rows), agreeing=agreeing).flat
    assert torch.equal(same, alike)


# --- laws of every rule ----------------------------------------------------------------------------------


def generic(count=3, dtype=torch.float64, seed=0):
    """Task vectors of a small network: two matrices and two biases."""
    layout = [("0.weight", (6, 5)), ("0.bias", (6,)), ("1.weight", (4, 6)), ("1.bias", (4,))]
    return [TaskVector(row.to(dtype), layout) for row in noise(count, 64, seed=seed)]


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_vector_is_like_those_it_came_from(rule, dtype):
    vectors = generic(dtype=dtype)
    before = [v.flat for v in vectors]
    merged = rule(iter(vectors))  # any iterable will do
    assert merged.layout == vectors[0].layout
    assert merged.flat.dtype == dtype
    assert bool((merged.flat != 0).any())
    assert all(torch.equal(v.flat, old) for v, old in zip(vectors, before, strict=True))


@EVERY
def test_a_merged_vector_has_storage_of_its_own(rule):
    (one,) = generic(1)
    merged = rule([one])
    for name, part in merged.apply_to({name: torch.zeros_like(p) for name, p in one.items()}).items():
        part += 1
        assert not torch.equal(part, dict(merged.items())[name])
    assert merged._flat.data_ptr() != one._flat.data_ptr()


@OF_NO_SCALE
@pytest.mark.parametrize("scale", [4.0, -0.5, -1.0])
def test_scaling_the_vectors_scales_the_result(rule, scale):
    merged, scaled = rule(generic()), rule([scale * v for v in generic()])
    torch.testing.assert_close(scaled.flat, scale * merged.flat, rtol=1e-12, atol=1e-12)


@WITHOUT_CHANCE
def test_the_order_of_the_tasks_does_not_matter(rule):
    first, second, third = generic()
    merged = rule([first, second, third])
    for order in ([third, first, second], [second, first, third]):
        torch.testing.assert_close(rule(order).flat, merged.flat, rtol=1e-12, atol=1e-12)


@EVERY
def test_every_task_counts(rule):
    """Neither a return inside the loop nor a lost last task."""
    vectors = generic()
    merged = rule(vectors).flat
    for place in range(3):
        changed = [3 * v if i == place else v for i, v in enumerate(vectors)]
        assert not torch.allclose(rule(changed).flat, merged)


@EVERY
def test_merging_piece_by_piece_changes_nothing(rule, monkeypatch):
    whole = rule(generic()).flat
    for piece in (1, 7, 63, 64):
        monkeypatch.setattr(merging.rules, "_PIECE", piece)
        torch.testing.assert_close(rule(generic()).flat, whole, rtol=1e-14, atol=1e-14)


class Largest(TorchFunctionMode):
    """Remembers the size of the largest tensor that any operation makes."""

    size = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.numel())
        return result


@EVERY
def test_no_rule_holds_a_copy_of_all_vectors_at_once(rule, monkeypatch):
    monkeypatch.setattr(merging.rules, "_PIECE", 8)
    layout = [(f"weight {i}", (4, 4)) for i in range(16)]
    vectors = [TaskVector(row, layout) for row in noise(12, 256)]
    with Largest() as seen:
        rule(vectors)
    assert 0 < seen.size <= 256


@EVERY
def test_carried_buffers_are_still_carried(rule):
    vectors = [TaskVector(v.flat, v.layout, ["count"]) for v in generic()]
    assert rule(vectors).carried == ("count",)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_threshold_is_that_of_a_sort(dtype):
    """With few values among many entries, so that ranks fall inside runs of equal entries as well."""
    values = (noise(500).abs() * 8).round().to(dtype) / 8
    ordered = values.sort(descending=True).values.tolist()
    for counts in ((1,), (2, 77), (250, 0), (500, 499), (77, 77)):
        for count, mask in zip(counts, merging.rules._largest(values, *counts), strict=True):
            assert sorted(values[mask].tolist(), reverse=True) == ordered[:count]


# --- laws of one rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [merging.mean, merging.task_arithmetic])
def test_sums_let_go_of_the_vectors_that_a_generator_makes(rule):
    alive, most = weakref.WeakSet(), 0

    def made():
        nonlocal most
        for place in range(9):
            made_now = vector([1.0, place])
            alive.add(made_now)
            most = max(most, len(alive))
            yield made_now
            del made_now

    rule(made())
    assert most == 3, "the first and the two newest"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 9])
def test_sums_round_no_more_than_additions_do(dtype, count):
    vectors = generic(count, dtype)
    rows = torch.stack([each.flat.double() for each in vectors])
    once = torch.finfo(dtype).eps * rows.sum(0).abs()  # half precision is rounded at the end
    along = count * torch.finfo(torch.float32).eps * rows.abs().sum(0)
    total, average = merging.task_arithmetic(vectors).flat, merging.mean(vectors).flat
    assert ((total.double() - rows.sum(0)).abs() <= once + along).all()
    assert ((average.double() - rows.mean(0)).abs() <= (once + along) / count).all()


@pytest.mark.parametrize("given", [3, None, TaskVector(torch.ones(2), [("part", (2,))])])
def test_what_is_no_list_of_vectors_is_named(given):
    with pytest.raises(TypeError, match=r"task_vectors must be several TaskVectors, got \w+; put them into"):
        merging.mean(given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_mean_of_equal_vectors_is_that_vector(dtype, count):
    (one,) = generic(1, dtype)
    assert torch.equal(merging.mean([one] * count).flat, one.flat)


def test_sums_are_rounded_once():
    """In float16 itself 2048 + 1 is 2048, four times over; in a wider type the four ones arrive."""
    five = [vector([2048.0], dtype=torch.float16)] + [vector([1.0], dtype=torch.float16)] * 4
    assert merging.task_arithmetic(five).flat.tolist() == [2052.0]
    assert merging.ties(five, density=1, combine="sum").flat.tolist() == [2052.0]


@slowly
@given(tasks(st.floats(0.1, 9)), st.sampled_from(["mass", "count"]), st.booleans())
def test_ties_of_everything_where_signs_agree_is_the_mean(rows, elect, per_tensor):
    signs = [(-1) ** i for i in range(SIZE)]
    vectors = [vector([s * x for s, x in zip(signs, row, strict=True)], SHAPES) for row in rows]
    for combine, same in (("mean", merging.mean), ("sum", merging.task_arithmetic)):
        merged = merging.ties(vectors, density=1, elect=elect, per_tensor=per_tensor, combine=combine)
        torch.testing.assert_close(merged.flat, same(vectors).flat, rtol=1e-14, atol=0)


def test_ties_of_the_mean_form_ignores_tasks_that_are_silent():
    assert merging.ties([vector([4.0]), vector([0.0]), vector([2.0])], density=1).flat.tolist() == [3.0]


def test_dare_with_nothing_dropped_and_breadcrumbs_with_nothing_masked_are_the_sum():
    total = merging.task_arithmetic(generic()).flat
    assert torch.equal(merging.dare(generic(), drop_rate=0, generator=source()).flat, total)
    assert torch.equal(merging.breadcrumbs(generic(), smallest=0, largest=0).flat, total)


@slowly
@given(tasks())
def test_consensus_with_a_threshold_of_zero_is_the_sum(rows):
    """Zeros count as used, too, so that what one task alone has moved stays."""
    vectors = [vector(row, SHAPES) for row in rows]
    merged = merging.consensus(vectors, threshold=0, agreeing=len(rows))
    assert torch.equal(merged.flat, merging.task_arithmetic(vectors).flat)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.99])
def test_dare_divides_survivors_by_what_is_kept_and_nothing_else(rate):
    one = TaskVector(noise(20_000), [("weight", (20_000,))])
    merged = merging.dare([one], drop_rate=rate, generator=source(1)).flat
    alive = merged != 0
    assert torch.equal(merged[alive], one.flat[alive] / (1 - rate))
    spread = math.sqrt(rate * (1 - rate) / 20_000)  # of the share that survives
    assert abs(alive.double().mean().item() - (1 - rate)) < 4 * spread


def test_dare_is_unbiased_with_the_variance_that_it_states():
    """The mean over N masks lies within 5 standard errors of the sum, at each of 64 entries.

    A correct rule fails a bound of 5 standard errors once in 27,000 runs of 64 entries; the seed is fixed.
    The variances, estimated from N draws each, agree on average within 5%.
    """
    rate, count, vectors, numbers = 0.8, 2000, generic(), source(2)
    draws = torch.stack([merging.dare(vectors, drop_rate=rate, generator=numbers).flat for _ in range(count)])
    variance = sum(v.flat.square() for v in vectors) * rate / (1 - rate)
    error = draws.mean(0) - merging.task_arithmetic(vectors).flat
    assert bool((error.abs() < 5 * (variance / count).sqrt()).all())
    assert abs((draws.var(0) / variance).mean().item() - 1) < 0.05


def test_dare_draws_a_mask_of_its_own_for_each_task():
    ones = vector([1.0] * 1000)
    merged = merging.dare([ones, ones], drop_rate=0.5, generator=source()).flat
    shares = [(merged == value).double().mean().item() for value in (0.0, 2.0, 4.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.06)  # one common mask would give ½, 0, ½


def test_dare_that_leaves_nothing_is_an_error():
    one = vector([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    message = "drop_rate=0.999 has left nothing of 2 vector(s) with 6 entries each; choose a lower one"
    with pytest.raises(ValueError, match=re.escape(message)):
        merging.dare([one, one], drop_rate=0.999, generator=source())
    assert merging.dare([0 * one, 0 * one], generator=source()).norm() == 0  # there was nothing before
    assert merging.dare([one, -one], drop_rate=0, generator=source()).norm() == 0  # they cancel


def test_masks_of_dare_are_one_stream_of_uniform_numbers():
    """However many are drawn at a time, and task after task."""
    size = 3 * merging.rules._PIECE // 2
    rows = [TaskVector(torch.ones(size), [("w", (size,))]) for _ in range(2)]
    drawn = torch.rand(2, size, generator=source(4))
    merged = merging.dare(rows, drop_rate=0.75, generator=source(4))
    assert torch.equal(merged.flat, 4.0 * (drawn >= 0.75).sum(0))


def test_dare_follows_its_generator_and_no_other():
    state = torch.get_rng_state()
    numbers = source(7)
    first, second = (merging.dare(generic(), generator=numbers).flat for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, merging.dare(generic(), generator=source(7)).flat)
    assert torch.equal(torch.get_rng_state(), state)


# --- refusals --------------------------------------------------------------------------------------------


@EVERY
def test_no_vectors_are_refused(rule):
    with pytest.raises(ValueError, match="the list of task vectors is empty; give at least one"):
        rule([])
    with pytest.raises(ValueError, match="the task vectors have no entries"):
        rule([TaskVector(torch.zeros(0), [("weight", (0, 3))])])


@EVERY
def test_what_is_no_task_vector_is_refused(rule):
    one = vector([1.0, 2.0])
    with pytest.raises(TypeError, match=r"task_vectors\[1\] must be a TaskVector, got Tensor"):
        rule([one, torch.ones(2)])
    with pytest.raises(
        TypeError, match=r"task_vectors\[0\] must be a TaskVector, got str; .* the values\(\)"
    ):
        rule({"digits": one})
    with pytest.raises(TypeError, match=r"task_vectors\[0\] must be a TaskVector, got Tensor"):
        rule(torch.ones(3, 2))  # T vectors of D entries in one tensor


@EVERY
def test_vectors_that_do_not_match_are_refused(rule):
    one = vector([1.0, 2.0], [(2,)])
    with pytest.raises(
        ValueError, match=r"task_vectors\[0\] and task_vectors\[2\] do not match: shapes differ"
    ):
        rule([one, one, vector([1.0, 2.0], [(1, 2)])])
    with pytest.raises(ValueError, match=r"task_vectors\[1\] do not match: keys differ: .* 'part 1'"):
        rule([one, vector([1.0, 2.0], [(1,), (1,)])])
    with pytest.raises(TypeError, match=r"do not match: dtypes differ .*torch.float64 against torch.float32"):
        rule([one, vector([1.0, 2.0], [(2,)], torch.float32)])
    with pytest.raises(ValueError, match=r"carries the buffers \(\), task_vectors\[1\] carries \('count',\)"):
        rule([one, TaskVector(one.flat, one.layout, ["count"])])


@pytest.mark.parametrize(
    "rule", [merging.task_arithmetic, lambda v: merging.ties(v, density=1, combine="sum")]
)
def test_a_sum_beyond_the_dtype_is_refused(rule):
    large = vector([1.0, 6e4], dtype=torch.float16)
    with pytest.raises(
        ValueError, match=r"the merged task vector holds 1 value\(s\) that are NaN or infinite"
    ):
        rule([large, large])


BAD_NUMBERS = [
    (math.nan, ValueError, "finite"),
    (math.inf, ValueError, "finite"),
    ("0.5", TypeError, "number"),
]


@pytest.mark.parametrize(
    ("density", "error", "words"),
    [
        (0, ValueError, "got 0; 0.2 keeps"),
        (1.01, ValueError, "at most 1"),
        (-0.2, ValueError, "above 0"),
        *BAD_NUMBERS,
    ],
)
def test_densities_out_of_range_are_refused(density, error, words):
    with pytest.raises(error, match=f"density must be .*{words}"):
        merging.ties([vector([1.0])], density=density)


@pytest.mark.parametrize(
    ("share", "error", "words"),
    [
        (1, ValueError, "below 1, got 1.0"),
        (-0.1, ValueError, "at least 0"),
        (2, ValueError, "below 1"),
        *BAD_NUMBERS,
    ],
)
def test_shares_out_of_range_are_refused(share, error, words):
    one = [vector([1.0])]
    with pytest.raises(error, match=f"drop_rate must be .*{words}"):
        merging.dare(one, drop_rate=share, generator=source())
    with pytest.raises(error, match=f"smallest must be .*{words}"):
        merging.breadcrumbs(one, smallest=share)
    with pytest.raises(error, match=f"largest must be .*{words}"):
        merging.breadcrumbs(one, largest=share)


@pytest.mark.parametrize(("smallest", "largest"), [(0.85, 0.15), (0.57, 0.43), (0.99, 0.99), (0.7, 0.3)])
def test_shares_that_leave_nothing_are_refused(smallest, largest):
    with pytest.raises(ValueError, match="leave nothing; choose shares with a sum below 1"):
        merging.breadcrumbs([vector([1.0] * 100)], smallest=smallest, largest=largest)


def test_a_missing_generator_is_refused():
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'generator'"):
        merging.dare([vector([1.0])])
    for wrong in (None, 0):
        with pytest.raises(
            TypeError, match=f"generator must be a torch.Generator, got {wrong}; torch.Generator"
        ):
            merging.dare([vector([1.0])], generator=wrong)


def test_unknown_choices_are_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="unknown election 'masses': did you mean 'mass'"):
        merging.ties([vector([1.0])], elect="masses")
    with pytest.raises(ValueError, match="unknown combination 'average': choose one of mean, sum"):
        merging.ties([vector([1.0])], combine="average")
    with pytest.raises(ValueError, match="unknown treatment of kernels 'matrices': did you mean 'matrix'"):
        merging.tsv([vector([1.0])], kernels="matrices")


@pytest.mark.parametrize(
    ("ridge", "error", "words"), [(0, ValueError, "got 0"), (-1, ValueError, "above 0"), *BAD_NUMBERS]
)
def test_ridges_out_of_range_are_refused(ridge, error, words):
    with pytest.raises(error, match=f"ridge must be .*{words}"):
        merging.regmean_from_vectors([vector([1.0])], ridge=ridge)


@pytest.mark.parametrize(
    ("given_options", "error", "message"),
    [
        (
            {"threshold": -0.1},
            ValueError,
            r"threshold must be at least 0, got -0.1; the authors try 0.2 to 0.6",
        ),
        ({"threshold": [0.4, -1]}, ValueError, "threshold must be at least 0, got -1"),
        ({"threshold": [0.4]}, ValueError, r"threshold has 1 number\(s\) for 2 task\(s\); give one for each"),
        ({"threshold": [0.4] * 3}, ValueError, r"threshold has 3 number\(s\) for 2 task\(s\)"),
        ({"threshold": []}, ValueError, r"threshold has 0 number\(s\) for 2 task\(s\)"),
        ({"threshold": "0.4"}, TypeError, "threshold must be a number"),
        ({"threshold": math.nan}, ValueError, "threshold must be finite"),
        ({"agreeing": 0}, ValueError, "agreeing must be at least 1, got 0"),
        ({"agreeing": 3}, ValueError, "agreeing=3 asks for more tasks than the 2 that are merged"),
        ({"agreeing": 1.5}, TypeError, "agreeing must be a whole number, got 1.5"),
    ],
)
def test_a_consensus_that_makes_no_sense_is_refused(given_options, error, message):
    with pytest.raises(error, match=message):
        merging.consensus([vector([1.0]), vector([2.0])], **given_options)


@pytest.mark.parametrize(
    ("rule", "given_options", "error", "message"),
    [
        (merging.iso_cts, {"common_share": 1.1}, ValueError, "common_share must be from 0 to 1, got 1.1"),
        (merging.iso_cts, {"common_share": -0.1}, ValueError, "common_share must be from 0 to 1"),
        (merging.iso_cts, {"common_share": "all"}, TypeError, "common_share must be a number, got 'all'"),
        (merging.iso_cts, {"kernels": "matrx"}, ValueError, "did you mean 'matrix'"),
        (merging.iso_c, {"kernels": "matrx"}, ValueError, "did you mean 'matrix'"),
        (merging.wudi, {"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        (merging.wudi, {"steps": 2.0}, TypeError, "steps must be a whole number, got 2.0"),
        (merging.wudi, {"step_size": 0}, ValueError, "step_size must be above 0, got 0.*such as 1e-05"),
    ],
)
def test_options_of_rules_for_matrices_out_of_range_are_refused(rule, given_options, error, message):
    with pytest.raises(error, match=message):
        rule([vector([1.0])], **given_options)


@pytest.mark.parametrize("rule", merging.RULES.values(), ids=merging.RULES)
def test_every_rule_has_one_signature_style(rule):
    first, *others = inspect.signature(rule.function).parameters.values()
    assert first.name == "task_vectors"
    assert all(other.kind is inspect.Parameter.KEYWORD_ONLY for other in others)
