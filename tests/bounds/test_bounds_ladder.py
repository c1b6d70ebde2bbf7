"""The ladder of bounds on one gap, and the measurement beside it."""

import itertools
import math

import pytest
import torch

from random_networks import SLACK
from taskvec_mini.bounds import curvature_range, gap_ladder
from taskvec_mini.bounds.ladder import Run, covering_radius, examples_in_a_ball
from taskvec_mini.descent import gradient_descent
from taskvec_mini.networks import MLP, flat_loss, flatten, unflatten
from taskvec_mini.tasks import choose, digit_tasks
from taskvec_mini.theory import leading_gap, merge_gap, multitask_descent
from tight_networks import TIGHT


@pytest.fixture(scope="module")
def comparison():
    """Two digit tasks with heads of their own, 60 images, a network that has learned the first a little."""
    model = MLP((64, 16, 12), generator=torch.Generator().manual_seed(0))
    losses = [
        flat_loss(model, task.train_inputs[:60], task.train_labels[:60], outputs=task.outputs)
        for task in choose(digit_tasks(), "digits", "odd or even")
    ]
    return losses, gradient_descent(losses[0], flatten(model), learning_rate=0.3, epochs=20)[-1]


def climb(comparison, **changes):
    losses, start = comparison
    options = {"learning_rate": 0.003, "epochs": 4, "scaling_coef": 0.5, "pieces": 3, **changes}
    return gap_ladder(losses, start, **options, generator=torch.Generator().manual_seed(0))


def test_every_rung_is_tighter_than_the_one_it_improves(comparison):
    rungs = climb(comparison)
    ball, examples, along, pieces, measured, leading, truth = [rung.gap for rung in rungs]
    assert ball > along > pieces > measured > truth
    assert ball > 10 * examples > 10 * pieces
    assert leading == pytest.approx(truth, rel=0.05)
    drifts = [rungs[place].drift for place in (0, 2, 3, 4)]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-1] >= rungs[-1].drift
    kinds = [rung.kind for rung in rungs]
    assert kinds[:4] == ["proof before the run"] * 2 + ["proof along the run"] * 2
    assert kinds[4:] == ["measurement", "approximation", "truth"]


def test_the_last_rungs_are_what_theory_says(comparison):
    losses, start = comparison
    options = {"learning_rate": 0.003, "epochs": 4, "scaling_coef": 0.5}
    *_, leading, truth = climb(comparison)
    assert leading.gap == float(leading_gap(losses, start, **options).norm())
    assert truth.gap == float(merge_gap(losses, start, **options).norm())


def test_the_paths_stay_in_the_ball_of_a_proof_before_the_run(comparison):
    losses, start = comparison
    paths = gradient_descent(losses, start, learning_rate=0.003, epochs=3)
    joint = multitask_descent(losses, start, learning_rate=0.003, epochs=3, scaling_coef=0.5)
    furthest = max(float((path - start).norm(dim=-1).max()) for path in (paths, joint))
    for rung in climb(comparison)[:2]:
        assert furthest <= rung.radius < 60 * furthest


@pytest.mark.parametrize("scaling_coef", [1.0, 3.0, -3.0])
def test_the_ball_is_wide_enough_where_gradients_are_as_long_as_they_can_be(scaling_coef):
    """A confident mistake: all gradients have the length G, and one of the paths goes as far as it may."""
    case = TIGHT["a confident mistake"]
    loss = flat_loss(case.model, case.inputs, case.targets)
    options = {"learning_rate": 0.01, "epochs": 4, "scaling_coef": scaling_coef}
    rungs = gap_ladder([loss], case.theta, **options, generator=torch.Generator())
    own = gradient_descent(loss, case.theta, learning_rate=0.01, epochs=3)
    joint = multitask_descent([loss], case.theta, learning_rate=0.01, epochs=3, scaling_coef=scaling_coef)
    furthest = max(float((path[-1] - case.theta).norm()) for path in (own, joint))
    assert furthest == pytest.approx(3 * 0.01 * max(1, abs(scaling_coef)) * case.bound(), rel=1e-6)
    for rung in rungs[:2]:
        assert furthest <= rung.radius * SLACK < 1.2 * furthest


def test_where_no_ball_holds_the_paths_the_proof_says_nothing(comparison):
    rungs = climb(comparison, learning_rate=2.0, epochs=8)
    assert [rung.gap for rung in rungs[:2]] == [math.inf, math.inf]
    assert all(rung.gap >= rungs[-1].gap for rung in rungs[2:4])


def test_one_epoch_has_no_gap_and_every_rung_knows(comparison):
    assert [rung.gap for rung in climb(comparison, epochs=1)][:5] == [0.0] * 5


def test_the_ladder_refuses_what_it_cannot_look_into(comparison):
    start = comparison[1]
    options = {"learning_rate": 0.1, "epochs": 2, "scaling_coef": 0.5, "generator": torch.Generator()}
    with pytest.raises(TypeError, match="make them with flat_loss"):
        gap_ladder([lambda theta: theta.sum()], start, **options)
    with pytest.raises(ValueError, match="the list of losses is empty"):
        gap_ladder([], start, **options)
    linear = torch.nn.Linear(2, 2).double()
    loss = flat_loss(linear, torch.ones(1, 2), torch.tensor([0]))
    with pytest.raises(TypeError, match=r"networks\.MLP, got Linear"):
        gap_ladder([loss], flatten(linear), **options)


