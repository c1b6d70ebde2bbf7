"""Orders of convergence, measured: the gap is of second order, what its leading term leaves is of third.

The learning rate is halved from 2⁻³ on. Slopes are taken between successive halvings.
"""

from __future__ import annotations

import pytest
import torch

from small_losses import digit_losses
from taskvec_mini.descent import gradient_descent
from taskvec_mini.networks import outputs_at
from taskvec_mini.theory import (
    collapsed_gap,
    hessian_products,
    leading_gap,
    local_orders,
    merge_gap,
    multitask_descent,
)

EPOCHS = (2, 3, 10)
CASES = [("tanh", 2), ("softplus", 4), ("gelu", 2)]


def sharpness(losses, start, scaling_coef):
    """The largest curvature at the start, of a task or of the weighted sum: power iteration."""
    products_at, points = hessian_products(losses), start.expand(len(losses), -1)
    own = torch.randn(points.shape, generator=torch.Generator().manual_seed(0), dtype=start.dtype)
    joint = own[0]
    for _ in range(40):
        own = products_at(points, own / own.norm(dim=1, keepdim=True))[2]
        joint = scaling_coef * products_at(points, (joint / joint.norm()).expand_as(own))[2].sum(0)
    return float(max(own.norm(dim=1).max(), joint.norm()))


def measure(losses, start, *, epochs, scaling_coef):
    """Learning rates, and the norms of the gap and of what each version of the leading term leaves."""
    rates = [2.0**-n for n in range(3, 13 if epochs == 10 else 11)]
    norms = {"gap": [], "double sum": [], "collapsed": [], "halved": [], "plus sign": []}
    for rate in rates:
        run = {"learning_rate": rate, "epochs": epochs, "scaling_coef": scaling_coef}
        gap, leading = merge_gap(losses, start, **run), leading_gap(losses, start, **run)
        rests = [
            gap,
            gap - leading,
            gap - collapsed_gap(losses, start, **run),
            gap - leading / 2,
            gap + leading,
        ]
        for name, rest in zip(norms, rests, strict=True):
            norms[name].append(float(rest.norm()))
    return rates, norms


@pytest.fixture(scope="module", params=CASES, ids=str)
def measured(request):
    """All α and k of one activation and number of tasks: (α, k, sharpness, rates, norms)."""
    activation, tasks = request.param
    losses, start = digit_losses(tasks, activation=activation)
    rows = []
    for alpha in (1.0, 1 / tasks):
        beta = sharpness(losses, start, alpha)
        for epochs in EPOCHS:
            row = measure(losses, start, epochs=epochs, scaling_coef=alpha)
            rows.append((alpha, epochs, beta, *row))
    return rows


ORDERS = {"gap": 2, "double sum": 3, "collapsed": 3, "halved": 2, "plus sign": 2}


def test_orders_at_the_small_end(measured):
    """With −αη² before the double sum the rest is of third order; with half, or a plus, of second."""
    for alpha, epochs, _, rates, norms in measured:
        for name, order in ORDERS.items():
            assert min(norms[name]) > 1e-12, "rounding would show"
            slope = local_orders(rates, norms[name])[-1]
            assert slope == pytest.approx(order, abs=0.1), (name, alpha, epochs)


def test_the_expansion_holds_once_the_path_is_short(measured):
    """Where it starts: ηkβ ≤ 0.08, with β the sharpness. At 2⁻³ and ten epochs it only describes."""
    for alpha, epochs, beta, rates, norms in measured:
        slopes = local_orders(rates, norms["double sum"])
        for rate, slope in zip(rates[1:], slopes, strict=True):
            if rate * epochs * beta <= 0.08:
                assert slope == pytest.approx(3, abs=0.1), (alpha, epochs, rate)
            if rate * epochs * beta >= 1.6:
                assert abs(slope - 3) > 0.1, (alpha, epochs, rate)


def test_the_double_sum_explains_nearly_all_of_the_gap(measured):
    for alpha, epochs, beta, rates, norms in measured:
        for rate, gap, rest in zip(rates, norms["gap"], norms["double sum"], strict=True):
            if rate * epochs * beta <= 0.2:
                assert rest < 0.1 * gap, (alpha, epochs, rate)


# --- ReLU --------------------------------------------------------------------------------------------------


def switched_units(losses, start, *, learning_rate, epochs, scaling_coef):
    """How many (example, hidden unit) pairs change sides on a task's path or on the multitask path."""
    run = {"learning_rate": learning_rate, "epochs": epochs}
    middle = multitask_descent(losses, start, **run, scaling_coef=scaling_coef)
    count = 0
    for loss in losses:
        sides = [active(loss, theta) for theta in (*gradient_descent(loss, start, **run), *middle)]
        count += int((torch.stack(sides) != sides[0]).any(0).sum())
    return count


def active(loss, theta):
    first = loss.model.layers[0]
    cut = first.weight.numel()
    weight, bias = theta[:cut].view_as(first.weight), theta[cut : cut + first.bias.numel()]
    return loss.inputs @ weight.T + bias > 0


def test_the_switching_units_are_counted_on_the_true_network():
    losses, start = digit_losses(1, activation="relu")
    hidden = active(losses[0], start)
    blind = start.clone()
    blind[: 64 * 8 + 8] = 0  # with all hidden units off the outputs are the last layer's biases
    assert hidden.any()
    assert not active(losses[0], blind).any()
    assert (outputs_at(losses[0].model, blind, losses[0].inputs) == start[-10:]).all()


def test_relu_breaks_the_third_order_and_switching_units_are_why():
    """While units switch, the double sum explains little of the gap; once none does, all of it."""
    losses, start = digit_losses(2, activation="relu", examples=300)
    rates = [2.0**-n for n in range(3, 10)]
    runs = [{"learning_rate": rate, "epochs": 3, "scaling_coef": 0.5} for rate in rates]
    gaps = [merge_gap(losses, start, **run) for run in runs]
    rests = [gap - leading_gap(losses, start, **run) for gap, run in zip(gaps, runs, strict=True)]
    for gap, rest, run in zip(gaps, rests, runs, strict=True):
        assert switched_units(losses, start, **run) > 0
        assert rest.norm() > 0.5 * gap.norm()
    calm = {"learning_rate": 2.0**-20, "epochs": 3, "scaling_coef": 0.5}
    gap = merge_gap(losses, start, **calm)
    assert switched_units(losses, start, **calm) == 0
    assert (gap - leading_gap(losses, start, **calm)).norm() < 0.01 * gap.norm()


def test_smooth_units_do_not_break_it_on_the_same_data():
    losses, start = digit_losses(2, activation="softplus", examples=300)
    run = {"learning_rate": 2.0**-6, "epochs": 3, "scaling_coef": 0.5}
    gap = merge_gap(losses, start, **run)
    assert (gap - leading_gap(losses, start, **run)).norm() < 0.05 * gap.norm()
