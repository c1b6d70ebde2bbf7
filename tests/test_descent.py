"""Full-batch descent against closed forms and plain loops; what no run touches; runs that diverge."""

import copy
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from small_runs import assert_near, kinds, one_loss, problem, run, seeded, several_losses
from taskvec_mini.descent import DivergedError, gradient_descent, gradients
from taskvec_mini.networks import flat_loss, flatten

# --- full-batch gradient descent -------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_descent_is_the_loop_written_by_hand(epochs):
    loss, start = one_loss()
    theta, expected = start.clone(), [start.clone()]
    for _ in range(epochs):
        theta = theta - 0.3 * torch.func.grad(loss)(theta)
        expected.append(theta)
    assert_near(gradient_descent(loss, start, learning_rate=0.3, epochs=epochs), torch.stack(expected))


def test_descent_is_torchs_sgd_on_the_module():
    model, x, y = problem()
    path = gradient_descent(flat_loss(model, x, y), flatten(model), learning_rate=0.3, epochs=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for theta in path:
        assert_near(theta, flatten(model))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.9])
def test_descent_on_a_quadratic_has_a_closed_form(rate):
    """θ_k − μ = (I − ηA)^k (θ₀ − μ) for L(θ) = ½ (θ − μ)ᵀ A (θ − μ)."""
    root = torch.randn(4, 4, generator=seeded(), dtype=torch.float64)
    curvature = root @ root.T / torch.linalg.matrix_norm(root, 2) ** 2
    centre, start = torch.randn(2, 4, generator=seeded(1), dtype=torch.float64)
    loss = lambda theta: (theta - centre) @ curvature @ (theta - centre) / 2  # noqa: E731
    path = gradient_descent(loss, start, learning_rate=rate, epochs=12)
    shrink = torch.eye(4, dtype=torch.float64) - rate * curvature
    for k, theta in enumerate(path):
        assert_near(theta, centre + torch.linalg.matrix_power(shrink, k) @ (start - centre))


@kinds
@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_losses_are_each_trained_by_itself(kind, count):
    losses, start = several_losses(kind)
    losses = losses[:count]
    path = gradient_descent(losses, start, learning_rate=0.05, epochs=4)
    assert path.shape == (count, 5, len(start))
    for row, loss in zip(path, losses, strict=True):
        assert_near(row, gradient_descent(loss, start, learning_rate=0.05, epochs=4))


@kinds
def test_gradients_of_several_losses_are_those_of_each(kind):
    losses, start = several_losses(kind)
    thetas = start + torch.arange(3.0, dtype=torch.float64).unsqueeze(1) / 10
    values, slopes = gradients(losses)(thetas)
    for loss, theta, value, slope in zip(losses, thetas, values, slopes, strict=True):
        assert_near(value, loss(theta))
        assert_near(slope, torch.func.grad(loss)(theta))
    assert not values.requires_grad
    assert not slopes.requires_grad


def test_losses_may_come_from_a_generator():
    losses, start = several_losses("functions")
    path = gradient_descent((loss for loss in losses), start, learning_rate=0.05, epochs=1)
    assert path.shape == (3, 2, len(start))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_descent_keeps_the_dtype_of_its_start(dtype):
    loss, start = one_loss()
    exact = gradient_descent(loss, start, learning_rate=0.3, epochs=3)
    path = gradient_descent(loss, start.to(dtype), learning_rate=0.3, epochs=3)
    assert path.dtype == dtype
    torch.testing.assert_close(path.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


# --- what is left alone ----------------------------------------------------------------------------------

BOTH = {
    "descent": lambda loss, start: gradient_descent(loss, start, learning_rate=0.2, epochs=2),
    "finetune": lambda loss, start: run(loss, start, optimizer="adamw", clip_norm=0.1),
}
either = pytest.mark.parametrize("train", BOTH.values(), ids=BOTH)


@either
@pytest.mark.parametrize("tasks", [None, 2])
def test_the_start_is_never_written_to_and_stands_first_in_the_path(train, tasks):
    loss, start = one_loss()
    before = start.clone()
    path = train(loss if tasks is None else [loss] * tasks, start)
    assert torch.equal(start, before)
    assert bool((path.select(-2, 0) == before).all())
    path.fill_(9)
    assert torch.equal(start, before)


@either
def test_the_module_behind_the_loss_is_never_written_to(train):
    loss, start = one_loss()
    before = copy.deepcopy(loss.model.state_dict())
    train(loss, start)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loss.model.parameters())