def test_a_radius_covers_only_what_comes_back_to_it():
    assert covering_radius(lambda radius: 3.0) == pytest.approx(3.0)
    assert covering_radius(lambda radius: math.exp(radius)) == math.inf
    assert covering_radius(lambda radius: math.nan) == math.inf
    found = covering_radius(lambda radius: 0.3 * math.exp(radius))
    assert 0.3 * math.exp(found) <= found < 0.6  # the least solution is 0.4894


# --- the paths -------------------------------------------------------------------------------------------


def test_the_pieces_cover_the_segments_between_the_paths(comparison):
    """From one path to the other the centres are two half-lengths apart, and the ends one, layer by layer."""
    losses, start = comparison
    run = Run(losses, start, 0.1, 3, 0.5)
    pieces = []

    def look(loss, centre, half):
        pieces.append((losses.index(loss), centre, torch.tensor(half)))
        return float(len(pieces)), 0.0

    found = run.along(4, look)
    assert found.shape == (2, 2, 3, 4)
    assert found[0].flatten().tolist() == [0.0] * 4 + list(range(1, 9)) + [0.0] * 4 + list(range(9, 17))
    for first, (task, epoch) in zip(range(0, 16, 4), ((0, 1), (0, 2), (1, 1), (1, 2)), strict=True):
        group = pieces[first : first + 4]
        assert {place for place, _, _ in group} == {task}
        stops = [run.finetuned[task, epoch], *(centre for _, centre, _ in group), run.multitask[epoch]]
        for place, (a, b) in enumerate(itertools.pairwise(stops)):
            wanted = group[0][2].double() * (1 if place in (0, 4) else 2)
            parts = list(unflatten(losses[task].model, b - a).values())  # weight, bias, weight, bias
            lengths = [
                torch.cat([w.flatten(), b]).norm() for w, b in zip(parts[::2], parts[1::2], strict=True)
            ]
            assert torch.stack(lengths).allclose(wanted, rtol=1e-9)


def test_what_is_read_off_the_paths():
    """On a hill, with a coefficient near 0: finetuning runs away downhill, and multitask descent stays."""
    run = Run([lambda theta: -theta.square().sum()], torch.ones(1).double(), 0.5, 4, 1e-6)
    assert run.finetuned.flatten().tolist() == [1, 2, 4, 8, 16]
    assert run.steepest == 2 * 8  # the last gradient that was used
    assert run.true_drift == pytest.approx(15, rel=1e-5)
    assert run.disagreements.tolist() == [pytest.approx([2.0] * 4, rel=1e-4)]
    sizes = torch.tensor([[1.0], [10.0], [100.0]])
    assert Run([], torch.ones(1), 0.1, 1, -0.5).mixed(sizes).flatten().tolist() == [56.5, 65.5, 155.5]


def test_a_proof_before_the_run_follows_gradients_that_grow():
    """A bowl climbed upwards, with a coefficient below 0: everything is larger than at the start."""
    model = MLP((1, 1), generator=torch.Generator().manual_seed(0))
    losses = [
        flat_loss(model, torch.ones(1, 1), torch.full((1, 1), target).double(), loss="squared_error")
        for target in (3.0, 4.0)
    ]
    run = Run(losses, flatten(model), 0.2, 4, -1.0)
    rung = examples_in_a_ball(run)
    slopes = torch.stack([run.slopes(theta).norm(dim=1) for theta in run.multitask[:-1]])
    assert slopes[-1].min() > 4 * slopes[0].max()
    assert rung.curvature == pytest.approx(2.0, rel=1e-12)  # exact: the bowl's own
    furthest = float((run.multitask[-2] - run.start).norm())
    said = (rung.radius, rung.gradient, rung.disagreement, rung.gap)
    true = (furthest, float(slopes.max()), float(run.disagreements.max()), run.true_gap)
    assert all(size <= bound * SLACK for size, bound in zip(true, said, strict=True))


# --- the measurement -------------------------------------------------------------------------------------


def test_lanczos_finds_the_ends_of_the_spectrum():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(60, 60, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    values = torch.linalg.eigvalsh(matrix)

    def bowl(theta):
        return theta @ matrix @ theta / 2

    few = curvature_range(bowl, torch.zeros(60).double(), steps=10, generator=generator)
    assert float(values[0]) < few[0] < few[1] < float(values[-1])
    all_of_them = curvature_range(bowl, torch.zeros(60).double(), steps=99, generator=generator)
    assert all_of_them == pytest.approx((float(values[0]), float(values[-1])), rel=1e-9)


def test_lanczos_on_a_plane_and_on_a_bowl():
    generator = torch.Generator().manual_seed(0)
    zero = torch.zeros(5).double()
    assert curvature_range(lambda theta: theta.sum(), zero, generator=generator) == (0.0, 0.0)
    assert curvature_range(lambda theta: theta.square().sum(), zero, generator=generator) == pytest.approx(
        (2, 2)
    )
    with pytest.raises(ValueError, match="steps must be at least 1"):
        curvature_range(lambda theta: theta.sum(), zero, steps=0, generator=generator)
