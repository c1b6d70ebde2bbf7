"""Finetuning of encoders is ordinary training, alone and jointly; its exact step is minus the gradient."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from small_encoder import flat_of, tiny_backbone, tiny_head, tiny_run, tiny_task
from taskvec_mini import descent
from taskvec_mini.benchmarks.encoders import trained_parameters
from taskvec_mini.benchmarks.heads import LinearHead
from taskvec_mini.benchmarks.training import (
    DivergedError,
    Settings,
    finetune_jointly,
    full_batch_gradient,
    plan,
)


def assert_near(found, expected, rtol=1e-4):
    """The same in float32, but for the order of sums."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-6)


def prepared_by_hand(images):
    """Each image by itself: from 0 to 1, a resized square, then normalised channel by channel."""
    rows = []
    for image in images:
        planes = torch.stack([image[..., channel].double() / 255 for channel in range(3)])
        small = F.interpolate(planes[None], (8, 8), mode="bilinear", antialias=True, align_corners=False)[0]
        rows.append(torch.stack([(small[0] - 0.4) / 0.2, (small[1] - 0.4) / 0.3, (small[2] - 0.4) / 0.2]))
    return torch.stack(rows).float()


def logits_by_hand(head, embeddings):
    shifted = embeddings - head.centre
    return head.logit_scale * (shifted / shifted.norm(dim=1, keepdim=True)) @ head.prototypes.T


# --- it is ordinary training -----------------------------------------------------------------------------

RECIPES = {
    "adamw": {"optimizer": "adamw"},
    "weight decay": {"optimizer": "adamw", "weight_decay": 0.3},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "clip": {"optimizer": "sgd", "learning_rate": 0.05, "clip_norm": 0.5},
    "warm-up": {"warmup_steps": 4},
    "cosine": {"schedule": "cosine"},
    "everything": {"weight_decay": 0.3, "clip_norm": 0.5, "warmup_steps": 2, "schedule": "cosine"},
}


