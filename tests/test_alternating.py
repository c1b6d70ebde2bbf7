"""Rounds of tuning and merging: against gradient descent, slow truths, and the inequalities they obey."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_losses import digit_losses, gradient, hessian, relative, tiny_losses
from taskvec_mini import TaskVector, merging, rounds
from taskvec_mini.alternating import (
    MeanLoss,
    alternate,
    descent_bound,
    experts_edge,
    local_sgd,
    matrix_rule,
    weighted_mean,
)
from taskvec_mini.descent import DivergedError, finetune, gradient_descent
from taskvec_mini.networks import MLP, flat_loss, flatten
from taskvec_mini.quadratics import Quadratic
from taskvec_mini.rounds import Round, losses_at
from taskvec_mini.theory import collapsed_gap, local_orders, multitask_descent


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def last(history):
    *_, final = history
    return final


def mean_gradient(losses, theta):
    return torch.stack([gradient(loss, theta) for loss in losses]).mean(0)


def quadratics(generator, *, tasks=None, size=None, convex=False):
    """Random quadratic tasks, a start, and the largest curvature of a task in absolute value."""
    tasks = tasks or int(torch.randint(2, 6, (), generator=generator))
    size = size or int(torch.randint(1, 6, (), generator=generator))
    raw = torch.randn(tasks, size, size, generator=generator, dtype=torch.float64)
    hessians = raw @ raw.mT / size if convex else (raw + raw.mT) / 2
    hessians = (hessians + hessians.mT) / 2
    centres = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    beta = float(torch.linalg.eigvalsh(hessians).abs().max())
    return [Quadratic(a, mu) for a, mu in zip(hessians, centres, strict=True)], start, beta


# --- one step a round is gradient descent on the mean loss ------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.floats(1e-3, 1.0), st.sampled_from(["tanh", "relu"]))
def test_one_full_batch_step_is_gradient_descent_on_the_mean_loss(seed, tasks, rate, activation):
    losses, start = tiny_losses(tasks, seed=seed, activation=activation)
    after = last(alternate(losses, start, rounds=1, epochs=1, learning_rate=rate)).theta
    step = rate * mean_gradient(losses, start)
    assert (after - (start - step)).norm() <= 1e-14 * (start.norm() + step.norm())


def test_rounds_of_one_step_follow_the_multitask_path():
    losses, start = digit_losses(4)
    history = list(alternate(losses, start, rounds=10, epochs=1, learning_rate=0.5))
    path = multitask_descent(losses, start, learning_rate=0.5, epochs=10, scaling_coef=1 / 4)
    assert [each.number for each in history] == list(range(11))
    for each, theta in zip(history, path, strict=True):
        assert (each.theta - theta).norm() < 1e-13 * start.norm()


def test_rounds_of_several_steps_written_out():
    losses, start = tiny_losses(3)
    history = list(alternate(losses, start, rounds=2, epochs=3, learning_rate=0.3, scaling_coef=0.8))
    theta = start
    for each in history[1:]:
        moves = []
        for loss in losses:
            own = theta
            for _ in range(3):
                own = own - 0.3 * gradient(loss, own)
            moves.append(own - theta)
        theta = theta + 0.8 * torch.stack(moves).mean(0)
        torch.testing.assert_close(each.theta, theta, rtol=1e-13, atol=1e-14)
        assert each.losses == pytest.approx([float(loss(theta)) for loss in losses], rel=1e-12)
        assert each.mean_loss == pytest.approx(sum(float(loss(theta)) for loss in losses) / 3, rel=1e-12)


def test_at_a_fixed_budget_the_distance_to_multitask_descent_grows_like_epochs_less_one():
    """R rounds of e epochs leave about R times the gap of one round, that is η²K(e − 1)/2 · ∇Φ/T."""
    losses, start = digit_losses(2)
    rate, budget = 2.0**-10, 12
    target = multitask_descent(losses, start, learning_rate=rate, epochs=budget, scaling_coef=1 / 2)[-1]
    pairs = {"learning_rate": rate, "scaling_coef": 1 / 2}
    for epochs in (2, 3, 4, 6, 12):
        count = budget // epochs
        theta = last(alternate(losses, start, rounds=count, epochs=epochs, learning_rate=rate)).theta
        assert relative(theta - target, count * collapsed_gap(losses, start, epochs=epochs, **pairs)) < 0.05


# --- what a round knows -----------------------------------------------------------------------------------


def test_norms_and_cosines_of_the_current_and_of_the_pretrained_start(monkeypatch):
    monkeypatch.setattr(rounds, "_PIECE", 7)  # several pieces, the last of them partial
    losses, start = tiny_losses(3)
    before, after = list(alternate(losses, start, rounds=2, epochs=2, learning_rate=0.3))[1:]
    tuned = gradient_descent(losses, before.theta, learning_rate=0.3, epochs=2)[:, -1]
    for origin, norms, cosines in (
        (before.theta, after.norms, after.cosines),
        (start, after.norms_from_pretrained, after.cosines_from_pretrained),
    ):
        vectors = [TaskVector(theta - origin, [("theta", theta.shape)]) for theta in tuned]
        assert norms == pytest.approx([vector.norm() for vector in vectors], rel=1e-12)
        for row, a in zip(cosines, vectors, strict=True):
            assert row == pytest.approx([a.cosine(b) for b in vectors], abs=1e-12)
    assert after.norms != pytest.approx(after.norms_from_pretrained)
    off = [after.cosines[i][j] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert after.mean_cosine == pytest.approx(sum(off) / 3, rel=1e-12)
    far = [after.cosines_from_pretrained[i][j] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert after.mean_cosine_from_pretrained == pytest.approx(sum(far) / 3, rel=1e-12)
    assert torch.equal(after.pretrained, start)


def test_in_the_first_round_both_starts_are_one():
    losses, start = tiny_losses(2)
    first = list(alternate(losses, start, rounds=1, epochs=2, learning_rate=0.3))[1]
    assert first.norms == first.norms_from_pretrained
    assert first.cosines == first.cosines_from_pretrained


def test_a_vector_without_a_direction_has_no_cosine():
    losses = [lambda theta: theta[0], lambda theta: 0 * theta.sum()]
    begin, after = alternate(losses, torch.ones(2).double(), rounds=1, epochs=1, learning_rate=1.0)
    assert after.norms == (1.0, 0.0)
    assert after.cosines[0][0] == 1.0
    assert math.isnan(after.mean_cosine)
    assert math.isnan(begin.mean_cosine)
    single = last(alternate(losses[:1], torch.ones(2), rounds=1, epochs=1, learning_rate=1.0))
    assert math.isnan(single.mean_cosine)


def test_what_it_cost():
    losses, start = tiny_losses(3)
    history = list(alternate(losses, start, rounds=4, epochs=5, learning_rate=0.1))
    assert [each.gradient_evaluations for each in history] == [0, 15, 30, 45, 60]
    assert [each.floats_communicated for each in history] == [2 * 3 * len(start) * r for r in range(5)]


# --- control variates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [2, 4])
def test_rounds_of_two_steps_with_an_exchange_are_joint_descent(tasks):
    """Exactly, at any rate; and they send as many numbers as joint descent, which exchanges every step."""
    losses, start = tiny_losses(tasks)
    *_, merged = alternate(losses, start, rounds=4, epochs=2, learning_rate=0.7, control_variates=True)
    joint = multitask_descent(losses, start, learning_rate=0.7, epochs=8, scaling_coef=1 / tasks)[-1]
    assert (merged.theta - joint).norm() < 1e-13 * start.norm()
    assert (
        last(alternate(losses, start, rounds=4, epochs=2, learning_rate=0.7)).theta.sub(joint).norm() > 1e-3
    )
    every_step = last(alternate(losses, start, rounds=8, epochs=1, learning_rate=0.7))
    assert merged.floats_communicated == every_step.floats_communicated == 2 * 8 * tasks * len(start)
    assert merged.gradient_evaluations == every_step.gradient_evaluations == 8 * tasks


def test_each_round_exchanges_anew():
    losses, start = tiny_losses(3)
    run = {"epochs": 4, "learning_rate": 0.5}
    history = list(alternate(losses, start, rounds=3, **run, control_variates=True))
    for before, after in itertools.pairwise(history):
        ends = gradient_descent(losses, before.theta, **run, control_variates=True)[:, -1]
        torch.testing.assert_close(after.theta, ends.mean(0))


def test_local_sgd_exchanges_whole_gradients():
    losses, start = tiny_losses(3)
    run = {"epochs": 3, "learning_rate": 0.5, "control_variates": True}
    whole = last(local_sgd(losses, start, rounds=2, batch_size=7, seed=0, **run))
    full = last(alternate(losses, start, rounds=2, **run))
    torch.testing.assert_close(whole.theta, full.theta, rtol=1e-10, atol=1e-12)
    assert whole.gradient_evaluations == 2 * 3 * (3 + 1)
    assert whole.floats_communicated == full.floats_communicated == 2 * 4 * 3 * len(start)
    plain = last(local_sgd(losses, start, rounds=2, batch_size=3, seed=0, epochs=3, learning_rate=0.5))
    batches = last(local_sgd(losses, start, rounds=2, batch_size=3, seed=0, **run))
    assert (plain.theta - batches.theta).norm() > 1e-3
    assert plain.gradient_evaluations == 2 * 3 * 3


def test_a_finetune_of_ones_own_is_counted_as_exchanging():
    losses, start = tiny_losses(2)
    options = {"rounds": 2, "epochs": 3, "finetune": lambda tasks, theta, _: theta.repeat(len(tasks), 1) + 1}
    counted = last(alternate(losses, start, **options, control_variates=True))
    assert counted.gradient_evaluations == 2 * 2 * (3 + 1)
    assert counted.floats_communicated == 2 * 2 * 2 * 2 * len(start)


def test_gradient_evaluations_are_those_that_happen():
    calls = 0

    def counted(theta):
        nonlocal calls
        calls += theta.requires_grad  # looking at a loss is not a gradient
        return theta.square().sum()

    final = last(alternate([counted, counted], torch.ones(2), rounds=3, epochs=4, learning_rate=0.1))
    assert calls == final.gradient_evaluations == 24


def test_it_measures_reports_and_is_lazy():
    losses, start = tiny_losses(2)
    seen, tuned = [], []

    def tune(tasks, theta, number):
        assert number == len(tuned) + 1
        tuned.append(theta)
        return gradient_descent(tasks, theta, learning_rate=0.1, epochs=2)[:, -1]

    history = alternate(
        losses,
        start,
        rounds=3,
        epochs=2,
        finetune=tune,
        measure=lambda theta: {"norm": float(theta.norm())},
        progress=seen.append,
    )
    assert not seen
    assert not tuned
    assert next(history).measured == {"norm": float(start.norm())}
    assert next(history) is seen[1]
    assert len(tuned) == 1
    rest = list(history)
    assert [each.number for each in seen] == [0, 1, 2, 3]
    assert rest[-1].measured == {"norm": float(rest[-1].theta.norm())}
    same = last(alternate(losses, start, rounds=3, epochs=2, learning_rate=0.1))
    assert torch.equal(rest[-1].theta, same.theta)


def test_inputs_are_left_as_they_are():
    losses, start = tiny_losses(2)
    start.requires_grad_()
    before = start.detach().clone()
    history = list(alternate(losses, start, rounds=2, epochs=2, learning_rate=0.1))
    assert torch.equal(start.detach(), before)
    assert not any(each.theta.requires_grad for each in history)
    with torch.no_grad():
        start.zero_()
    assert torch.equal(history[0].theta, before)


# --- going on ---------------------------------------------------------------------------------------------

RECIPES = {
    "full batch": (alternate, {"epochs": 3, "learning_rate": 0.3}),
    "mini-batches": (
        local_sgd,
        {"epochs": 2, "learning_rate": 0.3, "batch_size": 3, "seed": 4, "momentum": 0.9},
    ),
}
every_recipe = pytest.mark.parametrize(("function", "run"), RECIPES.values(), ids=RECIPES)


def assert_same_round(one, other):
    assert torch.equal(one.theta, other.theta)
    assert torch.equal(one.pretrained, other.pretrained)
    for name in ("number", "losses", "norms", "norms_from_pretrained", "cosines_from_pretrained", "measured"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.gradient_evaluations == other.gradient_evaluations
    assert one.floats_communicated == other.floats_communicated


@every_recipe
@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_run_goes_on_from_a_round_to_the_same_bits(function, run, through_a_file, tmp_path):
    losses, start = tiny_losses(3)
    run = run | {"measure": lambda theta: {"norm": float(theta.norm())}}
    whole = list(function(losses, start, rounds=5, **run))
    state = last(function(losses, start, rounds=2, **run))
    if through_a_file:
        state.save(tmp_path / "round.safetensors")
        state = Round.load(tmp_path / "round.safetensors")
        assert_same_round(state, whole[2])
        assert state.cosines == whole[2].cosines
    later = list(function(losses, state, rounds=5, **run))
    assert [each.number for each in later] == [3, 4, 5]
    for one, other in zip(later, whole[3:], strict=True):
        assert_same_round(one, other)
    assert list(function(losses, whole[-1], rounds=5, **run)) == []


def test_the_start_survives_a_file_with_its_missing_cosines(tmp_path):
    losses, start = tiny_losses(2)
    begin = next(alternate(losses, start, rounds=1, epochs=1, learning_rate=0.1))
    begin.save(tmp_path / "start")
    assert math.isnan(Round.load(tmp_path / "start").mean_cosine)


def test_a_file_of_a_task_vector_is_no_round(tmp_path):
    TaskVector(torch.ones(4), [("bias", (4,))]).save(tmp_path / "tv")
    with pytest.raises(ValueError, match=r"is a taskvec_mini\.TaskVector/2 but no round"):
        Round.load(tmp_path / "tv")


def test_going_on_with_other_tasks_is_refused():
    losses, start = tiny_losses(3)
    run = {"epochs": 1, "learning_rate": 0.1}
    state = last(alternate(losses[:2], start, rounds=1, **run))
    with pytest.raises(ValueError, match="start knows 2 tasks, got 3; go on with the same losses"):
        alternate(losses, state, rounds=2, **run)


# --- mini-batches, weights, rules -------------------------------------------------------------------------


def recorded_orders(losses, start, **run):
    """The merged parameters of `local_sgd`, and the batches it drew: (task, indices) in order."""
    drawn = []

    def spying(t, loss):
        def spy(theta, index=None):
            if index is not None:
                drawn.append((t, index))
            return loss(theta, index)

        return Sized(spy, len(loss))

    spies = [spying(t, loss) for t, loss in enumerate(losses)]
    return last(local_sgd(spies, start, **run)).theta, drawn


def test_local_sgd_is_the_mean_of_mini_batch_runs():
    losses, start = tiny_losses(3)
    for momentum in (0.0, 0.5):
        run = {"epochs": 2, "learning_rate": 0.2, "batch_size": 3, "seed": 1, "momentum": momentum}
        merged, drawn = recorded_orders(losses, start, rounds=1, **run)
        ends = []
        for t, loss in enumerate(losses):
            theta, velocity = start, torch.zeros_like(start)
            for _, index in [batch for batch in drawn if batch[0] == t]:
                velocity = momentum * velocity + torch.func.grad(loss)(theta, index)
                theta = theta - 0.2 * velocity
            ends.append(theta)
        assert len(drawn) == 3 * 2 * 3
        torch.testing.assert_close(merged, torch.stack(ends).mean(0), rtol=1e-12, atol=1e-13)


def test_local_sgd_measures_and_reports():
    losses, start = tiny_losses(2)
    seen = []
    run = {"rounds": 2, "epochs": 1, "learning_rate": 0.1, "batch_size": 3, "seed": 0}
    look = {"measure": lambda theta: {"norm": float(theta.norm())}, "progress": seen.append}
    history = list(local_sgd(losses, start, **run, **look))
    assert list(map(id, seen)) == list(map(id, history))
    assert [each.measured["norm"] for each in history] == [float(each.theta.norm()) for each in history]


def test_orders_come_from_the_seed_and_the_round():
    losses, start = tiny_losses(2)
    run = {"rounds": 2, "epochs": 3, "learning_rate": 0.1, "batch_size": 3}

    def orders(seed):
        drawn = recorded_orders(losses, start, seed=seed, **run)[1]
        return [index.tolist() for _, index in drawn]

    first = orders(1)
    for epoch in range(12):  # 3 batches an epoch, 2 tasks, 2 rounds
        assert sorted(i for batch in first[3 * epoch : 3 * epoch + 3] for i in batch) == list(range(7))
    assert first[:18] != first[18:]
    assert orders(1) == first
    assert orders(2) != first
    assert orders(2)[:18] != first[18:]  # nor does the next seed begin where this one's second round does


def test_local_sgd_with_whole_batches_is_the_full_batch_round():
    losses, start = tiny_losses(3)
    run = {"rounds": 3, "epochs": 2, "learning_rate": 0.2}
    one = last(local_sgd(losses, start, batch_size=7, seed=0, **run))
    other = last(alternate(losses, start, **run))
    torch.testing.assert_close(one.theta, other.theta, rtol=1e-12, atol=1e-13)


def test_weights_are_those_of_federated_averaging():
    """With n_t examples as weights, one step a round is gradient descent on the mean over all examples."""
    generator = seeded(0)
    model = MLP((3, 4, 2), generator=generator)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (12,), generator=generator)
    parts = [flat_loss(model, x[a:b], y[a:b]) for a, b in ((0, 2), (2, 5), (5, 12))]
    start, run = flatten(model), {"rounds": 4, "epochs": 1, "learning_rate": 0.5}
    sizes = [len(part) for part in parts]
    joint = gradient_descent(flat_loss(model, x, y), start, learning_rate=0.5, epochs=4)[-1]
    own = last(alternate(parts, start, merge=weighted_mean(sizes), **run)).theta
    torch.testing.assert_close(own, joint, rtol=1e-12, atol=1e-13)
    assert (last(alternate(parts, start, **run)).theta - joint).norm() > 1e-3
    equal = [flat_loss(model, x[a : a + 4], y[a : a + 4]) for a in (0, 4)]
    run = {"rounds": 2, "epochs": 1, "learning_rate": 0.5}
    one = last(local_sgd(equal, start, batch_size=4, seed=0, weights=[3, 1], **run)).theta
    other = last(alternate(equal, start, merge=weighted_mean([3, 1]), **run)).theta
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


LAYOUT = [("weight", (3, 4)), ("bias", (3,))]
RULES = {
    "sum": (merging.task_arithmetic, {}),
    "mean": (merging.mean, {}),
    "ties": (merging.ties, {"density": 0.4, "per_tensor": True}),
    "breadcrumbs": (merging.breadcrumbs, {"smallest": 0.5, "largest": 0.1}),
    "tsv": (merging.tsv, {}),
}


@pytest.mark.parametrize(("rule", "own"), RULES.values(), ids=RULES)
def test_published_rules_fit(rule, own):
    rows = torch.randn(3, 15, generator=seeded(0), dtype=torch.float64)
    expected = rule([TaskVector(row, LAYOUT) for row in rows], **own).flat
    torch.testing.assert_close(matrix_rule(rule, layout=LAYOUT, **own)(rows), expected)
    centres = torch.randn(3, 15, generator=seeded(1), dtype=torch.float64)
    losses = [lambda theta, c=c: (theta - c).square().sum() / 2 for c in centres]
    after = last(
        alternate(losses, rows[0], rounds=1, epochs=1, learning_rate=0.1, scaling_coef=0.7,
                  merge=matrix_rule(rule, layout=LAYOUT, **own))
    )  # fmt: skip
    vectors = 0.1 * (centres - rows[0])
    merged = rule([TaskVector(row, LAYOUT) for row in vectors], **own).flat
    torch.testing.assert_close(after.theta, rows[0] + 0.7 * merged)


def test_a_rule_without_a_layout_sees_one_tensor():
    rows = torch.randn(2, 6, generator=seeded(0))
    one = merging.breadcrumbs([TaskVector(row, [("all", (6,))]) for row in rows], smallest=0.5).flat
    assert torch.equal(matrix_rule(merging.breadcrumbs, smallest=0.5)(rows), one)


def test_mean_loss_is_the_mean_and_its_batches_cover_every_task():
    losses, start = tiny_losses(3)
    mean = MeanLoss(losses)
    expected = sum(float(loss(start)) for loss in losses) / 3
    assert float(mean(start)) == pytest.approx(expected, rel=1e-13)
    assert len(mean) == 7
    batches = [mean(start, batch) * len(batch) for batch in torch.randperm(7, generator=seeded(0)).split(3)]
    assert float(sum(batches)) / 7 == pytest.approx(expected, rel=1e-13)
    seen = []
    spies = [lambda theta, index, t=t: seen.append((t, index.tolist())) or theta.sum() for t in range(2)]
    MeanLoss([Sized(spy, 6) for spy in spies])(torch.ones(1), torch.tensor([0, 5]))
    assert seen == [(0, [0, 5]), (1, [3, 2])]


class Sized:
    def __init__(self, function, size):
        self.function, self.size = function, size

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __len__(self):
        return self.size


def test_joint_training_with_whole_batches_is_multitask_descent():
    losses, start = tiny_losses(3)
    run = {"learning_rate": 0.2, "epochs": 4}
    joint = finetune(MeanLoss(losses), start, batch_size=7, generator=seeded(0), **run)
    path = multitask_descent(losses, start, scaling_coef=1 / 3, **run)
    torch.testing.assert_close(joint, path, rtol=1e-12, atol=1e-13)


# --- the descent inequality -------------------------------------------------------------------------------


def gradients_met(losses, start, rate, epochs):
    """The largest gradient of a task at the start or where it takes a step after that."""
    paths = gradient_descent(losses, start, learning_rate=rate, epochs=epochs)
    slopes = [torch.func.vmap(torch.func.grad(f))(path) for f, path in zip(losses, paths, strict=True)]
    return float(torch.stack(slopes).norm(dim=2).max())


def quadratic_problem(generator):
    """A round on random quadratics, one in three of them begun where the mean loss has no slope."""
    losses, start, beta = quadratics(generator)
    epochs = int(torch.randint(1, 8, (), generator=generator))
    if torch.rand((), generator=generator) < 1 / 3:
        mean = torch.stack([loss.hessian for loss in losses]).mean(0)
        start = torch.linalg.solve(mean, torch.stack([f.hessian @ f.centre for f in losses]).mean(0))
    share = 1.0 if torch.rand((), generator=generator) < 1 / 3 else float(torch.rand((), generator=generator))
    rate = max(share, 0.01) / beta / epochs
    return losses, start, {"learning_rate": rate, "epochs": epochs}, beta


def check_inequality(losses, start, run, beta):
    """The fall that happened, the bound, and the bound without its term for the drift; all less L̄."""
    begin, after = alternate(losses, start, rounds=1, **run)
    slope = gradients_met(losses, start, run["learning_rate"], run["epochs"])
    size = float(mean_gradient(losses, start).norm())
    bound = descent_bound(begin.mean_loss, size, curvature=beta, slope=slope, **run)
    room = 1e-12 * (abs(begin.mean_loss) + abs(after.mean_loss) + slope**2 / beta)
    assert after.mean_loss <= bound + room, (run, beta)
    time = run["learning_rate"] * run["epochs"]
    return after.mean_loss > begin.mean_loss - time / 2 * size**2 + room


def test_the_descent_inequality_holds_on_quadratics():
    generator = seeded(0)
    needed = [check_inequality(*quadratic_problem(generator)) for _ in range(500)]
    assert sum(needed) > 20  # without the drift's term it would be wrong


def test_the_descent_inequality_is_attained():
    """Equal isotropic bowls and s = 1/β with one step: the round lands in the minimum."""
    bowls = [Quadratic(4 * torch.eye(3).double(), torch.full((3,), c).double()) for c in (0.0, 1.0)]
    start = torch.tensor([1.0, 2.0, 5.0]).double()
    begin, after = alternate(bowls, start, rounds=1, epochs=1, learning_rate=1 / 4)
    size = float(mean_gradient(bowls, start).norm())
    bound = descent_bound(begin.mean_loss, size, learning_rate=1 / 4, epochs=1, curvature=4.0, slope=9e9)
    assert after.mean_loss == pytest.approx(bound, rel=1e-12)


def test_the_bound_on_the_drift_is_attained_to_first_order():
    """Curvatures β and −β pull both gradients the same way: ‖v − ∇L̄‖ is βηG(e − 1)/2, the drift's root."""
    up, down = Quadratic(torch.eye(1).double(), torch.ones(1).double()), lambda x: (x - x.square() / 2).sum()
    rate = 1e-6
    for epochs in (2, 3, 5):
        final = last(
            alternate([up, down], torch.zeros(1).double(), rounds=1, epochs=epochs, learning_rate=rate)
        )
        met = float(final.theta) / -(rate * epochs)
        assert met == pytest.approx(rate * (epochs - 1) / 2, rel=1e-4)
        bound = descent_bound(0.0, 0.0, learning_rate=rate, epochs=epochs, curvature=1.0, slope=1.0)
        assert bound == pytest.approx(rate * epochs / 2 * met**2, rel=1e-3)


