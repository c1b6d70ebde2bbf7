"""Gradients accumulated over micro-batches, and the numbers of the steps, which may wait to be looked at."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from small_encoder import tiny_backbone, tiny_head, tiny_run, tiny_task
from taskvec_mini.benchmarks.training import (
    DivergedError,
    Settings,
    Speed,
    Trainer,
    finetune_jointly,
    full_batch_gradient,
)


def apart(found, expected):
    """The relative distance of two vectors."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# --- micro-batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 10, 36])
def test_a_step_in_micro_batches_is_the_step_of_the_whole_batch(size):
    """37 images: the last micro-batch is partial, and must not weigh as much as a whole one."""
    one = {"optimizer": "sgd", "learning_rate": 0.5, "epochs": 1, "batch_size": 37}
    whole = tiny_run(**one)
    split = tiny_run(**one, speed=Speed(micro_batch_size=size))
    assert apart(split.task_vector().flat, whole.task_vector().flat) < 1e-5
    assert split.losses == pytest.approx(whole.losses, rel=1e-6)
    assert split.accuracies == whole.accuracies
    for name in ("gradient_norm", "steps"):
        assert split.records[0][name] == pytest.approx(whole.records[0][name], rel=1e-5)


@pytest.mark.parametrize("recipe", [{}, {"clip_norm": 0.5}, {"optimizer": "gd", "learning_rate": 0.5}])
def test_all_of_a_run_in_micro_batches_is_that_run(recipe):
    """Batches of 16, 16 and 5 images in micro-batches of 6."""
    whole, split = tiny_run(**recipe), tiny_run(**recipe, speed=Speed(micro_batch_size=6))
    assert apart(split.task_vector().flat, whole.task_vector().flat) < 1e-3
    assert [record["steps"] for record in split.records] == [record["steps"] for record in whole.records]


def test_no_more_images_than_asked_go_through_the_encoder_together():
    counts = []

    class Counting(nn.Module):
        def forward(self, hidden):
            counts.append(len(hidden))
            return hidden

    backbone = tiny_backbone()
    backbone.model = nn.Sequential(*backbone.model, Counting())
    tiny_run(backbone=backbone, epochs=1, speed=Speed(micro_batch_size=6))
    assert counts == [1, 6, 6, 4, 6, 6, 4, 5]  # the first one asks whether the head fits


def test_micro_batches_of_joint_full_batch_steps_weigh_tasks_alike():
    heads = {"big": tiny_head(), "small": tiny_head(2, seed=1)}
    tasks = {"big": tiny_task("big"), "small": tiny_task("small", train=12, classes=2, seed=5)}
    settings = Settings(optimizer="gd", learning_rate=0.5, epochs=1, batch_size=20)
    whole, split = (
        finetune_jointly(tiny_backbone(), heads, tasks, settings=settings, progress=False, speed=speed)
        for speed in (Speed(), Speed(micro_batch_size=7))
    )
    assert apart(split.task_vector().flat, whole.task_vector().flat) < 1e-5


@pytest.mark.parametrize("size", [1, 10, 36])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_an_accumulated_gradient_is_that_of_one_pass(size, dtype, limit):
    backbone, head, task = tiny_backbone(), tiny_head(), tiny_task()
    backbone.model.to(dtype)
    found = full_batch_gradient(backbone, head, task, batch_size=size)
    inputs = backbone.prepare(task.train_images).to(dtype)
    wide = copy.deepcopy(head).to(dtype)
    loss = F.cross_entropy(wide(backbone.model(inputs)), task.train_labels)
    slopes = torch.autograd.grad(loss, list(backbone.model.parameters()))
    assert apart(found, torch.cat([slope.reshape(-1) for slope in slopes])) < limit
    assert head.prototypes.dtype == torch.float32


# --- numbers that wait -----------------------------------------------------------------------------------


def trainer_with(unread, *, extra_loss=None, **changes):
    settings = Settings(**{"learning_rate": 0.01, "epochs": 1, "batch_size": 10, **changes})
    trainer = Trainer(
        tiny_backbone(),
        {"quarters": tiny_head()},
        {"quarters": tiny_task()},
        settings=settings,
        extra_loss=extra_loss,
    )
    trainer.unread = unread  # on a GPU it is 1
    return trainer


@pytest.mark.parametrize("recipe", [{}, {"optimizer": "gd"}])
@pytest.mark.parametrize("unread", [1, 3, 9])
def test_a_run_whose_numbers_wait_is_the_same_run(unread, recipe):
    first, second = (trainer_with(each, **recipe) for each in (0, unread))
    records = [each.epoch(1) for each in (first, second)]
    for record in records:
        del record["seconds"], record["images_per_second"]
    assert records[0] == records[1]
    assert all(torch.equal(part, second.parameters[name]) for name, part in first.parameters.items())


class Spoiled:
    """An extra loss whose value or gradient in one step is no finite number; it counts the steps."""

    def __init__(self, step, gradient):
        self.step, self.gradient, self.steps = step, gradient, 0

    def __call__(self, model, generator):
        self.steps += 1
        return next(model.parameters()).sum() * (self.gradient if self.steps == self.step else 0.0)


@pytest.mark.parametrize(("unread", "steps"), [(0, 2), (1, 3), (9, 4)])
@pytest.mark.parametrize("gradient", [float("nan"), float("inf")])
def test_the_step_that_diverged_is_named_also_where_it_is_seen_later(unread, steps, gradient):
    spoiled = Spoiled(2, gradient)
    with pytest.raises(DivergedError, match="quarters diverged in epoch 1, step 2 of it") as caught:
        trainer_with(unread, extra_loss=spoiled).epoch(1)
    assert (caught.value.step, spoiled.steps) == (2, steps)


def test_a_loss_that_is_no_number_is_found_too():
    trainers = [trainer_with(unread, learning_rate=1e30, optimizer="sgd") for unread in (0, 1)]
    steps = []
    for trainer in trainers:
        with pytest.raises(DivergedError) as caught:
            trainer.epoch(1)
        steps.append(caught.value.step)
    assert steps[0] == steps[1] > 1


def test_progress_is_told_of_every_image():
    counts = []
    trainer_with(0).epoch(1, progress=counts.append)
    assert counts == [10, 10, 10, 7]
