"""Mini-batch finetuning is ordinary training: a module, a DataLoader, an optimiser of torch."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from small_runs import EXAMPLES, assert_near, one_loss, problem, run, seeded, several_losses
from taskvec_mini.descent import gradient_descent
from taskvec_mini.networks import flatten


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
