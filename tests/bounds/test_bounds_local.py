"""The bounds from the examples: their equation, how far things move in a region, how tight they are."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from random_networks import SLACK, cases, hessian
from taskvec_mini.bounds import curvature_range, local, local_bounds, network_bounds
from taskvec_mini.bounds.point import moves_in, point_at
from taskvec_mini.descent import gradient_descent
from taskvec_mini.networks import MLP, flat_loss, flatten, unflatten
from taskvec_mini.tasks import digit_tasks
from tight_networks import BEND, TIGHT, Tight

few = settings(max_examples=60, deadline=None, derandomize=True)


@few
@given(cases(widest=5, deepest=4))
def test_the_equation_behind_the_bounds(case):
    """VᵀHV from a dense Hessian, and from the mean over the examples of the three terms of `bounds.local`."""
    theta, v = case.theta, case.direction()
    truth = float(v @ hessian(case.loss, theta) @ v)
    point = point_at(case.loss, theta)
    named = unflatten(case.model, v)
    layers = [[named[f"layers.{m}.{part}"] for part in ("weight", "bias")] for m in range(point.depth)]
    parts = [torch.cat([weight, bias[:, None]], dim=1) for weight, bias in layers]
    own = [inputs @ part.T for inputs, part in zip(point.inputs, parts, strict=True)]
    rates = [torch.zeros_like(each) for each in own]
    for (m, i), jacobian in point.jacobians.items():
        rates[m] = rates[m] + torch.einsum("njk,nk->nj", jacobian, own[i])
    total = torch.einsum("ni,nij,nj->n", rates[-1], point.curvature, rates[-1])
    for m in range(point.depth - 1):
        total = total + (point.bends[m] * point.pulls[m] * rates[m] ** 2).sum(1)
        through = point.slopes[m] * rates[m]  # ḣ_m
        total = total + 2 * (point.signals[m + 1] * (through @ parts[m + 1][:, :-1].T)).sum(1)
    assert float(total.mean()) == pytest.approx(truth, rel=1e-9, abs=1e-12)


# --- how far the quantities move -------------------------------------------------------------------------

FIELDS = ("inputs", "slopes", "residual", "curvature", "jacobians", "signals", "bends")


def sizes_of_changes(point, moved):
    """How far each quantity of a point is from the same one of another, in the norm that `Moves` names."""
    change = {
        name: [b - a for a, b in zip(getattr(point, name), getattr(moved, name), strict=True)]
        for name in ("inputs", "slopes", "signals")
    }
    force = [[b * p for b, p in zip(each.bends, each.pulls, strict=True)] for each in (point, moved)]
    jacobians = {key: moved.jacobians[key] - point.jacobians[key] for key in point.jacobians}
    return {
        "inputs": [each.norm(dim=1) for each in change["inputs"]],
        "slopes": [each.abs().amax(1) for each in change["slopes"]],
        "residual": [(moved.residual - point.residual).norm(dim=1)],
        "curvature": [torch.linalg.matrix_norm(moved.curvature - point.curvature, 2)],
        "jacobians": [torch.linalg.matrix_norm(each, 2) for each in jacobians.values()],
        "signals": [each.norm(dim=1) for each in change["signals"]],
        "bends": [(b - a).abs().amax(1) for a, b in zip(*force, strict=True)],
    }


def too_far(moves, changes, factor=1.0):
    """The names of the quantities that moved further than `factor` times what `moves` allows."""
    found = []
    for name in FIELDS:
        bounds = getattr(moves, name)
        listed = (
            list(bounds.values())
            if isinstance(bounds, dict)
            else bounds
            if isinstance(bounds, list)
            else [bounds]
        )
        pairs = zip(listed, changes[name], strict=True)
        if any(bool((change > factor * bound * SLACK + 1e-13).any()) for bound, change in pairs):
            found.append(name)
    return found


@settings(few, max_examples=80)
@given(cases(widest=6), st.floats(math.log(1e-3), 0.0))
def test_nothing_moves_further_than_it_may(case, log_radius):
    radius, point = math.exp(log_radius), point_at(case.loss, case.theta)
    moves = moves_in(point, [radius] * point.depth)
    for _ in range(3):
        moved = point_at(case.loss, case.theta + radius * case.direction())
        assert too_far(moves, sizes_of_changes(point, moved)) == []


UNEVEN = math.log((1 + 1 / math.sqrt(3)) / (1 - 1 / math.sqrt(3)))
STEP = 1e-4 / math.sqrt(2)
FURTHEST = {  # a step that takes the named quantity as far as it may go
    "inputs": Tight((1, 1, 1), [0, 0, 1, 0], of="", x=90.0, y=0.0, radius=[1, 0], moved=[1, 0, 1, 0]),
    "slopes": Tight(
        (1, 1, 1),
        [0, BEND, 1, 0],
        activation="tanh",
        of="",
        x=0.0,
        y=0.0,
        radius=[1e-4, 0],
        moved=[0, BEND + 1e-4, 1, 0],
    ),
    "residual": Tight((1, 1), [1, 0], of="", x=0.0, y=3.0, radius=[1], moved=[1, 1]),
    "curvature": Tight(
        (1, 2), [0, 0, UNEVEN, 0], of="", x=0.0, y=0, radius=[1e-4], moved=[0, 0, UNEVEN + STEP, -STEP]
    ),
    "jacobians": Tight((1, 1, 1), [0, 0, 1, 0], of="", x=1.0, y=0.0, radius=[0, 1], moved=[0, 0, 2, 0]),
    "signals": Tight((1, 1), [1, 0], of="", x=0.0, y=3.0, radius=[1], moved=[1, 1]),
    "bends": Tight(
        (1, 1, 1),
        [0, 0, 1e-3, 0],
        activation="tanh",
        of="",
        x=0.0,
        y=1e3,
        radius=[1e-3, 0],
        moved=[0, 1e-3, 1e-3, 0],
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_move_that_is_a_fifth_too_small_is_found_out(name):
    case = FURTHEST[name]
    loss = flat_loss(case.model, case.inputs, case.targets, loss=case.loss)
    point, moved = (point_at(loss, theta) for theta in (flatten(case.model), case.theta))
    moves, changes = moves_in(point, case.radius), sizes_of_changes(point, moved)
    assert too_far(moves, changes) == []
    assert name in too_far(moves, changes, factor=0.8)


# --- the blocks ------------------------------------------------------------------------------------------

HESSIANS = {name: case for name, case in TIGHT.items() if case.of == "hessian"} | {
    "an input that moved": Tight(
        (1, 1, 1), [0, 0, 0, 0], of="hessian", x=90.0, y=0.0, radius=[3, 0], moved=[3, 0, 0, 0]
    ),
    "a bend downwards": Tight(
        (1, 1, 1), [0, -BEND, 0.01, 0], activation="tanh", x=1e3, y=1e4, of="negative_curvature"
    ),
    # one example through a steep unit, the other, with the opposite residual, through a saturated one
    "two examples": Tight(
        (1, 1, 1), [1e6, 0, 0, 0], activation="tanh", x=[0.0, 1e-4], y=[1e4, -1e4], of="hessian"
    ),
    "two layers, downwards": Tight((1, 1, 1), [0, 0, 0, 0], x=9.0, y=1e4, of="negative_curvature"),
}


@pytest.mark.parametrize("case", HESSIANS.values(), ids=list(HESSIANS))
def test_the_bound_is_nearly_reached(case):
    assert not case.is_crossed(local_bounds)
    assert case.truth() > 0.8 * case.bound(local_bounds)


@pytest.mark.parametrize(
    "part", ["_square", "_signals", "_averaged_signal", "_weighted", "_largest", "growth"]
)
def test_a_part_that_is_a_fifth_too_small_is_found_out(part, monkeypatch):
    right = getattr(local, part)
    monkeypatch.setattr(local, part, lambda *args, **named: 0.8 * right(*args, **named))
    assert [name for name, case in HESSIANS.items() if case.is_crossed(local_bounds)]


def test_activation_blocks_that_are_too_small_are_found_out(monkeypatch):
    """They are the first rung, and the last where the examples say less."""
    right = local._activation_blocks
    monkeypatch.setattr(local, "_activation_blocks", lambda *args: 0.8 * right(*args))
    assert [name for name, case in HESSIANS.items() if case.is_crossed(local_bounds)]


@pytest.mark.parametrize("count", [1, 7])
def test_one_layer_and_squared_error_is_exact(count):
    generator = torch.Generator().manual_seed(count)
    model, inputs = MLP((5, 3), generator=generator), torch.randn(count, 5, generator=generator).double()
    targets = torch.zeros(count, 3).double()
    truth = hessian(flat_loss(model, inputs, targets, loss="squared_error"), flatten(model))
    bound = local_bounds(model, inputs, targets, loss="squared_error").hessian
    assert bound == pytest.approx(float(torch.linalg.matrix_norm(truth, 2)), rel=1e-12)


# --- on real digits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [0, 30, 300])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize("sizes", [(64, 16, 10), (64, 32, 32, 10), (64, 32, 32, 32, 10)], ids=str)
def test_tighter_than_weight_norms_by_a_factor_of_ten(sizes, activation, epochs):
    """The claim of chapter 4, on the networks of chapter 4, before, during and after training."""
    task = digit_tasks()["digits"]
    inputs, labels = task.train_inputs[:150], task.train_labels[:150]
    model = MLP(sizes, activation=activation, generator=torch.Generator().manual_seed(0))
    loss = flat_loss(model, inputs, labels)
    theta = flatten(model)
    if epochs:
        theta = gradient_descent(loss, theta, learning_rate=0.3, epochs=epochs)[-1]
    low, high = curvature_range(loss, theta, generator=torch.Generator().manual_seed(0))
    tight = local_bounds(model, inputs, labels, theta=theta)
    assert 10 * tight.hessian < network_bounds(model, inputs, theta=theta).hessian
    assert max(-low, high) <= tight.hessian < 6 * max(-low, high)
    assert -low <= tight.negative_curvature < tight.hessian


def test_a_smaller_radius_gives_a_smaller_bound_down_to_that_of_the_point():
    task = digit_tasks()["digits"]
    model = MLP((64, 16, 10), generator=torch.Generator().manual_seed(0))
    data = model, task.train_inputs[:50], task.train_labels[:50]
    found = [local_bounds(*data, radius=radius).hessian for radius in (1.0, 0.1, 0.01, 1e-9, 0.0)]
    assert found == sorted(found, reverse=True)
    assert found[-2] == pytest.approx(found[-1], rel=1e-6)
    assert dataclasses.astuple(local_bounds(*data))[0] == (0.0, 0.0)
