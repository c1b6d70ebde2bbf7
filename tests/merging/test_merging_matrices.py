"""The rules for matrices, TSV-M, Iso-C, Iso-CTS, RegMean from vectors and WUDI.

Arithmetic by hand, slow second versions, laws.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_vectors import as_matrix, cut, matrices, noise, rotation, vector
from taskvec_mini import TaskVector, merging
from taskvec_mini.merging import _matrices as _matrix_rules

slowly = settings(deadline=None, max_examples=40, derandomize=True)


# --- TSV-M -----------------------------------------------------------------------------------------------


def test_tsv_turns_two_directions_apart_by_equal_angles():
    """Two unit vectors at 0° and 30° become orthonormal when each turns by 30° outwards: −30° and 60°."""
    cos30 = math.sqrt(3) / 2
    first = torch.tensor([[3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)  # 3 (1, 0)ᵀ (1, 0)
    second = torch.tensor([[0.0, 5 * cos30], [0.0, 2.5]], dtype=torch.float64)  # 5 (cos 30°, sin 30°)ᵀ (0, 1)
    expected = torch.tensor([[3 * cos30, 2.5], [-1.5, 5 * cos30]], dtype=torch.float64)
    merged = as_matrix(merging.tsv(matrices(first, second)), (2, 2))  # right directions stay: they are apart
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-14)


def test_tsv_keeps_the_top_directions_only():
    first = torch.diag(torch.tensor([9.0, 8.0, 2.0, 1.0, 0.0, 0.0]))  # ⌊6 / 3⌋ = 2 stay of each
    second = torch.diag(torch.tensor([0.0, 0.0, 7.0, -6.0, 1.0, 1.0]))
    third = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0, 5.0, 4.0]))
    merged = as_matrix(merging.tsv(matrices(first, second, third)), (6, 6))
    expected = torch.diag(torch.tensor([9.0, 8.0, 7.0, -6.0, 5.0, 4.0]))
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)


def test_tsv_averages_what_is_no_matrix_or_has_no_room():
    shapes = [(3,), (), (1, 2), (2, 1, 1)]  # a matrix of one row has no room for two tasks
    pair = [vector([2.0, 4.0, 6.0, 1.0, 8.0, 2.0, 3.0, 5.0], shapes), vector([0.0] * 4 + [4.0] * 4, shapes)]
    assert merging.tsv(pair).flat.tolist() == [1.0, 2.0, 3.0, 0.5, 6.0, 3.0, 3.5, 4.5]


def times(a, b):
    return [[math.fsum(x * y for x, y in zip(row, column, strict=True)) for column in turned(b)] for row in a]


def turned(a):
    return [list(column) for column in zip(*a, strict=True)]


def slow_directions(matrix, rank):
    """Triples (σ, left, right), the largest first, by Jacobi's rotations of the columns of `matrix`."""
    columns, rights = (
        turned(matrix),
        [[float(i == j) for i in range(len(matrix[0]))] for j in range(len(matrix[0]))],
    )
    for _ in range(30):
        for p in range(len(columns)):
            for q in range(p):
                a, b = columns[p], columns[q]
                inner = math.fsum(x * y for x, y in zip(a, b, strict=True))
                angle = math.atan2(2 * inner, math.fsum(x * x for x in b) - math.fsum(x * x for x in a)) / 2
                c, s = math.cos(angle), math.sin(angle)
                for both in (columns, rights):
                    u, v = both[p], both[q]
                    both[p] = [c * x - s * y for x, y in zip(u, v, strict=True)]
                    both[q] = [s * x + c * y for x, y in zip(u, v, strict=True)]
    lengths = [math.hypot(*column) for column in columns]
    best = sorted(range(len(columns)), key=lambda i: -lengths[i])[:rank]
    return [(lengths[i], [x / lengths[i] for x in columns[i]], rights[i]) for i in best]


def slow_orthonormal(columns, tasks_merged):
    """The nearest orthonormal columns: X ← X (3 − XᵀX) / 2 takes singular values to 1, again and again."""
    x = [[entry / math.sqrt(tasks_merged) for entry in row] for row in turned(columns)]
    for _ in range(80):
        gram = times(turned(x), x)
        x = times(x, [[1.5 * (i == j) - g / 2 for j, g in enumerate(row)] for i, row in enumerate(gram)])
    return x


def slow_tsv(weights):
    wide = len(weights[0]) < len(weights[0][0])
    tall = [turned(w) for w in weights] if wide else weights
    rank = len(tall[0][0]) // len(weights)
    triples = [triple for w in tall for triple in slow_directions(w, rank)]
    sizes, lefts, rights = zip(*triples, strict=True)
    scaled = [
        [x * s for x, s in zip(row, sizes, strict=True)] for row in slow_orthonormal(lefts, len(weights))
    ]
    merged = times(scaled, turned(slow_orthonormal(rights, len(weights))))
    return turned(merged) if wide else merged


