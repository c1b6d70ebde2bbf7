"""Lengths, shares, cosines and projections of paths against numpy, geometry and long random walks."""

import math

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from small_vectors import noise, rotation, source
from taskvec_mini import trajectories
from taskvec_mini.descent import gradient_descent
from taskvec_mini.trajectories import angle, cosines_with, displacements, norms, plane, projection, shares


def equal(ours, theirs, **how):
    torch.testing.assert_close(ours, torch.as_tensor(theirs, dtype=torch.float64), **how)


# --- displacements, norms, shares ------------------------------------------------------------------------


def test_displacements_add_up_to_the_task_vector():
    path = gradient_descent(lambda theta: theta.square().sum() / 2, noise(9), learning_rate=0.1, epochs=5)
    steps = displacements(path)
    torch.testing.assert_close(steps, -0.1 * path[:-1])  # the gradient of half the square is theta itself
    torch.testing.assert_close(steps.sum(0), path[-1] - path[0])
    assert torch.equal(displacements(list(path)), steps)
    assert torch.equal(displacements(row for row in path), steps)


def test_displacements_keep_the_dtype():
    assert displacements(noise(3, 4).float()).dtype == torch.float32


def test_norms_are_those_of_numpy_and_of_any_dtype():
    rows = noise(4, 1000)
    for given, tolerance in ((rows, 1e-14), (rows.float(), 1e-7), (rows.bfloat16(), 1e-3)):
        equal(norms(given), np.linalg.norm(given.double().numpy(), axis=1), rtol=1e-14, atol=0)
        equal(norms(given), np.linalg.norm(rows.numpy(), axis=1), rtol=tolerance, atol=0)


def test_small_entries_beside_a_large_one_are_not_lost():
    """In float32, 1 + 1e-8 is 1, three hundred times over."""
    uneven = torch.full((301,), 1e-4)
    uneven[0] = 1.0
    equal(norms([uneven]), [math.sqrt(1 + 300 * float(uneven[1]) ** 2)], rtol=1e-15, atol=0)


def test_shares_add_up_to_one():
    equal(shares([6.0, 3.0, 1.0]), [0.6, 0.3, 0.1])
    equal(shares(torch.tensor([2, 2])), [0.5, 0.5])
    equal(shares(x for x in (0.0, 0.1)), [0.0, 1.0])
    assert shares([0.1, 0.7]).tolist() == pytest.approx([0.125, 0.875], rel=1e-15)  # not through float32
    halves = shares(norms(displacements(torch.tensor([[0.5**k] for k in range(11)]))))
    equal(halves, [0.5 ** (k + 1) / (1 - 0.5**10) for k in range(10)])


# --- cosines ---------------------------------------------------------------------------------------------


def test_cosines_by_hand():
    rows = torch.tensor([[3.0, 4.0], [0.0, -1.0], [-5.0, 0.0], [1.0, 1.0]])
    equal(cosines_with(rows, torch.tensor([2.0, 0.0])), [0.6, 0.0, -1.0, math.sqrt(0.5)])


def test_cosines_are_those_of_numpy_and_do_not_depend_on_lengths():
    rows, reference = noise(5, 300), noise(300, seed=1)
    a, b = rows.numpy(), reference.numpy()
    expected = a @ b / np.linalg.norm(a, axis=1) / np.linalg.norm(b)
    equal(cosines_with(rows, reference), expected, rtol=1e-12, atol=1e-14)
    equal(cosines_with(1e-9 * rows, 1e9 * reference), expected, rtol=1e-12, atol=1e-14)


def test_cosines_of_long_equal_vectors_in_single_precision_are_one():
    """Accumulated in float32, the diagonal of such a table reads 0.97 to 1.04 in some repositories."""
    row = torch.randn(300_000, generator=source(3)) + 1
    equal(cosines_with([row, -row], row), [1.0, -1.0], rtol=0, atol=1e-15)


def test_no_cosine_leaves_its_range():
    for row in noise(200, 3):
        assert abs(float(cosines_with([row], 3 * row)[0])) <= 1


# --- projection ------------------------------------------------------------------------------------------


def test_a_projection_is_that_of_the_singular_value_decomposition():
    rows = noise(12, 40)
    found = projection([rows[:5], list(rows[5:])])
    left, sizes, _ = np.linalg.svd(rows.numpy() - rows.numpy().mean(0), full_matrices=False)
    expected = torch.from_numpy(left[:, :2] * sizes[:2])
    ours = torch.cat(found.points)
    assert [len(points) for points in found.points] == [5, 7]
    torch.testing.assert_close(ours.abs(), expected.abs())
    torch.testing.assert_close(torch.cdist(ours, ours), torch.cdist(expected, expected))
    equal(found.explained, sizes[:2] ** 2 / (sizes**2).sum())
    assert bool((found.points[0][-1] > found.points[0][0]).all())


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_a_projection_of_a_plane_keeps_every_distance(shift):
    """Far from the origin, inner products of the points themselves would lose the digits."""
    flat = noise(9, 2)
    found = projection([flat @ rotation(30, 1)[:2] + shift * noise(30, seed=2)])
    points = found.points[0]
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(flat, flat), rtol=1e-7, atol=1e-7)
    assert float(found.explained.sum()) == pytest.approx(1, abs=1e-9)


def test_a_straight_path_has_one_axis_and_starts_on_the_left():
    line = torch.arange(4.0).outer(torch.tensor([0.0, 3.0, 4.0]))
    found = projection([line])
    equal(found.explained, [1.0, 0.0], rtol=0, atol=1e-12)
    equal(found.points[0][:, 0], [-7.5, -2.5, 2.5, 7.5])
    equal(found.points[0][:, 1], [0.0] * 4, rtol=0, atol=1e-6)
    equal(projection([line.flip(0)]).points[0][:, 0], [-7.5, -2.5, 2.5, 7.5])


