"""Descent, held against closed forms, hand-written loops and ordinary torch training of a module."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from taskvec_mini.descent import DivergedError, finetune, gradient_descent, gradients
from taskvec_mini.networks import MLP, flat_loss, flatten

EXAMPLES = 11


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_near(found, expected):
    """Equal but for the order of sums; the runs are short, so that rounding does not grow."""
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def problem(seed=0, count=EXAMPLES):
    """A small network, its inputs and labels."""
    generator = seeded(seed)
    model = MLP((3, 5, 4), generator=generator)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(4, (count,), generator=generator)


def one_loss(seed=0):
    model, x, y = problem(seed)
    return flat_loss(model, x, y), flatten(model)


def several_losses(kind):
    """Three losses which stack, or which do not: of unequal sizes, or plain functions."""
    model, x, y = problem()
    if kind == "stacked":
        return [flat_loss(model, x + shift, y) for shift in (0, 1, 2)], flatten(model)
    if kind == "unequal":
        return [flat_loss(model, x[:n], y[:n]) for n in (11, 7, 4)], flatten(model)
    return [lambda theta, s=s: (theta - s).pow(4).sum() for s in (0, 1, 2)], flatten(model)


kinds = pytest.mark.parametrize("kind", ["stacked", "unequal", "functions"])


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


# --- mini-batches: the same as ordinary training ---------------------------------------------------------


def ordinary_training(settings, *, epochs=3, batch_size=4, seed=5):
    """What most people write: a module, a DataLoader, an optimiser of torch, a scheduler. All states."""
    model, x, y = problem()
    settings = dict(settings)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    clip, warmup = settings.pop("clip_norm", None), settings.pop("warmup_steps", 0)
    optimizer = kind[settings.pop("optimizer", "sgd")](model.parameters(), lr=0.2, **settings)
    ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / max(warmup, 1)))
    generator, states = seeded(seed), [flatten(model)]
    for _ in range(epochs):
        order = torch.randperm(EXAMPLES, generator=generator).tolist()
        batches = [order[i : i + batch_size] for i in range(0, EXAMPLES, batch_size)]
        for inputs, labels in DataLoader(TensorDataset(x, y), batch_sampler=batches):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            ramp.step()
            states.append(flatten(model))
    return torch.stack(states)


RECIPES = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight decay": {"weight_decay": 0.1},
    "adam": {"optimizer": "adam"},
    "adam, other options": {"optimizer": "adam", "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "clip": {"clip_norm": 0.2},
    "warm-up": {"warmup_steps": 5},
    "everything": {
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "clip_norm": 0.2,
        "warmup_steps": 5,
        "amsgrad": True,
    },
}


def run(loss=None, start=None, *, seed=5, **changes):
    """A finetuning run of the small problem with these settings changed."""
    own, own_start = one_loss()
    settings = {"learning_rate": 0.2, "epochs": 3, "batch_size": 4, "generator": seeded(seed), **changes}
    return finetune(own if loss is None else loss, own_start if start is None else start, **settings)


@pytest.mark.parametrize("batch_size", [1, 4, 10, EXAMPLES])
@pytest.mark.parametrize("recipe", RECIPES)
def test_finetuning_is_ordinary_training_of_the_module(recipe, batch_size):
    """Eleven examples: the last batch is partial for the sizes 4 and 10."""
    settings = RECIPES[recipe]
    path = run(record="steps", batch_size=batch_size, **settings)
    assert_near(path, ordinary_training(settings, batch_size=batch_size))


def test_the_recipes_differ():
    ends = [run(**settings)[-1] for settings in RECIPES.values()]
    assert all(float((a - b).norm()) > 1e-3 for a, b in itertools.combinations(ends, 2))


@pytest.mark.parametrize(("batch_size", "steps"), [(4, 3), (10, 2), (11, 1), (1, 11)])
def test_epochs_are_every_few_steps_of_the_same_path(batch_size, steps):
    every_step = run(record="steps", batch_size=batch_size)
    every_epoch = run(record="epochs", batch_size=batch_size)
    assert every_step.shape[0] == 3 * steps + 1
    assert torch.equal(every_epoch, every_step[::steps])
    assert torch.equal(run(batch_size=batch_size), every_epoch)


def test_one_full_batch_an_epoch_is_gradient_descent():
    loss, start = one_loss()
    path = run(batch_size=EXAMPLES)
    assert_near(path, gradient_descent(loss, start, learning_rate=0.2, epochs=3))
    assert_near(path, run(batch_size=EXAMPLES, seed=6))  # the order within the one batch does not matter


def test_every_epoch_visits_every_example_once_in_a_fresh_order():
    seen = []

    def loss(theta, index):
        seen.append(index.tolist())
        return theta.square().sum()

    run(loss, torch.ones(1), examples=5, batch_size=2)
    epochs = [list(itertools.chain(*seen[i : i + 3])) for i in (0, 3, 6)]
    assert [len(batch) for batch in seen] == [2, 2, 1] * 3
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_several_tasks_are_finetuned_one_after_the_other_with_one_generator():
    losses, start = several_losses("unequal")
    together = run(losses, start)
    generator = seeded(5)
    alone = [run(loss, start, generator=generator) for loss in losses]
    assert together.shape == (3, 4, len(start))
    assert torch.equal(together, torch.stack(alone))


def test_momentum_of_one_task_does_not_reach_the_next():
    loss, start = one_loss()
    first, second = run([loss, loss], start, momentum=0.9, batch_size=EXAMPLES)
    assert_near(first, second)


def test_the_first_step_of_momentum_is_that_of_sgd():
    plain, heavy = run(record="steps"), run(record="steps", momentum=0.9)
    assert torch.equal(plain[:2], heavy[:2])
    assert not torch.equal(plain[2], heavy[2])


def test_the_first_step_of_adam_has_a_closed_form():
    """−η g / (|g| + ε), nearly the sign, as the first averages of Adam are corrected to g and g²."""
    loss, start = one_loss()
    first = run(record="steps", optimizer="adam", batch_size=EXAMPLES)[1]
    slope = torch.func.grad(loss)(start)
    assert_near(first, start - 0.2 * slope / (slope.abs() + 1e-8))


@pytest.mark.parametrize("norm", [1e-3, 0.1, 1e3])
def test_a_clipped_step_keeps_its_direction(norm):
    loss, start = one_loss()
    slope = torch.func.grad(loss)(start)
    step = run(clip_norm=norm, batch_size=EXAMPLES, epochs=1)[1] - start
    expected = -0.2 * slope * min(1.0, norm / float(slope.norm()))
    torch.testing.assert_close(step, expected, rtol=2e-3, atol=1e-15)  # torch adds 1e-6 to the norm


def test_the_warm_up_raises_the_rate_step_by_step():
    downhill = lambda theta, index: theta.sum()  # noqa: E731
    path = run(downhill, torch.zeros(1).double(), examples=2, batch_size=1, warmup_steps=4, record="steps")
    shares = torch.tensor([0.25, 0.5, 0.75, 1, 1, 1], dtype=torch.float64)
    assert_near(path.diff(dim=0).squeeze(1), -0.2 * shares)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["sgd", "everything"])
def test_finetuning_keeps_the_dtype_of_its_start(dtype, recipe):
    _, start = one_loss()
    exact = run(**RECIPES[recipe])
    path = run(None, start.to(dtype), **RECIPES[recipe])
    assert path.dtype == dtype
    torch.testing.assert_close(path.double(), exact, rtol=0, atol=40 * torch.finfo(dtype).eps)


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
def test_parameters_that_overflow_under_a_finite_loss_stop_the_run(train):
    with pytest.raises(DivergedError, match=r"diverged in epoch 1 \(loss 1e\+200\)"):
        train(lambda theta, index=None: 1e200 * theta.sum(), 1e200)


def test_the_epoch_of_a_mini_batch_run_is_counted_in_passes_and_not_in_steps():
    with pytest.raises(DivergedError) as caught:
        run(steep, torch.ones(1).double(), learning_rate=3.0, epochs=99, examples=4, batch_size=1)
    steps, _ = first_epoch_that_is_not_finite(3.0)
    assert steps > 4
    assert caught.value.epoch == math.ceil(steps / 4)


# --- bad input -------------------------------------------------------------------------------------------


def descend(**changes):
    loss, start = one_loss()
    settings = {"loss": loss, "start": start, "learning_rate": 0.2, "epochs": 2, **changes}
    return gradient_descent(settings.pop("loss"), settings.pop("start"), **settings)


TRAINERS = {"descent": descend, "finetune": run}
both = pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)


@both
@pytest.mark.parametrize("rate", [0, 0.0, -0.1])
def test_a_learning_rate_must_be_above_zero(train, rate):
    with pytest.raises(ValueError, match=r"learning_rate must be above 0, got .*; choose a small positive"):
        train(learning_rate=rate)


@both
@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf])
def test_a_learning_rate_must_be_finite(train, rate):
    with pytest.raises(ValueError, match="learning_rate must be finite, got"):
        train(learning_rate=rate)


@both
@pytest.mark.parametrize("rate", ["0.1", None, [0.1], torch.ones(2)])
def test_a_learning_rate_must_be_a_number(train, rate):
    with pytest.raises(TypeError, match="learning_rate must be a number, got"):
        train(learning_rate=rate)


@both
@pytest.mark.parametrize("epochs", [0, -1])
def test_there_is_at_least_one_epoch(train, epochs):
    with pytest.raises(ValueError, match=f"epochs must be at least 1, got {epochs}"):
        train(epochs=epochs)


@both
@pytest.mark.parametrize("epochs", [1.5, 2.0, "2", None, True])
def test_epochs_are_whole(train, epochs):
    with pytest.raises(TypeError, match="epochs must be a whole number, got"):
        train(epochs=epochs)


@both
def test_an_empty_list_of_losses_is_refused(train):
    with pytest.raises(ValueError, match="the list of losses is empty; give at least one"):
        train(loss=[])


@both
@pytest.mark.parametrize("start", [torch.ones(2, 2), torch.ones(2).long(), [1.0, 2.0], torch.tensor(1.0)])
def test_a_start_must_be_one_flat_vector(train, start):
    with pytest.raises(TypeError, match=r"start must be a 1-D floating-point tensor.*networks.flatten"):
        train(start=start)


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_must_be_finite(train, bad):
    with pytest.raises(ValueError, match=r"start holds 1 value\(s\) that are NaN or infinite.*at position"):
        train(start=torch.tensor([0.0, bad]))


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_holds_at_least_one_example(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
        run(batch_size=size)


def test_a_batch_holds_at_most_all_examples():
    message = "batch_size is 12 but there are 11 examples; choose a size of 1 to 11"
    with pytest.raises(ValueError, match=message):
        run(batch_size=12)
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, got 2\.5"):
        run(batch_size=2.5)


def test_a_batch_must_fit_every_task():
    losses, start = several_losses("unequal")
    with pytest.raises(ValueError, match="batch_size is 6 but there are 4 examples"):
        run(losses, start, batch_size=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adm"}, "unknown optimizer 'adm': did you mean .*'adam'"),
        ({"optimizer": "Adam"}, "unknown optimizer 'Adam': did you mean .*'adam'"),
        ({"optimizer": "SGD"}, "unknown optimizer 'SGD': did you mean 'sgd'"),
        ({"optimizer": "lbfgs"}, "unknown optimizer 'lbfgs': choose one of sgd, adam, adamw"),
        ({"momentun": 0.9}, "unknown option of the optimizer 'sgd' 'momentun': did you mean 'momentum'"),
        ({"betas": (0.9, 0.99)}, "unknown option of the optimizer 'sgd' 'betas'"),
        ({"lr": 0.1}, "unknown option of the optimizer 'sgd' 'lr'"),
        ({"params": []}, "unknown option of the optimizer 'sgd' 'params'"),
        ({"record": "step"}, "unknown record 'step': did you mean 'steps'"),
    ],
)
def test_unknown_names_suggest_the_near_ones(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"clip_norm": 0}, ValueError, "clip_norm must be above 0"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm must be above 0"),
        ({"clip_norm": math.nan}, ValueError, "clip_norm must be finite"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0, got -1"),
        ({"warmup_steps": 0.5}, TypeError, "warmup_steps must be a whole number"),
        ({"examples": 0}, ValueError, "examples must be at least 1, got 0"),
    ],
)
def test_other_settings_out_of_range_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        run(**changes)


def test_a_loss_without_a_length_needs_the_number_of_examples():
    with pytest.raises(TypeError, match=r"does not say how many examples it has; pass examples=\.\.\."):
        run(lambda theta, index: theta.sum(), torch.ones(1))