def largest_curvature(losses, start, rate, epochs):
    """β on the tasks' paths, the segments from the start to them and to the merge, from dense Hessians."""
    paths = gradient_descent(losses, start, learning_rate=rate, epochs=epochs)
    ends = torch.cat([*paths, paths[:, -1].mean(0)[None]])
    points = torch.cat([start + share * (ends - start) for share in torch.linspace(0, 1, 6).double()])
    found = [torch.func.vmap(lambda at, f=f: hessian(f, at))(points) for f in losses]
    return 1.05 * max(float(torch.linalg.eigvalsh(each).abs().max()) for each in found)


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_the_descent_inequality_holds_on_networks(activation):
    for seed in range(25):
        losses, start = tiny_losses(2 + seed % 2, seed=seed, activation=activation)
        epochs, share = 1 + seed % 6, (0.3, 1.0)[seed % 2]
        beta = largest_curvature(losses, start, share / 2 / epochs, epochs)
        rate = share / beta / epochs
        beta = largest_curvature(losses, start, rate, epochs)  # the paths have changed, so look again
        rate = min(rate, share / beta / epochs)
        check_inequality(losses, start, {"learning_rate": rate, "epochs": epochs}, beta)


# --- Jensen's bound, and the bound that is none ---------------------------------------------------------