@pytest.mark.parametrize("shape", [(2, 5), (5, 4), (4, 4), (3, 3), (6, 3)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_tsv_as_loops_do_it(shape, count):
    for seed in range(3):
        weights = noise(count, *shape, seed=seed)
        if count > min(shape):
            expected = weights.mean(0)
        else:
            expected = torch.tensor(slow_tsv(weights.tolist()), dtype=torch.float64)
        torch.testing.assert_close(
            as_matrix(merging.tsv(matrices(*weights)), shape), expected, rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("shape", [(3, 3), (2, 6), (7, 4)])
def test_tsv_of_one_task_is_that_task(shape):
    matrix = noise(*shape)
    merged = as_matrix(merging.tsv(matrices(matrix)), shape)
    torch.testing.assert_close(merged, matrix, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(9, 7), (6, 11)])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_tsv_keeps_the_singular_values_so_both_whitened_bases_are_orthonormal(shape, count):
    weights = noise(count, *shape)
    rank = min(shape) // count
    kept = torch.cat([torch.linalg.svdvals(w)[:rank] for w in weights]).sort(descending=True).values
    merged = torch.linalg.svdvals(as_matrix(merging.tsv(matrices(*weights)), shape))
    torch.testing.assert_close(merged[: len(kept)], kept)
    assert merged[len(kept) :].sum() < 1e-12


def test_whitening_gives_orthonormal_columns_and_none_are_nearer():
    basis = torch.cat([rotation(8, 1)[:, :3], rotation(8, 2)[:, :3]], 1)
    white = _matrix_rules._polar(basis, eps=2.0**-52)[0]
    torch.testing.assert_close(white.T @ white, torch.eye(6, dtype=torch.float64))
    for seed in range(50):  # others: far away, or only a small turn away
        turn = noise(8, 8, seed=seed) * 10.0 ** -(seed % 5)
        other = torch.linalg.matrix_exp(turn - turn.T) @ white
        assert (other - basis).norm() > (white - basis).norm()


def test_tsv_turns_with_its_matrices():
    weights, left, right = noise(3, 7, 6), rotation(7, 1), rotation(6, 2)
    merged = as_matrix(merging.tsv(matrices(*weights)), (7, 6))
    turned_first = as_matrix(merging.tsv(matrices(*(left @ w @ right for w in weights))), (7, 6))
    torch.testing.assert_close(turned_first, left @ merged @ right)
    transposed = as_matrix(merging.tsv(matrices(*(w.T for w in weights))), (6, 7))
    torch.testing.assert_close(transposed, merged.T)


def test_tsv_of_tasks_that_do_not_meet_is_the_sum_of_what_is_kept():
    left, right = rotation(6, 1), rotation(5, 2)
    first = left[:, :2] * torch.tensor([4.0, 3.0]) @ right[:2]
    second = left[:, 2:4] * torch.tensor([2.0, 1.0]) @ right[2:4]
    merged = as_matrix(merging.tsv(matrices(first, second)), (6, 5))
    torch.testing.assert_close(merged, first + second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", [2, 3])
def test_tsv_of_equal_matrices_is_that_matrix_cut(dtype, count):
    """The shared directions are no longer independent: what is rounding must not fill the gap."""
    matrix = noise(8, 7).to(dtype)
    merged = as_matrix(merging.tsv(matrices(*[matrix] * count)), (8, 7))
    torch.testing.assert_close(merged, cut(matrix, 7 // count))


def test_tsv_gives_a_zero_matrix_no_part():
    matrix, nothing = noise(6, 6), torch.zeros(6, 6, dtype=torch.float64)
    torch.testing.assert_close(as_matrix(merging.tsv(matrices(nothing, matrix)), (6, 6)), cut(matrix, 3))
    assert merging.tsv(matrices(nothing, nothing)).norm() == 0


def test_tsv_leaves_out_directions_that_are_mere_rounding():
    """Of a matrix of rank 1 the second and third direction are arbitrary: other roundings, others still."""
    thin, other = cut(noise(6, 6), 1), noise(6, 6, seed=1)
    merged = [
        merging.tsv(matrices(thin + 1e-16 * noise(6, 6, seed=seed), other)).flat for seed in range(2, 5)
    ]
    torch.testing.assert_close(merged[1], merged[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(merged[2], merged[0], rtol=0, atol=1e-12)


def test_tsv_has_room_for_as_many_tasks_as_rows():
    """With 49 tasks int(49 * (1 / 49)) is 0, which would erase the matrix."""
    weights = [torch.zeros(49, 49) for _ in range(49)]
    for i, weight in enumerate(weights):
        weight[i, i] = i + 1
    merged = as_matrix(merging.tsv(matrices(*weights)), (49, 49))
    torch.testing.assert_close(merged, torch.diag(torch.arange(1.0, 50.0)), rtol=0, atol=1e-4)


# --- float32 and less, where no SVD is taken -------------------------------------------------------------


def full_svd(matrix, scale=None, count=None):
    """U, S, V by LAPACK's SVD, without what is rounding of float32."""
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    cutoff = max(matrix.shape) * 2.0**-23 * (sizes[:1] if scale is None else scale)
    rank = min(int((sizes > cutoff).sum()), len(sizes) if count is None else count)
    return left[:, :rank], sizes[:rank], right[:rank].T


def nearest(columns):
    left, _, right = full_svd(torch.cat(columns, 1))
    return left @ right.T


def full_tsv(weights):
    triples = [full_svd(w, count=min(w.shape) // len(weights)) for w in weights]
    lefts, sizes, rights = zip(*triples, strict=True)
    return nearest(lefts) * torch.cat(sizes) @ nearest(rights).T


def full_iso_c(weights):
    left, sizes, right = full_svd(sum(weights))
    return sizes.sum() / min(weights[0].shape) * left @ right.T


def full_iso_cts(weights, own=2):
    rank = min(weights[0].shape)
    triples = [full_svd(sum(weights), count=rank - own * len(weights))]
    shared = triples[0][0]
    triples += [full_svd(w - shared @ (shared.T @ w), count=own, scale=w.norm()) for w in weights]
    lefts, sizes, rights = zip(*triples, strict=True)
    return torch.cat(sizes).sum() / rank * nearest(lefts) @ nearest(rights).T


def full_wudi(weights):
    units = [w / w.norm() if w.any() else w for w in weights]
    products = torch.cat([w @ unit.T for w, unit in zip(weights, units, strict=True)], 1)
    left, sizes, right = full_svd(torch.cat(units))
    return products @ left / sizes @ right.T


def families(shape):
    """Three matrices each."""
    rank = min(shape)
    left, right = rotation(shape[0], 1)[:, :rank], rotation(shape[1], 2)[:rank]
    random = noise(3, *shape)
    steep = [rotation(shape[0], t)[:, :rank] * 10 ** -torch.linspace(0, 4, rank) @ right for t in range(3)]
    repeated = [2 * rotation(shape[0], t)[:, :rank] @ rotation(shape[1], 9 + t)[:rank] for t in range(3)]
    thin = [noise(shape[0], 2, seed=t) @ noise(2, shape[1], seed=9 + t) for t in range(3)]
    return {
        "random": list(random),
        "small": [1e-12 * w for w in random],
        "steep": steep,
        "repeated": repeated,
        "equal": [left * torch.arange(rank, 0, -1) @ right] * 3,
        "of rank 2": thin,
        "one zero": [random[0], 0 * random[0], random[2]],
        "all zero": [0 * random[0]] * 3,
    }


FULL = {
    "tsv": (merging.tsv, full_tsv),
    "iso_c": (merging.iso_c, full_iso_c),
    "iso_cts": (partial(merging.iso_cts, common_share=1 - 6 / 16), full_iso_cts),
    "wudi": (merging.wudi, full_wudi),
}


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("shape", [(16, 16), (40, 16), (16, 40), (16, 200)])
@pytest.mark.parametrize("family", families((2, 2)))
def test_what_is_made_without_an_svd_is_nearer_to_the_truth_than_an_svd_in_float32(name, shape, family):
    """The truth: full SVDs in float64. Rounding of the result to float32 is all that may be added."""
    rule, full = FULL[name]
    if (name, family) == ("tsv", "repeated"):
        pytest.skip("nothing says which of equal singular values come before the cut")
    weights = [w.float() for w in families(shape)[family]]
    truth = full([w.double() for w in weights])
    merged = as_matrix(rule(matrices(*weights)), shape)
    assert merged.dtype == torch.float32
    usual = (full(weights) - truth).abs().max()
    assert (merged - truth).abs().max() <= max(usual, 1e-7 * truth.abs().max())


def test_tsv_of_repeated_singular_values_keeps_as_many_of_them():
    for shape in ((16, 16), (40, 16), (16, 40)):
        weights = [w.float() for w in families(shape)["repeated"]]
        sizes = torch.linalg.svdvals(as_matrix(merging.tsv(matrices(*weights)), shape))
        torch.testing.assert_close(sizes, torch.tensor([2.0] * 15 + [0.0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 60), (70, 60), (60, 70)])
def test_a_few_directions_of_many_are_those_of_the_full_svd(shape):
    """Fewer than a fifth, which have an algorithm of their own."""
    weights = noise(8, *shape).float()
    merged = as_matrix(merging.tsv(matrices(*weights)), shape)
    truth = full_tsv(list(weights.double()))
    torch.testing.assert_close(merged.double(), truth, rtol=0, atol=1e-7 * float(truth.abs().max()))


@pytest.mark.parametrize("rule", [merging.tsv, merging.regmean_from_vectors, merging.iso_c, merging.wudi])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_storing_only(rule, dtype):
    """As in float32, rounded once; also where a square is below or beyond what half precision holds."""
    for size in (1e-4, 1.0, 500.0):
        weights = [(size * w).to(dtype) for w in noise(3, 7, 9)]
        merged = rule(matrices(*weights)).flat
        assert merged.dtype == dtype
        assert torch.equal(merged, rule(matrices(*(w.float() for w in weights))).flat.to(dtype))


# --- kernels ---------------------------------------------------------------------------------------------

KERNEL = (6, 2, 2, 2)  # as a matrix 6 x 8
AS_MATRICES = {  # rules that take kernels for matrices
    "tsv": partial(merging.tsv, kernels="matrix"),
    "iso_c": partial(merging.iso_c, kernels="matrix"),
    "iso_cts": partial(merging.iso_cts, kernels="matrix", common_share=0.3),
    "regmean": merging.regmean_from_vectors,
    "wudi": merging.wudi,
    "wudi by steps": partial(merging.wudi, steps=5, step_size=0.01),
}
EACH = pytest.mark.parametrize("rule", AS_MATRICES.values(), ids=AS_MATRICES)


@EACH
@pytest.mark.parametrize("shape", [KERNEL, (6, 4, 2), (6, 2, 2, 2, 1)])
def test_kernels_are_merged_as_the_matrices_that_they_are(rule, shape):
    weights = noise(3, *shape)
    merged = rule(matrices(*weights))
    flat = rule(matrices(*weights.reshape(3, 6, 8)))
    assert torch.equal(merged.flat, flat.flat)
    assert merged.layout == (("weight", shape),)
    assert not torch.allclose(merged.flat, weights.reshape(3, -1).mean(0))


@pytest.mark.parametrize("rule", [merging.tsv, merging.iso_c, merging.iso_cts])
def test_kernels_of_rules_for_transformers_are_averaged_unless_asked_for(rule):
    weights = noise(3, *KERNEL)
    assert torch.equal(rule(matrices(*weights)).flat, weights.mean(0).reshape(-1))
    assert torch.equal(rule(matrices(*weights), kernels="mean").flat, weights.mean(0).reshape(-1))


@EACH
@pytest.mark.parametrize("shape", [(6, 1, 3, 3), (6, 1, 4), (5,), (), (1, 1, 1, 1)])
def test_depthwise_kernels_and_what_has_fewer_than_two_axes_are_averaged(rule, shape):
    weights = noise(3, *shape)
    torch.testing.assert_close(rule(matrices(*weights)).flat, weights.mean(0).reshape(-1))


@EACH
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 2, 2, 2), (2, 0, 2, 2)])
def test_empty_tensors_stay_empty(rule, shape):
    layout = [("weight", shape), ("bias", (2,))]
    merged = rule([TaskVector(row, layout) for row in noise(2, 2)])
    assert torch.equal(merged.flat, noise(2, 2).mean(0))


# --- Iso-C and Iso-CTS -----------------------------------------------------------------------------------


def diagonal(*entries):
    return torch.diag(torch.tensor(entries, dtype=torch.float64))


def slow_svd(matrix, rank):
    """As `slow_directions`, of matrices that are wide, too."""
    if len(matrix) >= len(matrix[0]):
        return slow_directions(matrix, rank)
    return [(size, left, right) for size, right, left in slow_directions(turned(matrix), rank)]


def slow_iso(weights, own):
    """Iso-CTS with so many directions of each task; with none Iso-C."""
    height, width = len(weights[0]), len(weights[0][0])
    rank = min(height, width)
    total = [[math.fsum(w[i][j] for w in weights) for j in range(width)] for i in range(height)]
    triples = slow_svd(total, rank - own * len(weights))
    shared = [left for _, left, _ in triples]
    for w in weights if own else []:
        rest = [row[:] for row in w]
        for left in shared:
            along = [math.fsum(left[i] * w[i][j] for i in range(height)) for j in range(width)]
            rest = [[rest[i][j] - left[i] * along[j] for j in range(width)] for i in range(height)]
        triples = triples + slow_svd(rest, own)
    sizes, lefts, rights = zip(*triples, strict=True)
    size = math.fsum(sizes) / rank
    merged = times(slow_orthonormal(lefts, rank), turned(slow_orthonormal(rights, rank)))
    return [[size * entry for entry in row] for row in merged]


def test_iso_takes_the_arithmetic_mean_of_the_singular_values_of_the_sum():
    merged = as_matrix(merging.iso_c(matrices(diagonal(4, 1))), (2, 2))
    torch.testing.assert_close(merged, diagonal(2.5, 2.5))  # the geometric mean would be 2, the quadratic 2.9
    pair = matrices(diagonal(4, 1), diagonal(-2, 5))
    torch.testing.assert_close(as_matrix(merging.iso_c(pair), (2, 2)), diagonal(4, 4))  # the sum: 2, 6
    negative = matrices(diagonal(-4, 1))
    torch.testing.assert_close(as_matrix(merging.iso_c(negative), (2, 2)), diagonal(-2.5, 2.5))


def test_iso_counts_what_is_zero_but_gives_it_no_direction():
    merged = as_matrix(merging.iso_c(matrices(diagonal(4, 0))), (2, 2))
    torch.testing.assert_close(merged, diagonal(2, 0))  # the geometric mean would be 0
    nothing = diagonal(0, 0)
    assert merging.iso_c(matrices(nothing, nothing)).norm() == 0
    assert merging.iso_cts(matrices(nothing, nothing), common_share=0).norm() == 0
    torch.testing.assert_close(
        as_matrix(merging.iso_c(matrices(diagonal(3, 1), -diagonal(3, 0))), (2, 2)), diagonal(0, 0.5)
    )


@pytest.mark.parametrize("shape", [(2, 5), (5, 4), (4, 4), (1, 3), (3, 1)])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_iso_as_loops_do_it(shape, count):
    weights = noise(count, *shape, seed=count)
    expected = torch.tensor(slow_iso(weights.tolist(), own=0), dtype=torch.float64)
    merged = as_matrix(merging.iso_c(matrices(*weights)), shape)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(9, 7), (6, 11)])
def test_iso_has_equal_singular_values_and_the_directions_of_the_sum(dtype, shape):
    """So what it has in common with the sum is largest: σ̄ Σσ, and with no rotated version more."""
    weights = noise(3, *shape).to(dtype)
    total = weights.sum(0)
    sizes = torch.linalg.svdvals(total)
    merged = as_matrix(merging.iso_c(matrices(*weights)), shape)
    torch.testing.assert_close(torch.linalg.svdvals(merged), sizes.mean().expand(len(sizes)))
    torch.testing.assert_close((merged * total).sum(), sizes.mean() * sizes.sum())


def test_iso_of_equal_matrices_is_a_sum():
    matrix = noise(5, 7)
    one = merging.iso_c(matrices(matrix)).flat
    torch.testing.assert_close(merging.iso_c(matrices(*[matrix] * 4)).flat, 4 * one)


@pytest.mark.parametrize(
    ("shape", "count", "share", "own"),
    [
        ((5, 6), 2, 0.8, 0),  # 4 common, half a direction for each: rounded to 0
        ((5, 6), 2, 0.6, 1),
        ((5, 6), 2, 0.55, 2),  # 2 common and not 2.75, 1.5 for each: rounded to the even 2
        ((6, 5), 2, 0.2, 2),
        ((5, 6), 2, 0.0, 2),  # 2.5 for each: rounded to the even 2
        ((6, 6), 4, 0.0, 1),  # 1.5 for each: 2 would be more than there are
        ((4, 7), 3, 0.0, 1),
        ((5, 6), 3, 0.3, 1),  # int(1.5) common, 4/3 for each
        ((5, 5), 6, 0.0, 0),  # more tasks than directions
        ((5, 5), 3, 1.0, 0),
        ((5, 5), 1, 0.4, 3),
    ],
)
def test_iso_cts_as_loops_do_it(shape, count, share, own):
    weights = noise(count, *shape, seed=count)
    expected = torch.tensor(slow_iso(weights.tolist(), own=own), dtype=torch.float64)
    merged = as_matrix(merging.iso_cts(matrices(*weights), common_share=share), shape)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-8)


def test_iso_cts_gives_as_many_directions_as_the_share_says():
    """0.58 * 100 is 57.99999999999999; of 57 there would be 21.5 left for each task, rounded to 22."""
    weights = matrices(*noise(2, 100, 100))
    merged = merging.iso_cts(weights, common_share=0.58).flat
    torch.testing.assert_close(merged, merging.iso_cts(weights, common_share=0.585).flat)
    assert not torch.allclose(merged, merging.iso_cts(weights, common_share=0.575).flat)


@pytest.mark.parametrize("shape", [(6, 8), (8, 6)])
def test_iso_cts_of_a_whole_share_of_one_task_or_of_too_many_is_iso_c(shape):
    weights = noise(9, *shape)
    for count, share in ((3, 1), (9, 0.5), (9, 0), (1, 0), (1, 0.5), (8, 0.8)):
        vectors = matrices(*weights[:count])
        torch.testing.assert_close(
            merging.iso_cts(vectors, common_share=share).flat, merging.iso_c(vectors).flat
        )


def test_iso_cts_keeps_a_direction_that_the_sum_has_lost():
    """The third direction cancels in the sum; it is the first of task 1 that is not common."""
    pair = matrices(diagonal(8, 0, 3, 0), diagonal(0, 6, -3, 4))
    sum_only = as_matrix(merging.iso_c(pair), (4, 4))
    torch.testing.assert_close(sum_only, diagonal(4.5, 4.5, 0, 4.5))  # (8 + 6 + 0 + 4) / 4
    both = as_matrix(merging.iso_cts(pair, common_share=0.5), (4, 4))
    torch.testing.assert_close(both, diagonal(5.25, 5.25, 5.25, 5.25))  # (8 + 6 + 3 + 4) / 4


def test_iso_cts_gives_no_direction_to_a_task_that_has_nothing_of_its_own():
    """What the projection leaves of the first matrix is mere rounding, of no direction."""
    left, right = rotation(4, 1), rotation(4, 2)
    first = left[:, :2] * torch.tensor([9.0, 8.0]) @ right[:2]
    second = left * torch.tensor([9.0, 8.0, 2.0, 1.0]) @ right
    merged = as_matrix(merging.iso_cts(matrices(first, second), common_share=0.5), (4, 4))
    expected = (18 + 16 + 2) / 4 * left[:, :3] @ right[:3]  # common: 18 and 16; the second's own: 2
    torch.testing.assert_close(merged, expected)


def test_iso_cts_of_equal_matrices_has_the_common_and_own_directions_once():
    left, right = rotation(6, 1), rotation(6, 2)
    matrix = left * torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]) @ right
    merged = as_matrix(merging.iso_cts(matrices(matrix, matrix), common_share=0.34), (6, 6))
    expected = 2 * (6 + 5 + 4 + 3) / 6 * left[:, :4] @ right[:4]  # 2 common, 2 for each task: the same two
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize("rule", [merging.iso_c, partial(merging.iso_cts, common_share=0.4)])
def test_iso_turns_with_its_matrices(rule):
    weights, left, right = noise(3, 7, 6), rotation(7, 1), rotation(6, 2)
    merged = as_matrix(rule(matrices(*weights)), (7, 6))
    turned_first = as_matrix(rule(matrices(*(left @ w @ right for w in weights))), (7, 6))
    torch.testing.assert_close(turned_first, left @ merged @ right)


def test_the_published_share_is_four_fifths():
    weights = matrices(*noise(2, 20, 20))
    assert torch.equal(merging.iso_cts(weights).flat, merging.iso_cts(weights, common_share=0.8).flat)
    assert not torch.allclose(merging.iso_cts(weights).flat, merging.iso_c(weights).flat)


# --- RegMean from vectors --------------------------------------------------------------------------------


def covariance(tau):
    return tau.shape[1] * tau.T @ tau / tau.square().sum()


def slow_regmean(weights, ridge):
    """The least Σ_t ‖(W − τ_t) S_t‖² + ε‖W − τ_t‖² with S_t S_tᵀ = C_t: stacked equations, given to lstsq."""
    left, right = [], []
    for tau in (w.numpy() for w in weights):
        root = math.sqrt(tau.shape[1]) / np.linalg.norm(tau) * tau  # S_tᵀ
        left += [root, math.sqrt(ridge) * np.eye(tau.shape[1])]
        right += [root @ tau.T, math.sqrt(ridge) * tau.T]
    return torch.from_numpy(np.linalg.lstsq(np.concatenate(left), np.concatenate(right), rcond=None)[0].T)


@pytest.mark.parametrize("shape", [(4, 4), (2, 9), (9, 2), (1, 5), (5, 1), (3, 6), (3, 7)])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("ridge", [1e-4, 0.3, 20.0])
def test_regmean_as_stacked_least_squares_do_it(shape, count, ridge):
    """Shapes on both sides of T · out = in, where the smaller of two systems changes."""
    weights = noise(count, *shape, seed=count)
    merged = as_matrix(merging.regmean_from_vectors(matrices(*weights), ridge=ridge), shape)
    torch.testing.assert_close(merged, slow_regmean(weights, ridge), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 5), (2, 8)])