@either
def test_paths_carry_no_graph_and_a_start_that_does_is_no_trouble(train):
    loss, start = one_loss()
    free = train(loss, start)
    assert not free.requires_grad
    tracked = train(loss, start.clone().requires_grad_())
    assert not tracked.requires_grad
    assert torch.equal(tracked, free)


@either
def test_the_global_generator_is_left_alone(train):
    before = torch.get_rng_state()
    train(*one_loss())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_decides_the_run():
    assert torch.equal(run(seed=1), run(seed=1))
    assert not torch.equal(run(seed=1), run(seed=2))
    generator = seeded(1)
    assert not torch.equal(run(generator=generator), run(generator=generator))  # it moves on


# --- runs that diverge -----------------------------------------------------------------------------------


def steep(theta, index=None):
    """θ⁴/4: from θ = 1 with a rate of 10, θ ← θ − 10 θ³ leaves the finite numbers within a few epochs."""
    return theta.pow(4).sum() / 4


def first_epoch_that_is_not_finite(rate):
    theta = torch.ones(1, dtype=torch.float64)
    for epoch in itertools.count(1):
        loss, theta = theta**4 / 4, theta - rate * theta**3
        if not (math.isfinite(loss) and math.isfinite(theta)):
            return epoch, float(loss)
    return None


DIVERGING = {
    "descent": lambda f, rate: gradient_descent(f, torch.ones(1).double(), learning_rate=rate, epochs=99),
    "finetune": lambda f, rate: run(
        f, torch.ones(1).double(), learning_rate=rate, epochs=99, examples=2, batch_size=2
    ),
}
diverging = pytest.mark.parametrize("train", DIVERGING.values(), ids=DIVERGING)


@diverging
@pytest.mark.parametrize("rate", [3.0, 10.0, 1e100])
def test_a_diverging_run_stops_with_the_epoch_the_loss_and_the_remedy(train, rate):
    epoch, loss = first_epoch_that_is_not_finite(rate)
    with pytest.raises(DivergedError) as caught:
        train(steep, rate)
    assert (caught.value.epoch, caught.value.loss) == (epoch, loss)
    assert str(caught.value) == (
        f"the run diverged in epoch {epoch} (loss {loss}) at learning_rate {rate:g}; "
        "lower the learning rate, or clip the gradients"
    )


@diverging
def test_one_diverging_task_among_several_is_enough(train):
    calm = lambda theta, index=None: theta.square().sum() / 200  # noqa: E731
    epoch, loss = first_epoch_that_is_not_finite(10.0)
    for losses in ([calm, steep], [steep, calm]):
        with pytest.raises(DivergedError) as caught:
            train(losses, 10.0)
        assert (caught.value.epoch, caught.value.loss) == (epoch, loss)


@diverging
def test_a_loss_that_is_not_a_number_stops_the_run_at_once(train):
    with pytest.raises(DivergedError, match=r"diverged in epoch 1 \(loss nan\)"):
        train(lambda theta, index=None: (theta * math.nan).sum(), 0.1)


@diverging
def test_an_infinite_loss_stops_the_run_even_where_its_slope_is_finite(train):
    with pytest.raises(DivergedError, match=r"diverged in epoch 1 \(loss inf\)"):
        train(lambda theta, index=None: theta.sum() + math.inf, 0.1)


@diverging
def test_parameters_that_overflow_under_a_finite_loss_stop_the_run(train):
    with pytest.raises(DivergedError, match=r"diverged in epoch 1 \(loss 1e\+200\)"):
        train(lambda theta, index=None: 1e200 * theta.sum(), 1e200)


def test_the_epoch_of_a_mini_batch_run_is_counted_in_passes_and_not_in_steps():
    with pytest.raises(DivergedError) as caught:
        run(steep, torch.ones(1).double(), learning_rate=3.0, epochs=99, examples=4, batch_size=1)
    steps, _ = first_epoch_that_is_not_finite(3.0)
    assert steps > 4
    assert caught.value.epoch == math.ceil(steps / 4)