def experts(losses, start, rate, epochs):
    return gradient_descent(losses, start, learning_rate=rate, epochs=epochs)[:, -1]


def logistic(generator):
    model = MLP((3, 3), generator=generator)  # no hidden layer: convex
    losses = []
    for _ in range(3):
        x = 2 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
        losses.append(flat_loss(model, x, torch.randint(3, (6,), generator=generator)))
    return losses, flatten(model)


def test_jensen_bounds_the_merge_where_the_mean_loss_is_convex():
    generator = seeded(1)
    problems = [quadratics(generator, convex=True)[:2] for _ in range(150)]
    problems += [logistic(generator) for _ in range(50)]
    for losses, start in problems:
        rate = float(torch.rand((), generator=generator)) / 4 + 0.01
        at_experts = losses_at(losses, experts(losses, start, rate, 4))
        merged = last(alternate(losses, start, rounds=1, epochs=4, learning_rate=rate)).mean_loss
        assert merged <= float(at_experts.mean()) * (1 + 1e-12) + 1e-12


def test_the_experts_own_losses_bound_nothing():
    for seed in range(20):
        losses, start = tiny_losses(3, seed=seed)
        run = {"learning_rate": 2.0**-10, "epochs": 3}
        own = losses_at(losses, experts(losses, start, run["learning_rate"], 3)).diagonal().mean()
        merged = last(alternate(losses, start, rounds=1, **run)).mean_loss
        assert float(own) < merged
        edge = float(own) - merged
        slopes = torch.stack([gradient(loss, start) for loss in losses])
        written = -(2.0**-10) * 3 * float((slopes - slopes.mean(0)).square().sum()) / 3
        assert experts_edge(losses, start, **run) == pytest.approx(written, rel=1e-12)
        assert edge == pytest.approx(written, rel=0.1)