def test_regmean_is_its_formula(shape):
    weights, ridge = noise(3, *shape), 0.2
    top = sum(w @ (covariance(w) + ridge * torch.eye(shape[1])) for w in weights)
    bottom = sum(covariance(w) for w in weights) + 3 * ridge * torch.eye(shape[1])
    merged = as_matrix(merging.regmean_from_vectors(matrices(*weights), ridge=ridge), shape)
    torch.testing.assert_close(merged, top @ torch.linalg.inv(bottom))


def test_a_tall_matrix_needs_no_square_of_its_height():
    weights = matrices(*(noise(200_000, 2, seed=seed) for seed in range(2)))  # its square would take 320 GB
    assert len(merging.regmean_from_vectors(weights)) == 400_000


def test_regmean_of_two_rows_by_hand():
    """C = diag(2, 0) and diag(0, 2), so W = (2 (2 + 1) / (2 + 2), 4 (2 + 1) / (2 + 2))."""
    pair = matrices(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    torch.testing.assert_close(merging.regmean_from_vectors(pair, ridge=1.0).flat, torch.tensor([1.5, 3.0]))


def test_regmean_averages_by_strength_by_hand():
    """C = diag(2, 0) and diag(0.4, 1.6); with ε = 0.1 the first column is (2 · 2.1 + 1 · 0.5) / 2.6."""
    pair = matrices(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    merged = as_matrix(merging.regmean_from_vectors(pair, ridge=0.1), (2, 2))
    expected = torch.tensor([[4.7 / 2.6, 0.0], [0.0, 2 * 1.7 / 1.8]])
    torch.testing.assert_close(merged, expected)


def test_the_published_default_is_a_hundredth():
    weights = matrices(*noise(2, 3, 4))
    assert torch.equal(
        merging.regmean_from_vectors(weights).flat, merging.regmean_from_vectors(weights, ridge=0.01).flat
    )


@slowly
@given(st.integers(0, 999), st.sampled_from([(3, 5), (5, 3), (2, 8)]), st.floats(1e-3, 10))
def test_no_other_matrix_has_a_smaller_loss(seed, shape, ridge):
    weights = noise(3, *shape, seed=seed)
    merged = as_matrix(merging.regmean_from_vectors(matrices(*weights), ridge=ridge), shape)

    def loss(matrix):
        gaps = [(matrix - w, covariance(w) + ridge * torch.eye(shape[1])) for w in weights]
        return sum((gap @ strength * gap).sum() for gap, strength in gaps)

    for step in (1e-3, 1e-1, 1):
        assert loss(merged + step * noise(*shape, seed=seed + 1)) > loss(merged)


@pytest.mark.parametrize("shape", [(4, 10), (10, 4)])
def test_regmean_with_a_huge_ridge_is_the_mean(shape):
    weights = noise(3, *shape)
    merged = as_matrix(merging.regmean_from_vectors(matrices(*weights), ridge=1e9), shape)
    torch.testing.assert_close(merged, weights.mean(0), rtol=0, atol=1e-7)


@pytest.mark.parametrize("ridge", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(4, 10), (10, 4)])
def test_regmean_of_equal_matrices_is_that_matrix(shape, ridge):
    one = noise(*shape)
    merged = merging.regmean_from_vectors(matrices(one, one, one), ridge=ridge)
    torch.testing.assert_close(as_matrix(merged, shape), one, rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [1, 1000])
def test_regmean_of_tasks_with_inputs_apart_is_the_sum(size):
    """However unequal the tasks: each row of `first` lies across each row of `second`."""
    right = rotation(9, 1)
    first, second = size * noise(4, 3, seed=2) @ right[:3], noise(4, 5, seed=3) @ right[3:8]
    merged = as_matrix(merging.regmean_from_vectors(matrices(first, second), ridge=1e-9), (4, 9))
    torch.testing.assert_close(merged, first + second, rtol=1e-6, atol=1e-6)
    ridge, strength = 0.5, 9 / 4  # of 9 eigenvalues with the mean 1, four are equal and five are 0
    left, right = rotation(4, 4), rotation(9, 5)
    first, second = size * left @ right[:4], left @ right[4:8]
    merged = as_matrix(merging.regmean_from_vectors(matrices(first, second), ridge=ridge), (4, 9))
    share = (strength + ridge) / (strength + 2 * ridge)
    torch.testing.assert_close(merged, share * (first + second))


def test_regmean_turns_with_its_matrices():
    weights, left, right = noise(3, 4, 6), rotation(4, 1), rotation(6, 2)
    merged = as_matrix(merging.regmean_from_vectors(matrices(*weights), ridge=0.3), (4, 6))
    turned_weights = matrices(*(left @ w @ right for w in weights))
    both = as_matrix(merging.regmean_from_vectors(turned_weights, ridge=0.3), (4, 6))
    torch.testing.assert_close(both, left @ merged @ right)


def test_a_zero_matrix_has_a_say_in_the_mean_only():
    matrix, nothing = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    merged = merging.regmean_from_vectors(matrices(matrix, nothing), ridge=1.0).flat
    torch.testing.assert_close(merged, torch.tensor([2 * 3 / 4, 0.0], dtype=torch.float64))
    assert merging.regmean_from_vectors(matrices(nothing, nothing)).norm() == 0


def test_task_vectors_of_one_gradient_step_reveal_their_inputs():
    """The book's idea, from data to merge: W answers each task's inputs as that task's own vector does."""
    inputs = [noise(7, 3, seed=t) @ rotation(12, 9)[3 * t : 3 * t + 3] for t in range(3)]  # spans apart
    vectors = [-noise(5, 7, seed=10 + t) @ x for t, x in enumerate(inputs)]  # −η Σ δ xᵀ
    merged = as_matrix(merging.regmean_from_vectors(matrices(*vectors), ridge=1e-9), (5, 12))
    for x, own in zip(inputs, vectors, strict=True):
        torch.testing.assert_close(merged @ x.T, own @ x.T, rtol=1e-5, atol=1e-5)


def test_large_layers_in_single_precision_agree_with_stacked_least_squares():
    weights = noise(4, 20, 150)
    merged = merging.regmean_from_vectors(matrices(*weights.float()))
    expected = slow_regmean(weights.float().double(), 0.01).float()
    torch.testing.assert_close(as_matrix(merged, (20, 150)), expected, rtol=1e-6, atol=1e-7)


def test_a_ridge_lost_in_rounding_is_refused():
    same = torch.ones(1, 400, dtype=torch.float64)
    with pytest.raises(ValueError, match="ridge is so small that rounding swallows it; choose a larger one"):
        merging.regmean_from_vectors(matrices(same, same), ridge=1e-30)


def test_biases_beside_matrices_are_averaged():
    pair = [vector([2.0, 0.0, 5.0], [(1, 2), (1,)]), vector([0.0, 4.0, 7.0], [(1, 2), (1,)])]
    assert merging.regmean_from_vectors(pair, ridge=1.0).flat.tolist() == pytest.approx([1.5, 3.0, 6.0])


# --- WUDI ------------------------------------------------------------------------------------------------


def interference(matrix, weights):
    """Σ_t ‖(W − τ_t) τ_tᵀ‖² / ‖τ_t‖²"""
    return sum(((matrix - w) @ w.T).square().sum() / w.square().sum() for w in weights)


def slow_wudi(weights):
    """Stacked equations τ_t/‖τ_t‖ Wᵀ = τ_t/‖τ_t‖ τ_tᵀ, of which lstsq gives the least solution."""
    rows = [w.numpy() / np.linalg.norm(w.numpy()) for w in weights]
    right = [row @ w.numpy().T for row, w in zip(rows, weights, strict=True)]
    return torch.from_numpy(np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0].T)