def ordinary_training(changes):
    """A module, prepared images, an optimiser and a scheduler of torch; the same orders of the images."""
    settings = Settings(**{"learning_rate": 0.01, "epochs": 3, "batch_size": 16, **changes})
    model, head, task = tiny_backbone().model, tiny_head(), tiny_task()
    inputs, labels, states = prepared_by_hand(task.train_images), task.train_labels, []
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), **options)
    else:
        optimizer = torch.optim.SGD(model.parameters(), momentum=settings.momentum, **options)
    warmup, total = settings.warmup_steps, 9
    ramp = lambda s: min(1, (s + 1) / max(warmup, 1))  # noqa: E731
    fall = lambda s: (1 + math.cos(math.pi * max(0, s + 1 - warmup) / (total - warmup))) / 2  # noqa: E731
    both = lambda s: ramp(s) * (fall(s) if settings.schedule == "cosine" else 1)  # noqa: E731
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, both)
    for epoch in (1, 2, 3):
        for _, rows in plan([len(labels)], settings, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(logits_by_hand(head, model(inputs[rows])), labels[rows]).backward()
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            scheduler.step()
        states.append(flat_of(model))
    return states


@pytest.mark.parametrize("recipe", RECIPES)
def test_finetuning_is_ordinary_training(recipe):
    run, expected = tiny_run(**RECIPES[recipe]), ordinary_training(RECIPES[recipe])
    start = flat_of(tiny_backbone().model)
    for epoch in (1, 2, 3):
        assert_near(run.task_vector(epoch).flat, expected[epoch - 1] - start, rtol=1e-3)


def test_the_recipes_differ():
    ends = [tiny_run(**changes).task_vector().flat for changes in RECIPES.values()]
    for i, end in enumerate(ends):
        assert all(float((end - other).norm()) > 1e-3 for other in ends[:i])


def test_the_backbone_itself_stays_as_it_was():
    backbone = tiny_backbone()
    backbone.model.train()
    before = copy.deepcopy(backbone.model.state_dict())
    tiny_run(backbone=backbone)
    assert all(torch.equal(before[name], part) for name, part in backbone.model.state_dict().items())
    assert backbone.model.training


def test_neither_dropout_nor_batch_statistics_play_a_part():
    plain, noisy = tiny_backbone(), tiny_backbone()
    noisy.model = nn.Sequential(*noisy.model, nn.Dropout(0.5), nn.BatchNorm1d(6, affine=False)).train()
    noisy.model[-1].running_var.fill_(1 - 1e-5)
    found = tiny_run(backbone=noisy).task_vector()
    assert_near(found.flat, tiny_run(backbone=plain).task_vector().flat)
    assert len(found) == len(flat_of(plain.model))  # no buffers in it


def test_frozen_parameters_do_not_move_and_are_in_no_task_vector():
    backbone = tiny_backbone()
    backbone.model[0].requires_grad_(False)
    vector = tiny_run(backbone=backbone).task_vector()
    assert [name for name, _ in vector.layout] == ["1.weight", "1.bias", "4.weight", "4.bias"]
    assert list(trained_parameters(backbone.model)) == [name for name, _ in vector.layout]


def test_a_linear_head_will_do_too():
    head = tiny_head()
    linear = LinearHead(head.prototypes * 2, torch.zeros(4))
    assert not torch.equal(tiny_run(head=linear).task_vector().flat, tiny_run().task_vector().flat)


# --- what a run says -------------------------------------------------------------------------------------


def test_a_run_says_loss_accuracy_and_norm_as_they_were_met():
    """With a rate of almost nothing all steps are taken at the start."""
    backbone, head, task = tiny_backbone(), tiny_head(), tiny_task()
    logits = logits_by_hand(head, backbone.model(prepared_by_hand(task.train_images)))
    right = logits.argmax(1) == task.train_labels
    run = tiny_run(learning_rate=1e-12, optimizer="sgd", epochs=2)
    loss = F.cross_entropy(logits, task.train_labels).item()
    assert run.losses == pytest.approx([loss] * 2, rel=1e-5)
    assert run.accuracies == pytest.approx([float(right.double().mean())] * 2)
    norms = []
    for _, rows in plan([37], run.settings, epoch=1):
        slopes = torch.autograd.grad(
            F.cross_entropy(logits[rows], task.train_labels[rows]),
            list(backbone.model.parameters()),
            retain_graph=True,
        )
        norms.append(float(torch.cat([slope.reshape(-1) for slope in slopes]).norm()))
    assert run.records[0]["gradient_norm"] == pytest.approx(sum(norms) / 3, rel=1e-4)
    assert [(record["epoch"], record["steps"]) for record in run.records] == [(1, 3), (2, 3)]
    assert run.images_per_second == pytest.approx(74 / sum(record["seconds"] for record in run.records))


def test_training_lowers_the_loss():
    losses = tiny_run(epochs=8).losses
    assert losses[-1] < 0.7 * losses[0]


def test_only_epochs_that_were_kept_can_be_had():
    run, every = tiny_run(keep=[3, 1]), tiny_run()
    assert run.epochs == (1, 3)
    assert torch.equal(run.task_vector(1).flat, every.task_vector(1).flat)
    assert torch.equal(run.state()["4.weight"], every.state(3)["4.weight"])
    assert torch.equal(run.state(0)["4.weight"], tiny_backbone().model[4].weight)
    with pytest.raises(ValueError, match="epoch 2 was not kept; choose one of 0, 1, 3"):
        run.state(2)
    with pytest.raises(ValueError, match="keep names epoch 4, but the run has epochs 1 to 3"):
        tiny_run(keep=[4])


def test_a_run_with_no_epoch_kept_still_says_how_it_went():
    run = tiny_run(keep=[])
    assert run.epochs == ()
    assert len(run.losses) == 3
    with pytest.raises(ValueError, match="epoch 3 was not kept; choose one of 0"):
        run.state()


# --- orders ----------------------------------------------------------------------------------------------


def test_every_epoch_visits_every_image_once_in_an_order_of_its_own():
    settings = Settings(learning_rate=1.0, epochs=1, batch_size=16)
    orders = [torch.cat([rows for _, rows in plan([37], settings, epoch=epoch)]).tolist() for epoch in (1, 2)]
    assert [len(rows) for _, rows in plan([37], settings, epoch=1)] == [16, 16, 5]
    assert all(sorted(order) == list(range(37)) for order in orders)
    other = dataclasses.replace(settings, seed=1)
    orders.append(torch.cat([rows for _, rows in plan([37], other, epoch=1)]).tolist())
    assert len(set(map(tuple, orders))) == 3


def test_the_order_comes_from_seed_and_epoch_alone():
    """Other epochs, rates and sizes of batches change nothing in it."""
    first = Settings(learning_rate=1.0, epochs=1, batch_size=16)
    second = Settings(learning_rate=2.0, epochs=9, batch_size=10, optimizer="sgd")
    a, b = (torch.cat([rows for _, rows in plan([37], each, epoch=4)]) for each in (first, second))
    assert torch.equal(a, b)


def test_two_seeds_give_two_runs_and_one_seed_the_same():
    a, b, c = (tiny_run(seed=seed).task_vector().flat for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# --- the exact step --------------------------------------------------------------------------------------


# --- parts of a pass


@pytest.mark.parametrize("recipe", [{}, {"schedule": "cosine", "warmup_steps": 3}, {"optimizer": "sgd"}])
def test_parts_of_a_pass_end_where_the_pass_ends_to_the_bit(recipe, tmp_path):
    """Ten steps a pass, cut into three; also when the run is stopped within a pass and taken up again."""
    task = tiny_task(train=37)
    whole = tiny_run(task=task, epochs=2, batch_size=4, **recipe)
    parts = tiny_run(task=task, epochs=6, parts=3, batch_size=4, **recipe)
    kept = {"task": task, "parts": 3, "batch_size": 4, "folder": tmp_path / "run", **recipe}
    if "schedule" not in recipe:
        tiny_run(epochs=4, **kept)
        assert_same_states(tiny_run(epochs=6, **kept), parts)
    for passes in (1, 2):
        assert all(torch.equal(parts.state(3 * passes)[n], v) for n, v in whole.state(passes).items())
    assert [record["steps"] for record in parts.records] == [3, 3, 4, 3, 3, 4]
    seen = [len(rows) for epoch in (1, 2, 3) for _, rows in plan([37], parts.settings, epoch=epoch)]
    assert sum(seen) == 37
    loss = sum(r["loss"] * n for r, n in zip(parts.records, (12, 12, 13), strict=False)) / 37
    assert loss == pytest.approx(whole.losses[0])


def assert_same_states(first, second):
    for epoch in second.epochs:
        assert all(torch.equal(first.state(epoch)[name], part) for name, part in second.state(epoch).items())


def test_joint_training_has_parts_as_well():
    whole = jointly(*two_tasks(), epochs=1, batch_size=4)
    parts = jointly(*two_tasks(), epochs=4, parts=4, batch_size=4)
    assert all(torch.equal(parts.state(4)[name], part) for name, part in whole.state(1).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"parts": 4}, "3 steps, which make no 4 parts"), ({"parts": 2, "optimizer": "gd"}, "one step a pass")],
)
def test_a_pass_of_few_steps_has_no_more_parts(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_run(batch_size=16, **changes)


def gradient_by_hand(backbone, head, task):
    """In float64, all images at once."""
    model = copy.deepcopy(backbone.model).double()
    inputs = prepared_by_hand(task.train_images).double()
    wide = copy.deepcopy(head).double()
    loss = F.cross_entropy(logits_by_hand(wide, model(inputs)), task.train_labels)
    return torch.cat([slope.reshape(-1) for slope in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("batch_size", [1, 10, 36, 37, 500])
def test_the_gradient_is_that_of_all_images_at_once(batch_size):
    """A partial last batch must not weigh as much as a whole one."""
    own = tiny_backbone(), tiny_head(), tiny_task()
    found = full_batch_gradient(*own, batch_size=batch_size)
    expected = gradient_by_hand(*own)
    assert found.dtype == torch.float64
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_the_gradient_is_taken_at_the_parameters_that_are_given():
    run, own = tiny_run(), (tiny_backbone(), tiny_head(), tiny_task())
    there = tiny_backbone()
    there.model.load_state_dict(run.state(2))
    expected = gradient_by_hand(there, *own[1:])
    flat = torch.cat([part.reshape(-1) for part in run.state(2).values()])
    for state in (run.state(2), flat):
        found = full_batch_gradient(*own, state=state)
        assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert torch.equal(flat_of(own[0].model), flat_of(tiny_backbone().model))


@pytest.mark.parametrize("batch_size", [10, 37])
def test_one_epoch_of_gd_is_minus_the_rate_times_the_gradient(batch_size):
    vector = tiny_run(optimizer="gd", learning_rate=0.5, epochs=1, batch_size=batch_size).task_vector()
    step = -0.5 * gradient_by_hand(tiny_backbone(), tiny_head(), tiny_task())
    assert float((vector.flat.double() - step).norm() / step.norm()) < 1e-5


def test_gd_goes_on_with_one_step_an_epoch():
    run = tiny_run(optimizer="gd", learning_rate=0.5, batch_size=10)
    assert [record["steps"] for record in run.records] == [1, 1, 1]
    there = tiny_backbone()
    there.model.load_state_dict(run.state(2))
    step = -0.5 * gradient_by_hand(there, tiny_head(), tiny_task())
    found = run.task_vector(3).flat.double() - run.task_vector(2).flat.double()
    assert float((found - step).norm() / step.norm()) < 1e-4


# --- several tasks ---------------------------------------------------------------------------------------


def two_tasks():
    tasks = {"big": tiny_task("big", train=37), "small": tiny_task("small", train=12, classes=2, seed=5)}
    return {"small": tiny_head(2, seed=1), "big": tiny_head(4)}, tasks


def jointly(heads, tasks, *, folder=None, **changes):
    settings = Settings(**{"learning_rate": 0.01, "epochs": 2, "batch_size": 10, **changes})
    return finetune_jointly(tiny_backbone(), heads, tasks, settings=settings, folder=folder, progress=False)


def test_joint_training_shows_every_image_of_every_task_once_in_mixed_order():
    settings = Settings(learning_rate=1.0, epochs=1, batch_size=10)
    steps = plan([37, 12], settings, epoch=1)
    assert sorted(torch.cat([rows for task, rows in steps if task == 0]).tolist()) == list(range(37))
    assert sorted(torch.cat([rows for task, rows in steps if task == 1]).tolist()) == list(range(12))
    turns = {tuple(task for task, _ in plan([37, 12], settings, epoch=epoch)) for epoch in range(1, 9)}
    assert len(turns) > 3  # batches of the small task come at many places


def test_joint_training_is_ordinary_training_with_a_head_for_each_batch():
    heads, tasks = two_tasks()
    run = jointly(heads, tasks, optimizer="sgd")
    model, inputs = tiny_backbone().model, {n: prepared_by_hand(t.train_images) for n, t in tasks.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in (1, 2):
        for number, rows in plan([37, 12], run.settings, epoch=epoch):
            name = ("big", "small")[number]
            logits = logits_by_hand(heads[name], model(inputs[name][rows]))
            optimizer.zero_grad()
            F.cross_entropy(logits, tasks[name].train_labels[rows]).backward()
            optimizer.step()
    assert_near(run.task_vector().flat, flat_of(model) - flat_of(tiny_backbone().model), rtol=1e-3)
    assert [record["steps"] for record in run.records] == [6, 6]


def test_the_joint_full_batch_step_descends_the_mean_of_the_task_losses():
    """Each task weighs the same, however many images it has: multitask gradient descent."""
    heads, tasks = two_tasks()
    vector = jointly(heads, tasks, optimizer="gd", learning_rate=0.5, epochs=1).task_vector()
    slopes = [gradient_by_hand(tiny_backbone(), heads[name], tasks[name]) for name in tasks]
    step = -0.5 * (slopes[0] + slopes[1]) / 2
    assert float((vector.flat.double() - step).norm() / step.norm()) < 1e-5


def test_joint_training_of_one_task_is_finetuning():
    heads, tasks = two_tasks()
    joint = jointly({"big": heads["big"]}, {"big": tasks["big"]})
    alone = tiny_run(head=heads["big"], task=tasks["big"], epochs=2, batch_size=10)
    assert torch.equal(joint.task_vector().flat, alone.task_vector().flat)


def test_tasks_and_heads_must_fit():
    heads, tasks = two_tasks()
    with pytest.raises(ValueError, match="keys differ: the tasks has 'big', the heads has not"):
        jointly({"small": heads["small"]}, tasks)
    with pytest.raises(ValueError, match="the head gives 2 logits but big has 4 classes"):
        jointly({"big": heads["small"], "small": heads["small"]}, tasks)
    with pytest.raises(ValueError, match="tasks is empty"):
        jointly({}, {})


# --- a term of the reader's own --------------------------------------------------------------------------


def pull_to_zero(model, _):
    return 0.5 * sum(part.square().sum() for part in model.parameters())


def test_an_extra_loss_is_added_to_every_step():
    """Half the squared norm pulls like the weight decay of SGD with the factor 1."""
    decayed = tiny_run(optimizer="sgd", weight_decay=1.0).task_vector().flat
    pulled = tiny_run(optimizer="sgd", extra_loss=pull_to_zero).task_vector().flat
    assert_near(pulled, decayed)
    assert float((pulled - tiny_run(optimizer="sgd").task_vector().flat).norm()) > 0.01


def test_the_generator_of_an_extra_loss_is_new_at_every_step_and_the_same_at_every_run():
    seen = []

    def noise(model, generator):
        seen.append(float(torch.rand((), generator=generator)))
        return 0 * next(model.parameters()).sum()

    tiny_run(extra_loss=noise)
    first, seen[:] = list(seen), []
    tiny_run(extra_loss=noise)
    assert len(set(first)) == 9
    assert seen == first


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0}, "learning_rate must be above 0, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be finite"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam': did you mean 'adamw'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"momentum": 0.9}, '"adamw" takes no momentum, got 0.9'),
        ({"clip_norm": 0}, "clip_norm must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"learning_rate": 0.1, "epochs": 1, **changes})


def test_numbers_of_numpy_become_numbers_of_python():
    settings = Settings(learning_rate=np.float32(0.5), epochs=np.int64(2), clip_norm=np.float64(1))
    kinds = [type(getattr(settings, name)) for name in ("learning_rate", "epochs", "clip_norm")]
    assert kinds == [float, int, float]


def test_a_warm_up_longer_than_the_run_never_ends():
    settings = Settings(learning_rate=1.0, epochs=1, warmup_steps=8, schedule="cosine")
    assert [settings.rate(step, 4) for step in (1, 2, 4)] == [0.125, 0.25, 0.5]


def nan_in_step(number):
    """An extra loss that is not a number from one step on."""
    calls = []

    def spoiled(model, _):
        calls.append(1)
        return next(model.parameters()).sum() * (math.nan if len(calls) >= number else 0.0)

    return spoiled


def test_a_run_that_diverges_says_where():
    with pytest.raises(
        DivergedError, match=r"finetuning on quarters diverged in epoch 2, step 2 of it"
    ) as caught:
        tiny_run(extra_loss=nan_in_step(5))
    assert (caught.value.epoch, caught.value.step, caught.value.learning_rate) == (2, 2, 0.01)
    assert isinstance(caught.value, descent.DivergedError)
    with pytest.raises(DivergedError, match=r"at learning_rate 1e\+38; lower the learning rate"):
        tiny_run(optimizer="sgd", learning_rate=1e38)