def test_what_the_experts_edge_leaves_is_of_second_order():
    losses, start = digit_losses(4)
    rates, rests = [2.0**-n for n in (6, 7, 8, 9)], []
    for rate in rates:
        own = losses_at(losses, experts(losses, start, rate, 2)).diagonal().mean()
        merged = last(alternate(losses, start, rounds=1, epochs=2, learning_rate=rate)).mean_loss
        rests.append(abs(float(own) - merged - experts_edge(losses, start, learning_rate=rate, epochs=2)))
    assert local_orders(rates, rests) == pytest.approx([2, 2, 2], abs=0.1)


@pytest.mark.parametrize("stackable", [True, False])
def test_losses_at_several_places(stackable):
    losses, start = tiny_losses(3)
    losses = losses if stackable else [lambda theta, f=f: f(theta) for f in losses]
    places = torch.stack([start, -start])
    expected = torch.tensor([[float(loss(place)) for loss in losses] for place in places])
    torch.testing.assert_close(losses_at(losses, places).float(), expected)


# --- bad input ---------------------------------------------------------------------------------------------


def bowl(theta, index=None):
    return theta.square().sum() / 2


BAD = [
    ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
    ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    ({"epochs": 1.5}, TypeError, "epochs must be a whole number, got 1.5"),
    ({"learning_rate": 0.0}, ValueError, "learning_rate must be above 0, got 0.0"),
    ({"learning_rate": None}, ValueError, "give either learning_rate"),
    ({"finetune": lambda f, x: x}, ValueError, "give either learning_rate"),
    ({"scaling_coef": math.nan}, ValueError, "scaling_coef must be finite, got nan"),
    ({"losses": []}, ValueError, "the list of losses is empty"),
    ({"start": [1.0]}, TypeError, "start must be a 1-D floating-point tensor"),
    ({"start": torch.tensor([math.inf])}, ValueError, "start holds 1 value(s) that are NaN"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_arguments_are_named_at_once(change, error, message):
    given = {
        "losses": [bowl],
        "start": torch.ones(2),
        "rounds": 1,
        "epochs": 1,
        "learning_rate": 0.1,
    } | change
    losses, start = given.pop("losses"), given.pop("start")
    with pytest.raises(error) as caught:
        alternate(losses, start, **given)  # no round is asked for
    assert message in str(caught.value)


def test_what_a_callable_returns_is_checked():
    run = {"rounds": 1, "epochs": 1}
    start = torch.ones(2)
    with pytest.raises(ValueError, match=r"finetune must return a tensor of shape \(1, 2\), got \(2,\)"):
        last(alternate([bowl], start, finetune=lambda f, theta, n: theta, **run))
    with pytest.raises(ValueError, match=r"merge must return a tensor of shape \(2,\), got list"):
        last(alternate([bowl], start, learning_rate=0.1, merge=lambda vectors: [0.0, 0.0], **run))
    with pytest.raises(ValueError, match="what finetune returned holds 1 value"):
        last(
            alternate(
                [bowl], start, finetune=lambda f, theta, n: theta[None] / torch.tensor([[1.0, 0.0]]), **run
            )
        )


def test_what_a_callable_returns_brings_no_graph_along():
    trained = torch.zeros(1, 2, requires_grad=True)
    after = last(
        alternate([bowl], torch.ones(2), rounds=1, epochs=1, finetune=lambda f, theta, n: trained + 1)
    )
    assert not after.theta.requires_grad


def test_a_diverging_round_stops():
    steep = Quadratic(torch.eye(2).double(), torch.zeros(2).double())
    with pytest.raises(DivergedError):
        last(alternate([steep], torch.ones(2).double(), rounds=9, epochs=9, learning_rate=1e200))


def test_bad_weights_and_seeds_are_named():
    with pytest.raises(ValueError, match="weights is empty"):
        weighted_mean([])
    with pytest.raises(ValueError, match=r"weights must be 0 or above, .*got \[2.0, -1.0\]"):
        weighted_mean([2, -1])
    with pytest.raises(ValueError, match="at least one above 0"):
        weighted_mean([0, 0])
    with pytest.raises(ValueError, match="got 2 weights for 3 tasks"):
        weighted_mean([1, 1])(torch.ones(3, 4))
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        local_sgd([bowl], torch.ones(1), rounds=1, epochs=1, learning_rate=0.1, batch_size=1, seed=-1)
    with pytest.raises(ValueError, match=r"the tasks have \[3, 7\] examples"):
        len(MeanLoss([tiny_losses(1)[0][0], Sized(bowl, 3)]))


def test_the_inequality_says_where_it_holds():
    run = {"epochs": 4, "curvature": 2.0, "slope": 1.0}
    with pytest.raises(ValueError, match=r"times epochs is 0\.8, above 1 / curvature = 0\.5.* to 0\.125"):
        descent_bound(1.0, 1.0, learning_rate=0.2, **run)
    assert descent_bound(1.0, 1.0, learning_rate=0.125, **run) == 1 - 0.25 + 0.25 * (0.25 * 1.5) ** 2
    with pytest.raises(ValueError, match="curvature must be above 0"):
        descent_bound(1.0, 1.0, learning_rate=0.1, epochs=1, curvature=0.0, slope=1.0)
    with pytest.raises(ValueError, match="slope must be finite, got inf"):
        descent_bound(1.0, 1.0, learning_rate=0.1, epochs=1, curvature=1.0, slope=math.inf)