def slow_adam(weights, steps, step_size):
    """torch's own Adam and autograd on the objective as it is written."""
    merged = weights.sum(0).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=step_size)
    for _ in range(steps):
        optimizer.zero_grad()
        interference(merged, weights).backward()
        optimizer.step()
    return merged.detach()


def test_wudi_divides_by_the_square_of_the_norm_by_hand():
    """Of one input, (w − 2)² 4 / 4 + (w − 1)² 1 / 1 is least at 1.5; with norms at 5/3, without at 9/5."""
    pair = matrices(torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    torch.testing.assert_close(merging.wudi(pair).flat, torch.tensor([1.5]))


@pytest.mark.parametrize("shape", [(4, 4), (2, 9), (9, 2), (1, 5), (5, 1), (3, 6), (3, 7)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_wudi_as_stacked_least_squares_do_it(shape, count):
    """With tasks of unlike sizes, and more or fewer equations than unknowns."""
    weights = noise(count, *shape, seed=count) * 10.0 ** torch.arange(count)[:, None, None]
    merged = as_matrix(merging.wudi(matrices(*weights)), shape)
    torch.testing.assert_close(merged, slow_wudi(weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 10), (10, 4)])
def test_wudi_solves_its_equation_and_stays_where_the_tasks_have_rows(shape):
    weights = noise(2, *shape)
    merged = as_matrix(merging.wudi(matrices(*weights)), shape)
    gram = sum(w.T @ w / w.square().sum() for w in weights)
    target = sum(w @ w.T @ w / w.square().sum() for w in weights)
    torch.testing.assert_close(merged @ gram, target)
    rows = torch.linalg.svd(torch.cat(list(weights)), full_matrices=False)[2]
    torch.testing.assert_close(merged @ rows.T @ rows, merged)  # and so does the sum: none is nearer to it


@pytest.mark.parametrize("shape", [(4, 10), (10, 4), (3, 30)])
def test_wudi_is_what_regmean_from_vectors_becomes_without_its_ridge(shape):
    weights = noise(3, *shape)
    merged = merging.wudi(matrices(*weights))
    nearly = merging.regmean_from_vectors(matrices(*weights), ridge=1e-9)
    torch.testing.assert_close(merged.flat, nearly.flat, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 1000])
def test_wudi_gives_each_task_in_full_where_inputs_are_apart(size):
    right = rotation(9, 1)
    first, second = size * noise(4, 3, seed=2) @ right[:3], noise(4, 5, seed=3) @ right[3:8]
    merged = as_matrix(merging.wudi(matrices(first, second)), (4, 9))
    torch.testing.assert_close(merged, first + second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(4, 10), (10, 4)])
