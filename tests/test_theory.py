"""The identity of one epoch, the gap, its leading forms, its potential: against slow and plain truths."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_losses import convolutional_losses, digit_losses, gradient, hessian, relative, tiny_losses
from taskvec_mini.descent import DivergedError, gradient_descent
from taskvec_mini.networks import ACTIVATIONS, MLP, flat_loss, flatten
from taskvec_mini.quadratics import Quadratic
from taskvec_mini.theory import (
    collapsed_gap,
    convergence_order,
    derivative,
    hessian_products,
    leading_gap,
    local_orders,
    merge_gap,
    multitask_descent,
    potential,
    potential_gradient,
    task_vectors,
)

RUN = {"learning_rate": 0.05, "epochs": 4, "scaling_coef": 0.3}
GAPS = [merge_gap, leading_gap, collapsed_gap]


# --- one epoch is one gradient ---------------------------------------------------------------------------


@st.composite
def random_losses(draw):
    """T losses of a random network: any activation, either kind of loss, equal or unequal data sizes."""
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    sizes = [3, *draw(st.lists(st.integers(1, 6), max_size=2)), 4]
    model = MLP(sizes, activation=draw(st.sampled_from(sorted(ACTIVATIONS))), generator=generator)
    kind = draw(st.sampled_from(["cross_entropy", "squared_error"]))
    counts = draw(
        st.one_of(
            st.integers(1, 8).map(lambda n: [5] * n), st.lists(st.integers(1, 9), min_size=1, max_size=8)
        )
    )
    losses = [
        flat_loss(
            model,
            torch.randn(count, 3, generator=generator, dtype=torch.float64),
            torch.randint(4, (count,), generator=generator),
            loss=kind,
        )
        for count in counts
    ]
    return losses, flatten(model) * draw(st.floats(0.1, 3))


@settings(deadline=None, max_examples=150)
@given(random_losses(), st.floats(1e-4, 1), st.floats(0, 2, exclude_min=True))
def test_one_epoch_is_one_gradient(case, learning_rate, scaling_coef):
    losses, start = case
    vectors = task_vectors(losses, start, learning_rate=learning_rate, epochs=1)
    steps = [learning_rate * gradient(loss, start) for loss in losses]
    scales = [start.norm() + step.norm() for step in steps]
    for vector, step, scale in zip(vectors, steps, scales, strict=True):
        assert (vector + step).norm() <= 2e-15 * scale
    run = {"learning_rate": learning_rate, "scaling_coef": scaling_coef, "epochs": 1}
    gap = merge_gap(losses, start, **run)
    assert gap.norm() <= 2e-15 * (start.norm() + scaling_coef * sum(scales))
    assert leading_gap(losses, start, **run).count_nonzero() == 0
    assert collapsed_gap(losses, start, **run).count_nonzero() == 0


def test_one_epoch_needs_no_smoothness():
    def kink(theta):
        return (theta - 0.3).abs().sum() + torch.floor(theta).sum()

    start = torch.tensor([0.5, -2.0], dtype=torch.float64)
    vectors = task_vectors([kink, kink], start, learning_rate=0.25, epochs=1)
    assert vectors.tolist() == [[-0.25, 0.25]] * 2


# --- the gap, exactly and to second order ----------------------------------------------------------------


def test_multitask_descent_follows_the_weighted_sum():
    losses, start = tiny_losses(3)
    path = multitask_descent(losses, start, learning_rate=0.1, epochs=3, scaling_coef=0.7)
    theta = start
    for row in path[1:]:
        theta = theta - 0.1 * 0.7 * sum(gradient(loss, theta) for loss in losses)
        torch.testing.assert_close(row, theta, rtol=1e-13, atol=1e-14)


def test_gap_is_the_sum_of_gradient_differences():
    """Δ = −αη Σ_t Σ_{j=1}^{k−1} [g_t(θ_t^j) − g_t(M^j)], exactly."""
    losses, start = tiny_losses(3)
    for epochs in (1, 2, 5):
        run = {"learning_rate": 0.3, "epochs": epochs}
        middle = multitask_descent(losses, start, **run, scaling_coef=0.4)
        total = torch.zeros_like(start)
        for loss in losses:
            path = gradient_descent(loss, start, **run)
            for j in range(1, epochs):
                total += gradient(loss, path[j]) - gradient(loss, middle[j])
        expected = -0.4 * 0.3 * total
        found = merge_gap(losses, start, **run, scaling_coef=0.4)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def dense_double_sum(losses, start, *, learning_rate, epochs, scaling_coef):
    """The leading term written out: dense Hessians, and no running sum."""
    path = multitask_descent(
        losses, start, learning_rate=learning_rate, epochs=epochs, scaling_coef=scaling_coef
    )

    def disagreement(loss, theta):
        return scaling_coef * sum(gradient(each, theta) for each in losses) - gradient(loss, theta)

    total = torch.zeros_like(start)
    for loss in losses:
        for j in range(1, epochs):
            for m in range(j):
                total += hessian(loss, path[j]) @ disagreement(loss, path[m])
    return -scaling_coef * learning_rate**2 * total


@pytest.mark.parametrize("epochs", [2, 3, 6])
@pytest.mark.parametrize("tasks", [1, 3])
def test_leading_gap_is_the_double_sum(tasks, epochs):
    losses, start = tiny_losses(tasks)
    run = {"learning_rate": 0.3, "epochs": epochs, "scaling_coef": 0.4}
    expected = dense_double_sum(losses, start, **run)
    assert relative(leading_gap(losses, start, **run), expected) < 1e-12


def test_leading_gap_is_the_same_where_losses_do_not_stack():
    losses, start = tiny_losses(3)
    plain = [lambda theta, loss=loss: loss(theta) for loss in losses]
    for function in GAPS:
        assert relative(function(plain, start, **RUN), function(losses, start, **RUN)) < 1e-11


@pytest.mark.parametrize("epochs", [2, 3, 7])
def test_collapsed_gap_is_the_closed_form(epochs):
    losses, start = tiny_losses(3)
    slopes = [gradient(loss, start) for loss in losses]
    products = [
        hessian(loss, start) @ (0.4 * sum(slopes) - slope) for loss, slope in zip(losses, slopes, strict=True)
    ]
    expected = -0.4 * 0.3**2 * math.comb(epochs, 2) * sum(products)
    found = collapsed_gap(losses, start, learning_rate=0.3, epochs=epochs, scaling_coef=0.4)
    assert relative(found, expected) < 1e-12


def test_leading_gap_evaluates_each_loss_once_an_epoch():
    """The cost promise, counted instead of timed: k evaluations, and a Hessian-vector product after k − 1."""
    calls = []

    def counted(theta):
        calls.append(theta)
        return theta.pow(3).sum()

    leading_gap([counted, counted], torch.ones(3), learning_rate=0.01, epochs=6, scaling_coef=0.5)
    assert len(calls) == 2 * 6


def test_a_large_model_needs_no_dense_hessian():
    """A Hessian of 200,000 parameters would fill 320 GB."""
    start = torch.linspace(-1, 1, 200_000, dtype=torch.float64)
    losses = [lambda theta: theta.pow(4).sum() / 4, lambda theta: (theta - 1).pow(4).sum() / 4]
    rates = [2.0**-8, 2.0**-9]
    rests = []
    for rate in rates:
        run = {"learning_rate": rate, "epochs": 3, "scaling_coef": 0.5}
        rests.append(float((merge_gap(losses, start, **run) - leading_gap(losses, start, **run)).norm()))
    assert convergence_order(rates, rests) == pytest.approx(3, abs=0.1)


def test_inputs_are_left_as_they_are():
    losses, start = tiny_losses(2)
    start.requires_grad_()
    before = start.detach().clone()
    for function in GAPS:
        assert not function(losses, start, **RUN).requires_grad
    assert not potential_gradient(losses, start, scaling_coef=0.5).requires_grad
    assert torch.equal(start.detach(), before)
    assert start.grad is None


# --- Hessian-vector products ------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_hessian_products_agree_with_dense_hessians(activation):
    losses, start = tiny_losses(3, activation=activation)
    thetas = torch.stack([start, 0.5 * start, -start])
    directions = torch.randn(thetas.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, slopes, products = hessian_products(losses)(thetas, directions)
    for row, (loss, theta, direction) in enumerate(zip(losses, thetas, directions, strict=True)):
        torch.testing.assert_close(values[row], loss(theta))
        torch.testing.assert_close(slopes[row], gradient(loss, theta))
        torch.testing.assert_close(products[row], hessian(loss, theta) @ direction)


def test_derivatives_that_end_are_zero():
    linear = hessian_products([lambda theta: theta.sum(), lambda theta: (2 * theta).sum()])
    _, slopes, products = linear(torch.ones(2, 3), torch.ones(2, 3))
    assert slopes.tolist() == [[1.0] * 3, [2.0] * 3]
    assert products.count_nonzero() == 0
    assert derivative(torch.ones(()), torch.ones(3, requires_grad=True)).tolist() == [0.0] * 3
    run = {"learning_rate": 0.1, "epochs": 4, "scaling_coef": 0.5}
    assert leading_gap([lambda theta: theta.sum()], torch.ones(3), **run).count_nonzero() == 0
    weight = torch.tensor(2.0, requires_grad=True)  # the gradient then has a graph, but not one of theta
    _, slopes, products = hessian_products([lambda theta: weight * theta.sum()])(
        torch.ones(1, 3), torch.ones(1, 3)
    )
    assert slopes.tolist() == [[2.0] * 3]
    assert products.count_nonzero() == 0


# --- the potential ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling_coef", [1.0, 0.25, 0.3, -0.5])
def test_potential_and_its_gradient(scaling_coef):
    losses, start = tiny_losses(4)

    def written_out(theta):
        slopes = torch.stack([gradient(loss, theta) for loss in losses])
        return slopes.square().sum() / 2 - scaling_coef / 2 * slopes.sum(0).square().sum()

    torch.testing.assert_close(potential(losses, start, scaling_coef=scaling_coef), written_out(start))
    found = potential_gradient(losses, start, scaling_coef=scaling_coef)
    assert relative(found, gradient(written_out, start)) < 1e-12


def test_potential_of_the_mean_is_the_disagreement_of_the_gradients():
    losses, start = digit_losses(4)
    slopes = torch.stack([gradient(loss, start) for loss in losses])
    expected = (slopes - slopes.mean(0)).square().sum() / 2
    torch.testing.assert_close(potential(losses, start, scaling_coef=1 / 4), expected)


def test_merging_by_the_mean_drifts_up_the_potential():
    """What the sign means: TA ends where the tasks disagree more than at the end of multitask descent."""
    losses, start = digit_losses(4)
    run = {"learning_rate": 2.0**-6, "epochs": 5, "scaling_coef": 1 / 4}
    multitask = multitask_descent(losses, start, **run)[-1]
    merged = multitask + merge_gap(losses, start, **run)
    at = {"scaling_coef": 1 / 4}
    rise = potential(losses, merged, **at) - potential(losses, multitask, **at)
    gap = merged - multitask
    assert rise > 0
    assert float(rise) == pytest.approx(float(gap @ potential_gradient(losses, multitask, **at)), rel=0.05)


@pytest.mark.parametrize("epochs", [2, 3, 10])
def test_identical_tasks_have_no_gap_to_any_order(epochs):
    losses, start = digit_losses(1)
    run = {"learning_rate": 0.5, "epochs": epochs, "scaling_coef": 1 / 4}
    length = task_vectors(losses, start, learning_rate=0.5, epochs=epochs).norm()
    for function in GAPS:
        assert function(losses * 4, start, **run).norm() < 1e-14 * (start.norm() + length) * epochs
    assert merge_gap(losses * 4, start, **{**run, "scaling_coef": 0.3}).norm() > 1e-3 * length


def test_decoupled_tasks_have_no_gap_when_they_are_summed():
    """Each task has parameters of its own: H_t g_s = 0, and α = 1 is the clean merge, to every order here."""
    tasks, theta = tiny_losses(2)
    own = len(theta)
    losses = [lambda both, t=t: tasks[t](both[t * own : (t + 1) * own]) for t in range(2)]
    start = torch.cat([theta, -theta])
    run = {"learning_rate": 0.5, "epochs": 5}
    for function in GAPS:
        assert function(losses, start, **run, scaling_coef=1.0).norm() < 1e-14 * start.norm()
    assert merge_gap(losses, start, **run, scaling_coef=0.5).norm() > 1e-3


def test_tasks_decoupled_only_at_the_start_have_no_gap_of_second_order():
    """H_t g_s = 0 at θ₀ alone is enough for the collapsed form, and what is left is of third order."""
    losses = [lambda x: x[0] + x[0].square() + x[1].pow(3), lambda x: x[1] + x[1].square() + x[0].pow(3)]
    start = torch.zeros(2, dtype=torch.float64)
    rates = [2.0**-n for n in (8, 9, 10)]
    assert collapsed_gap(losses, start, learning_rate=0.1, epochs=4, scaling_coef=1.0).count_nonzero() == 0
    gaps = [merge_gap(losses, start, learning_rate=rate, epochs=4, scaling_coef=1.0) for rate in rates]
    assert local_orders(rates, [float(gap.norm()) for gap in gaps]) == pytest.approx([3, 3], abs=0.1)


# --- models of your own ------------------------------------------------------------------------------------


def test_a_convolutional_network_fits():
    losses, start = convolutional_losses()
    rates, rests = [2.0**-8, 2.0**-9, 2.0**-10], []
    for rate in rates:
        run = {"learning_rate": rate, "epochs": 3, "scaling_coef": 0.5}
        rests.append(float((merge_gap(losses, start, **run) - leading_gap(losses, start, **run)).norm()))
    assert local_orders(rates, rests) == pytest.approx([3, 3], abs=0.1)


def test_float32_works_too():
    losses, start = digit_losses(2)
    expected = leading_gap(losses, start, **RUN)
    found = leading_gap(losses, start.float(), **RUN)
    assert found.dtype == torch.float32
    assert relative(found.double(), expected) < 1e-4


# --- orders ------------------------------------------------------------------------------------------------


@given(st.floats(0.5, 5), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_convergence_order_finds_the_power(power, constant, count):
    steps = [2.0**-n for n in range(count)]
    errors = [constant * step**power for step in steps]
    assert convergence_order(steps, errors) == pytest.approx(power, abs=1e-9)
    assert local_orders(steps, errors) == pytest.approx([power] * (count - 1), abs=1e-9)


def test_convergence_order_is_the_least_squares_line():
    steps, errors = [1.0, 0.5, 0.2, 0.1], [1.0, 0.1, 0.3, 0.002]
    design = torch.tensor([[math.log(step), 1.0] for step in steps], dtype=torch.float64)
    heights = torch.tensor(errors, dtype=torch.float64).log()
    expected = torch.linalg.lstsq(design, heights).solution[0]
    assert convergence_order(steps, errors) == pytest.approx(float(expected), rel=1e-12)


# --- bad input ---------------------------------------------------------------------------------------------


def bowl(theta):
    return theta.square().sum() / 2


BAD = [
    ({"learning_rate": 0.0}, ValueError, "learning_rate must be above 0, got 0.0"),
    ({"learning_rate": -1.0}, ValueError, "learning_rate must be above 0, got -1.0"),
    ({"learning_rate": math.nan}, ValueError, "learning_rate must be finite, got nan"),
    ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    ({"epochs": 2.5}, TypeError, "epochs must be a whole number, got 2.5"),
    ({"scaling_coef": math.inf}, ValueError, "scaling_coef must be finite, got inf"),
    ({"scaling_coef": None}, TypeError, "scaling_coef must be a number, got None"),
    ({"losses": []}, ValueError, "the list of losses is empty; give at least one"),
    ({"start": [1.0]}, TypeError, "start must be a 1-D floating-point tensor"),
    ({"start": torch.ones(2, 2)}, TypeError, "shape (2, 2)"),
    ({"start": torch.ones(2).long()}, TypeError, "torch.int64"),
    ({"start": torch.tensor([1.0, math.nan])}, ValueError, "start holds 1 value(s) that are NaN"),
]


@pytest.mark.parametrize("function", GAPS)
@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_arguments_are_named(function, change, error, message):
    settings = {"losses": [bowl], "start": torch.ones(2), **RUN, **change}
    losses, start = settings.pop("losses"), settings.pop("start")
    with pytest.raises(error) as caught:
        function(losses, start, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("function", [potential, potential_gradient])
def test_bad_arguments_of_the_potential_are_named(function):
    with pytest.raises(ValueError, match="the list of losses is empty"):
        function([], torch.ones(2), scaling_coef=0.5)
    with pytest.raises(ValueError, match="scaling_coef must be finite"):
        function([bowl], torch.ones(2), scaling_coef=math.nan)
    with pytest.raises(TypeError, match="theta must be a 1-D floating-point tensor"):
        function([bowl], torch.ones(2, 2), scaling_coef=0.5)


@pytest.mark.parametrize("function", [merge_gap, leading_gap])
def test_a_diverging_run_stops_with_the_epoch(function):
    steep = Quadratic(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    start = torch.ones(2, dtype=torch.float64)
    with pytest.raises(DivergedError, match="lower the learning rate") as caught:
        function([steep, steep], start, learning_rate=1e200, epochs=9, scaling_coef=1.0)
    assert caught.value.epoch <= 3


def test_bad_step_sizes_are_named():
    with pytest.raises(ValueError, match="got 2 step sizes and 1 errors"):
        convergence_order([0.1, 0.2], [1.0])
    with pytest.raises(ValueError, match="at least two different step sizes"):
        convergence_order([0.1, 0.1], [1.0, 2.0])
    with pytest.raises(ValueError, match="an error must be above 0"):
        convergence_order([0.1, 0.2], [0.0, 1.0])
    with pytest.raises(ValueError, match="a step size must be above 0"):
        convergence_order([-0.1, 0.2], [1.0, 1.0])
    with pytest.raises(ValueError, match="3 step sizes and 2 errors"):
        local_orders([0.1, 0.2, 0.3], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least two"):
        local_orders([0.1], [1.0])
