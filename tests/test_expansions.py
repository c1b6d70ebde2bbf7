"""The task vector of one task in powers of the learning rate: full batches, and one epoch of mini-batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_losses import digit_losses, gradient, hessian, relative, tiny_losses
from taskvec_mini.descent import DivergedError, gradient_descent
from taskvec_mini.expansions import minibatch_epoch, minibatch_expansion, task_vector_expansion
from taskvec_mini.networks import flat_loss
from taskvec_mini.theory import local_orders, task_vectors

# --- one task, full batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "softplus", "gelu", "sigmoid"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_slopes_two_three_four(activation, loss):
    losses, start = digit_losses(1, activation=activation, loss=loss)
    for epochs, order in itertools.product((2, 3, 7), (1, 2, 3)):
        rates, rests = [2.0**-n for n in range(3, 10 if epochs > 3 else 8)], []
        for rate in rates:
            run = {"learning_rate": rate, "epochs": epochs}
            vector = task_vectors(losses, start, **run)[0]
            rests.append(float((vector - task_vector_expansion(losses[0], start, **run, order=order)).norm()))
        assert min(rests) > 1e-13, "rounding would show"
        assert local_orders(rates, rests)[-1] == pytest.approx(order + 1, abs=0.1), (epochs, order)


@pytest.mark.parametrize("epochs", [1, 2, 3, 6])
def test_terms_are_the_published_sum(epochs):
    """Against dense derivatives, term by term: the third one too."""
    (loss,), start = tiny_losses(1)
    slope, curvature = gradient(loss, start), hessian(loss, start)
    third = torch.func.jacrev(lambda theta: hessian(loss, theta))(start) @ slope @ slope
    terms = [
        -epochs * 0.2 * slope,
        math.comb(epochs, 2) * 0.2**2 * curvature @ slope,
        -(0.2**3)
        * (
            math.comb(epochs, 3) * curvature @ curvature @ slope
            + sum(j * j for j in range(epochs)) / 2 * third
        ),
    ]
    for order in (1, 2, 3):
        found = task_vector_expansion(loss, start, learning_rate=0.2, epochs=epochs, order=order)
        assert relative(found, sum(terms[:order])) < 1e-12


def test_a_cubic_is_expanded_exactly_by_hand():
    """L = θ³/6 from θ₀ = 1: g = ½, H = 1, third derivative 1; two epochs give −η + ½η² − ⅛η³ and no more."""
    found = task_vector_expansion(
        lambda theta: theta.pow(3).sum() / 6, torch.ones(1).double(), learning_rate=0.1, epochs=2, order=3
    )
    assert found.item() == pytest.approx(-0.1 + 0.5 * 0.1**2 - 0.125 * 0.1**3, abs=1e-16)
    walked = gradient_descent(
        lambda theta: theta.pow(3).sum() / 6, torch.ones(1).double(), learning_rate=0.1, epochs=2
    )
    assert found.item() == pytest.approx(walked[-1].item() - 1, abs=1e-15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_losses_whose_derivatives_end(order):
    linear = task_vector_expansion(
        lambda theta: theta.sum(), torch.zeros(2), learning_rate=0.5, epochs=4, order=order
    )
    assert linear.tolist() == [-2.0, -2.0]
    constant = task_vector_expansion(
        lambda theta: torch.ones(()), torch.zeros(2), learning_rate=0.5, epochs=4, order=order
    )
    assert constant.tolist() == [0.0, 0.0]
    bowl = task_vector_expansion(
        lambda theta: theta.square().sum() / 2, torch.ones(1), learning_rate=0.5, epochs=3, order=order
    )
    assert bowl.item() == [-1.5, -0.75, -0.875][order - 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"order": 0}, ValueError, "order must be at least 1, got 0"),
        ({"order": 4}, ValueError, "order must be 1, 2 or 3, got 4"),
        ({"order": "2"}, TypeError, "order must be a whole number"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be above 0"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"start": torch.ones(1, 1)}, TypeError, "start must be a 1-D floating-point tensor"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"start": torch.ones(1), "learning_rate": 0.1, "epochs": 2, "order": 2, **change}
    start = arguments.pop("start")
    with pytest.raises(error, match=message):
        task_vector_expansion(lambda theta: theta.square().sum(), start, **arguments)


# --- one epoch of mini-batches -----------------------------------------------------------------------------


def batch_losses(count, *, activation="tanh", size=12):
    (loss,), start = digit_losses(1, activation=activation, examples=count * size)
    rows = torch.arange(count * size).split(size)
    return [flat_loss(loss.model, loss.inputs[index], loss.targets[index]) for index in rows], start


def test_an_epoch_takes_the_batches_in_order():
    batches, start = batch_losses(4)
    theta = start
    for batch in batches:
        theta = theta - 0.3 * gradient(batch, theta)
    found = minibatch_epoch(batches, start, learning_rate=0.3)
    torch.testing.assert_close(found, theta - start, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", ["tanh", "softplus", "gelu"])
@pytest.mark.parametrize("count", [2, 5])
def test_the_rest_of_a_minibatch_epoch_is_of_third_order(activation, count):
    batches, start = batch_losses(count, activation=activation)
    rates = [2.0**-n for n in range(4, 10)]
    for order in (batches, batches[::-1]):
        rests = []
        for rate in rates:
            found = minibatch_expansion(order, start, learning_rate=rate)
            rests.append(float((minibatch_epoch(order, start, learning_rate=rate) - found).norm()))
        assert min(rests) > 1e-12, "rounding would show"
        assert local_orders(rates, rests)[-1] == pytest.approx(3, abs=0.1)


def test_the_average_over_all_orders_is_the_closed_form():
    batches, start = batch_losses(4)
    found = minibatch_expansion(batches, start, learning_rate=0.2, shuffled=True)
    orders = [
        minibatch_expansion(order, start, learning_rate=0.2) for order in itertools.permutations(batches)
    ]
    assert len(orders) == 24
    assert relative(found, torch.stack(orders).mean(0)) < 1e-12
    slopes = torch.stack([gradient(batch, start) for batch in batches])
    curvatures = torch.stack([hessian(batch, start) for batch in batches])
    own = torch.einsum("bij,bj->i", curvatures, slopes)
    second = 0.2**2 / 2 * (curvatures.sum(0) @ slopes.sum(0) - own)
    assert relative(found, -0.2 * slopes.sum(0) + second) < 1e-12


def test_the_average_of_true_epochs_follows_the_closed_form_to_third_order():
    batches, start = batch_losses(3)
    rates = [2.0**-n for n in range(5, 10)]
    rests = []
    for rate in rates:
        walks = [
            minibatch_epoch(order, start, learning_rate=rate) for order in itertools.permutations(batches)
        ]
        average = torch.stack(walks).mean(0)
        rests.append(
            float((average - minibatch_expansion(batches, start, learning_rate=rate, shuffled=True)).norm())
        )
    assert local_orders(rates, rests)[-1] == pytest.approx(3, abs=0.1)


def test_an_epoch_is_a_step_of_size_b_times_the_rate_to_first_order():
    batches, start = batch_losses(5)
    rates = [2.0**-n for n in range(6, 11)]
    errors = []
    for rate in rates:
        step = -5 * rate * sum(gradient(batch, start) for batch in batches) / 5
        errors.append(relative(minibatch_epoch(batches, start, learning_rate=rate), step))
    assert local_orders(rates, errors)[-1] == pytest.approx(1, abs=0.05)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_equal_batches_are_epochs_of_one_loss(count, seed):
    """B equal batches are B full-batch epochs: both expansions must say the same."""
    (loss,), start = tiny_losses(1, seed=seed)
    expected = task_vector_expansion(loss, start, learning_rate=0.3, epochs=count, order=2)
    for shuffled in (False, True):
        found = minibatch_expansion([loss] * count, start, learning_rate=0.3, shuffled=shuffled)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_unequal_batches_work_too():
    (loss,), start = digit_losses(1, examples=50)
    batches = [lambda theta, index=index: loss(theta, index) for index in torch.arange(50).split(16)]
    first = minibatch_expansion(batches, start, learning_rate=1e-4)
    assert relative(minibatch_epoch(batches, start, learning_rate=1e-4), first) < 1e-6


@pytest.mark.parametrize("function", [minibatch_epoch, minibatch_expansion])
def test_bad_batches_are_named(function):
    def bowl(theta):
        return theta.square().sum()

    with pytest.raises(ValueError, match="the list of batches is empty"):
        function([], torch.ones(1), learning_rate=0.1)
    with pytest.raises(ValueError, match="learning_rate must be above 0, got -1"):
        function([bowl], torch.ones(1), learning_rate=-1)
    with pytest.raises(ValueError, match="start holds 1 value"):
        function([bowl], torch.tensor([math.inf]), learning_rate=0.1)


def test_a_diverging_epoch_stops():
    with pytest.raises(DivergedError, match="lower the learning rate"):
        minibatch_epoch([lambda theta: theta.pow(4).sum()] * 4, torch.ones(1), learning_rate=1e20)
