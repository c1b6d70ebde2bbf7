"""Hundreds of random networks, none of which may cross a bound: gradient, Hessian, drift and gap."""

import itertools
import math
from functools import partial

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from random_networks import SLACK, cases, extremes, gradient, hessian
from taskvec_mini.bounds import ladder, local_bounds, network_bounds
from taskvec_mini.bounds.local import largest_eigenvalue
from taskvec_mini.descent import DivergedError

many = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,  # the same networks each time; raise the numbers to see others
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@many
@given(cases())
def test_gradient_and_hessian_at_a_point(case):
    theta, inputs = case.theta, case.loss.inputs
    norms = network_bounds(case.model, inputs, **case.options)
    local = local_bounds(case.model, inputs, **case.options)
    slope = float(gradient(case.loss, theta).norm())
    assert slope <= norms.gradient * SLACK
    assert math.isclose(local.gradient, slope, rel_tol=1e-9, abs_tol=1e-12)
    low, high = extremes(case, theta)
    assert -low <= local.negative_curvature * SLACK + 1e-12
    rungs = [norms.hessian, *map(largest_eigenvalue, (local.activation_blocks, local.jacobian_blocks))]
    for looser, tighter in itertools.pairwise([*rungs, local.hessian, max(-low, high)]):
        assert tighter <= looser * SLACK + 1e-12


@settings(many, max_examples=40)
@given(cases(widest=6, deepest=4), st.floats(math.log(1e-3), math.log(2.0)), st.booleans())
def test_gradient_and_hessian_in_a_region(case, log_radius, equal):
    """At the centre of the ball's surface in random directions, uphill, and along the strongest curvature."""
    radius, theta, inputs = math.exp(log_radius), case.theta, case.loss.inputs
    radii = radius if equal else [radius * (layer % 2) for layer in range(len(case.model.layers))]
    norms = network_bounds(case.model, inputs, **case.options, radius=radii)
    local = local_bounds(case.model, inputs, **case.options, radius=radii)
    uphill = gradient(case.loss, theta)
    strongest = torch.linalg.eigh(hessian(case.loss, theta))[1][:, -1]
    for direction in (case.direction(), case.direction(), uphill, -uphill, strongest, -strongest):
        moved = theta + _inside(case.model, direction, radii)
        low, high = extremes(case, moved)
        slope = float(gradient(case.loss, moved).norm())
        for bounds in (norms, local):
            assert slope <= bounds.gradient * SLACK + 1e-12
            assert max(-low, high) <= bounds.hessian * SLACK + 1e-12
        assert -low <= local.negative_curvature * SLACK + 1e-12


def _inside(model, direction, radii):
    """The direction, made as long as the region allows: layer by layer where each layer has a radius."""
    if isinstance(radii, float):
        return radii * direction / direction.norm().clamp_min(1e-300)
    parts, sizes = [], [layer.weight.numel() + layer.bias.numel() for layer in model.layers]
    for part, radius in zip(direction.split(sizes), radii, strict=True):
        parts.append(radius * part / part.norm().clamp_min(1e-300))
    return torch.cat(parts)


def check_paths(case, log_rate, epochs, scaling_coef, rungs):
    """What the rungs say of drift and gap holds, for first steps from tiny to two units long."""
    theta, losses = case.theta, case.losses
    steepest = max(float(gradient(loss, theta).norm()) for loss in losses)
    run = ladder.Run(losses, theta, math.exp(log_rate) / (1e-3 + steepest), epochs, scaling_coef)
    try:
        gap, drift = run.true_gap, run.true_drift
    except DivergedError:
        return
    for make in rungs:
        try:
            rung = make(run)
        except ValueError as error:
            if "must be finite" in str(error):  # a curvature that overflowed promises nothing
                continue
            raise
        assert gap <= rung.gap * SLACK + 1e-13, rung
        assert drift <= rung.drift * SLACK + 1e-13, rung


runs = (st.floats(math.log(1e-4), math.log(2.0)), st.integers(1, 4), st.floats(-0.5, 2.0))


@many
@given(cases(tasks=2), *runs)
def test_drift_and_gap_from_the_weights(case, log_rate, epochs, scaling_coef):
    check_paths(case, log_rate, epochs, scaling_coef, (ladder.weights_in_a_ball, ladder.weights_along))


@settings(many, max_examples=40)
@given(cases(tasks=2, widest=6, deepest=3), *runs)
def test_drift_and_gap_from_the_examples(case, log_rate, epochs, scaling_coef):
    along = partial(ladder.examples_along, pieces=2)
    check_paths(case, log_rate, epochs, scaling_coef, (ladder.examples_in_a_ball, along))