def test_a_long_random_walk_explains_what_its_theory_says():
    """As walks grow, 6 / (πk)² of the variance falls to axis k (arXiv:1806.08805), here give or take 2%."""
    walk = torch.randn(300, 5_000, generator=source(4)).cumsum(0)
    equal(projection([walk]).explained, [6 / math.pi**2, 6 / (2 * math.pi) ** 2], rtol=0.06, atol=0)


class Largest(TorchFunctionMode):
    """Remembers the size of the largest tensor that any operation makes."""

    size = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.numel())
        return result


@pytest.mark.parametrize(
    "measure",
    [norms, lambda rows: cosines_with(rows, rows[0]), lambda rows: projection([rows]).explained],
    ids=["norms", "cosines", "projection"],
)
def test_measures_work_piece_by_piece_and_are_the_same(measure, monkeypatch):
    rows = list(noise(6, 1000))
    whole = measure(rows)
    monkeypatch.setattr(trajectories, "_PIECE", 7)
    with Largest() as seen:
        torch.testing.assert_close(measure(rows), whole, rtol=1e-12, atol=1e-14)
    assert 0 < seen.size <= 1000  # one vector, when it is checked; never all of them, never D x D


# --- angle and plane -------------------------------------------------------------------------------------


def test_a_tiny_angle_survives():
    assert angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-9])) == pytest.approx(math.degrees(1e-9))
    assert angle(torch.tensor([0.0, 2.0]), torch.tensor([0.0, -1.0])) == 180


def test_a_plane_holds_both_vectors():
    first, second = noise(2, 20)
    axes = plane(first, second)
    torch.testing.assert_close(axes @ axes.T, torch.eye(2, dtype=torch.float64))
    for vector in (first, second):
        torch.testing.assert_close(vector @ axes.T @ axes, vector)
    assert float(first @ axes[1]) == pytest.approx(0, abs=1e-14)


# --- refusals --------------------------------------------------------------------------------------------

EACH = pytest.mark.parametrize(
    ("measure", "name"),
    [
        (displacements, "path"),
        (norms, "vectors"),
        (lambda rows: cosines_with(rows, torch.ones(2)), "vectors"),
        (lambda rows: projection([rows]), "paths"),
    ],
    ids=["displacements", "norms", "cosines_with", "projection"],
)


@EACH
def test_what_is_no_list_of_vectors_is_refused(measure, name):
    with pytest.raises(ValueError, match=f"{name} is empty; give at least one"):
        measure([])
    with pytest.raises(TypeError, match=rf"{name}\[0\] must be a 1-D floating-point tensor"):
        measure(torch.ones(2))
    with pytest.raises(TypeError, match=rf"{name}\[1\] must be .* got torch.int64"):
        measure([torch.ones(2), torch.ones(2, dtype=torch.long)])
    with pytest.raises(ValueError, match=rf"{name}\[1\] holds 1 value\(s\) that are NaN or infinite"):
        measure([torch.ones(2), torch.tensor([1.0, math.nan])])


@EACH
def test_vectors_that_do_not_match_are_refused(measure, name):
    with pytest.raises(ValueError, match=rf"{name}\[0\] has 2 entries and {name}\[1\] has 3; give vectors"):
        measure([torch.ones(2), torch.ones(3)])
    with pytest.raises(TypeError, match=rf"dtypes differ at {name}\[0\] and {name}\[1\]"):
        measure([torch.ones(2), torch.ones(2).double()])


def test_a_path_of_one_point_is_refused():
    with pytest.raises(ValueError, match="a path of one point has no displacement; give the start and"):
        displacements(torch.ones(1, 3))


def test_a_reference_that_does_not_match_is_refused():
    rows = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"vectors\[0\] has 3 entries and reference has 2"):
        cosines_with(rows, torch.ones(2))
    with pytest.raises(TypeError, match="reference must be a 1-D floating-point tensor"):
        cosines_with(rows, rows)
    with pytest.raises(ValueError, match="reference is zero and so has no direction"):
        cosines_with(rows, torch.zeros(3))
    with pytest.raises(ValueError, match=r"vectors\[1\] is zero and so has no direction"):
        cosines_with([rows[0], torch.zeros(3)], rows[0])


@pytest.mark.parametrize("sizes", [[], [0.0, 0.0], [1.0, -1.0], torch.ones(2, 2)])
def test_sizes_without_shares_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be one or more numbers, none negative and not all zero"):
        shares(sizes)


def test_sizes_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="sizes holds 1 value"):
        shares([1.0, math.inf])


def test_paths_that_span_nothing_are_refused():
    with pytest.raises(ValueError, match="the list of paths is empty; give at least one"):
        projection([])
    for paths in ([torch.ones(3, 2)], [torch.ones(1, 2)], [torch.ones(3, 2), torch.ones(1, 2)]):
        with pytest.raises(ValueError, match="all points of the paths are equal, so they span no plane"):
            projection(paths)
    with pytest.raises(TypeError, match=r"paths\[0\] must be a 1-D floating-point tensor"):
        projection(torch.ones(3, 2))  # one path: it goes into a list


def test_zero_and_parallel_vectors_have_no_angle_or_plane():
    one, nothing = torch.ones(2), torch.zeros(2)
    for pair in ((one, nothing), (nothing, one)):
        with pytest.raises(ValueError, match="vector is zero and so has no direction"):
            angle(*pair)
    with pytest.raises(ValueError, match="the two vectors are parallel and span no plane"):
        plane(one, -2 * one)