def test_wudi_of_equal_matrices_is_that_matrix(dtype, shape):
    one = noise(*shape).to(dtype)
    merged = as_matrix(merging.wudi(matrices(one, one, one)), shape)
    torch.testing.assert_close(merged, one, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_wudi_gives_a_zero_matrix_no_part():
    matrix, nothing = noise(3, 5), torch.zeros(3, 5, dtype=torch.float64)
    for steps in (0, 4):
        own = merging.wudi(matrices(matrix), steps=steps).flat
        torch.testing.assert_close(merging.wudi(matrices(nothing, matrix), steps=steps).flat, own)
        assert merging.wudi(matrices(nothing, nothing), steps=steps).norm() == 0


def test_wudi_leaves_out_directions_that_are_mere_rounding():
    thin, other = cut(noise(2, 6), 1), cut(noise(2, 6, seed=1), 1)
    merged = [
        merging.wudi(matrices(thin + 1e-17 * noise(2, 6, seed=seed), other)).flat for seed in range(2, 5)
    ]
    torch.testing.assert_close(merged[1], merged[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(merged[2], merged[0], rtol=0, atol=1e-12)


def test_wudi_of_a_tall_matrix_needs_no_square_of_its_height():
    weights = matrices(*(noise(200_000, 2, seed=seed) for seed in range(2)))  # its square would take 320 GB
    assert len(merging.wudi(weights)) == len(merging.wudi(weights, steps=2)) == 400_000


def test_wudi_of_large_layers_in_single_precision_agrees_with_stacked_least_squares():
    weights = noise(4, 20, 150)
    merged = merging.wudi(matrices(*weights.float()))
    torch.testing.assert_close(
        as_matrix(merged, (20, 150)), slow_wudi(weights.float().double()).float(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(4, 4), (2, 9), (9, 2), (5, 1)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_steps_of_wudi_are_those_of_torch(shape, count):
    """Of objectives as small as those of real weights, too, where Adam's 1e-8 weighs."""
    for size, step_size in ((1, 0.02), (1e-7, 1e-8)):
        weights = size * noise(count, *shape, seed=count)
        for steps in (1, 2, 40):
            merged = as_matrix(merging.wudi(matrices(*weights), steps=steps, step_size=step_size), shape)
            expected = slow_adam(weights, steps, step_size)
            if count > 1:  # one task is at its minimum: there Adam amplifies rounding
                torch.testing.assert_close(merged, expected, rtol=1e-7, atol=1e-9 * size)
            else:
                torch.testing.assert_close(merged, weights[0], rtol=0, atol=1e-6 * size)


def test_the_published_step_is_a_hundred_thousandth():
    weights = matrices(*noise(2, 3, 4))
    named = merging.wudi(weights, steps=3, step_size=1e-5).flat
    assert torch.equal(merging.wudi(weights, steps=3).flat, named)
    assert torch.equal(merging.wudi(weights).flat, merging.wudi(weights, steps=0).flat)


@pytest.mark.parametrize("steps", [0, 25])
def test_wudi_is_the_same_whatever_its_caller_does_with_gradients_and_random_numbers(steps):
    def merge():
        return merging.wudi(matrices(*noise(3, 4, 6)), steps=steps, step_size=0.01).flat

    merged = merge()
    with torch.no_grad():
        assert torch.equal(merge(), merged)
    with torch.inference_mode():
        assert torch.equal(merge(), merged)
    state = torch.get_rng_state()
    assert torch.equal(merge(), merged)
    assert torch.equal(torch.get_rng_state(), state)
    assert not merged.requires_grad


def test_what_300_steps_of_wudi_do_and_what_the_exact_minimum_does():
    """The numbers in its docstring: the objective and the length, against those of the sum."""
    weights = noise(4, 16, 48) / 1000
    total = weights.sum(0)
    found = {}
    for steps in (0, 300, 10_000):
        merged = as_matrix(merging.wudi(matrices(*weights), steps=steps), (16, 48))
        lower = interference(merged, weights) / interference(total, weights)
        found[steps] = (lower.item(), (merged.norm() / total.norm()).item())
    assert found[0] == pytest.approx((0.22, 1.66), abs=0.005)
    assert found[300] == pytest.approx((0.30, 0.93), abs=0.005)
    assert found[10_000] == pytest.approx(found[0], rel=1e-3)


@slowly
@given(st.integers(0, 999), st.sampled_from([(3, 5), (5, 3), (2, 8)]))
def test_no_other_matrix_interferes_less(seed, shape):
    weights = noise(3, *shape, seed=seed)
    merged = as_matrix(merging.wudi(matrices(*weights)), shape)
    for step in (1e-3, 1e-1, 1):
        other = merged + step * noise(*shape, seed=seed + 1)
        assert interference(other, weights) > interference(merged, weights)
