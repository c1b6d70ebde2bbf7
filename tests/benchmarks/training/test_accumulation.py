"""Gradients accumulated over micro-batches, and the numbers of the steps, which may wait to be looked at."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from small_encoder import tiny_backbone, tiny_head, tiny_run, tiny_task
from taskvec_mini.benchmarks.training.finetune import DivergedError, Settings, Speed, finetune_jointly
from taskvec_mini.benchmarks.training.gradients import full_batch_gradient
from taskvec_mini.benchmarks.training.progress import ProgressLine
from taskvec_mini.benchmarks.training.tally import Part, Tally
from taskvec_mini.benchmarks.training.trainer import Trainer


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


def step(loss, images=4, norm=1.0):
    return [Part(images, torch.tensor(loss), torch.tensor(3))], torch.tensor(norm), 0.1


def test_numbers_that_wait_add_up_to_the_same():
    sums = []
    for unseen in (0, 1, 5):
        tally = Tally("cars", 1, unseen)
        for loss in (0.5, 0.25, 2.0):
            tally.add(*step(loss))
        assert tally.steps == max(0, 3 - unseen)
        tally.look()
        sums.append((tally.loss, tally.hits, tally.norms, tally.steps))
    assert sums == [(11.0, 9, 3.0, 3)] * 3


@pytest.mark.parametrize("unseen", [0, 1])
@pytest.mark.parametrize("bad", [{"loss": float("nan")}, {"loss": 1.0, "norm": float("inf")}])
def test_the_step_that_diverged_is_named_also_where_it_is_seen_later(unseen, bad):
    tally = Tally("cars", 7, unseen)
    tally.add(*step(1.0))
    for each in [bad, {"loss": 1.0}][:unseen]:
        tally.add(*step(**each))
    with pytest.raises(DivergedError, match="cars diverged in epoch 7, step 2 of it") as caught:
        tally.add(*step(**([bad, {"loss": 1.0}][unseen])))
    assert (caught.value.step, tally.begun) == (2, 2 + unseen)


def trainer_with(unseen, **changes):
    settings = Settings(**{"learning_rate": 0.01, "epochs": 1, "batch_size": 10, **changes})
    trainer = Trainer(
        tiny_backbone(), {"quarters": tiny_head()}, {"quarters": tiny_task()}, settings,
        extra_loss=None, device=torch.device("cpu"),
    )  # fmt: skip
    trainer.unseen = unseen  # what a GPU has
    return trainer


def test_a_run_whose_numbers_wait_is_the_same_run():
    silent = ProgressLine("", 0, show=False)
    first, second = (trainer_with(unseen).epoch(1, silent) for unseen in (0, 1))
    timed = {"seconds", "images_per_second"}
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in second.items() if k not in timed
    }
    steps = []
    for unseen in (0, 1):
        with pytest.raises(DivergedError) as caught:
            trainer_with(unseen, learning_rate=1e30, optimizer="sgd").epoch(1, silent)
        steps.append(caught.value.step)
    assert steps[0] == steps[1] > 1
