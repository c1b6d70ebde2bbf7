"""The plan of the study of CLIP: what fits into a budget fits, and what is left out does not."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from taskvec_mini.benchmarks.encoders import clip
from taskvec_mini.benchmarks.studies import base
from taskvec_mini.benchmarks.studies.clip import MeasuredSpeed, budget, evaluation, rounds
from taskvec_mini.benchmarks.training import Speed, memory

pytest.importorskip("open_clip")
SPEED = MeasuredSpeed(training=100.0, evaluation=1000.0, memory="memory on cpu: some")
IMAGES = {"long": 60_000, "short": 3_000, "middle": 6_000, "even": 9_000}
MOST = {"long": 4, "short": 9, "middle": 2, "even": 9}


def plan_of(
    seconds, *, images=IMAGES, done=(), spent=0.0, evaluated=20_000, workers=1, joint=None, besides=0
):
    return budget.plan(
        images, measured=SPEED, seconds=seconds, evaluated=evaluated, most=MOST, done=dict(done), spent=spent,
        workers=workers, joint=None if joint is None else lambda _names: joint,
        extras=lambda tasks: besides * tasks,
    )  # fmt: skip


def cost_of(names, epochs, done, workers=1, joint=None):
    """Seconds by hand: 20 for evaluating a task, and the rounds, each minute by minute with so many workers.

    Joint training has so many epochs already; its first comes when all tasks have one.
    """
    seconds, whole = 20 * len(names), sum(IMAGES[name] / 100 for name in names)
    for epoch in range(1, epochs + 1):
        left = [IMAGES[name] / 100 for name in names if MOST[name] >= epoch > done.get(name, 0)]
        if joint is not None and joint_most(names) >= epoch > joint:
            if epoch == 1:
                seconds += whole
            else:
                left.append(whole)
        left.sort(reverse=True)
        working = []
        while left or working:
            while left and len(working) < workers:
                working.append(left.pop(0))
            step = min(working)
            seconds += step
            working = [each - step for each in working if each > step]
    return seconds


def joint_most(names):
    """As many epochs as show no more images than all epochs of the single tasks."""
    whole, images = sum(map(IMAGES.get, names)), sum(MOST[name] * IMAGES[name] for name in names)
    return next(epochs for epochs in range(99) if (epochs + 1) * whole > images)


@pytest.mark.parametrize("besides", [0, 5, 100])
@pytest.mark.parametrize("joint", [None, 0, 2])
@pytest.mark.parametrize("workers", [1, 2, 3, 9])
@pytest.mark.parametrize("done", [{}, {"short": 2, "middle": 1}, dict.fromkeys(IMAGES, 1)])
@pytest.mark.parametrize("seconds", [200, 370, 600, 1200, 3000, 9000])
def test_a_plan_fits_and_what_it_leaves_out_does_not(seconds, done, workers, joint, besides):
    plan = plan_of(seconds, done=done, workers=workers, joint=joint, besides=1000 * besides)
    names, room = list(plan.images), 0.95 * seconds
    if joint is not None and "joint" not in plan.most:
        assert cost_of(names, 1, done, workers, joint) > room
        assert "left out: joint (one epoch of all these tasks takes " in str(plan)
        joint = None
    most = plan.most
    together = {} if joint is None else {"joint": joint_most(names)}
    assert most == {name: MOST[name] for name in names} | together
    assert plan.seconds.get("joint", 0) == pytest.approx(sum(map(IMAGES.get, names)) / 100 if together else 0)
    more = besides * len(names)  # seconds
    wait = more > 0.1 * seconds or cost_of(names, 1, done, workers, joint) + more > room
    room -= 0 if wait else more
    assert cost_of(names, plan.epochs, done, workers, joint) <= room + 1e-9
    assert names == sorted(names, key=IMAGES.get)
    for name in set(IMAGES) - set(names):
        assert cost_of([*names, name], 1, done, workers) > 0.95 * seconds
        assert name in plan.left_out
    if plan.epochs < max(most.values()):
        assert cost_of(names, plan.epochs + 1, done, workers, joint) > room
        assert f"left out: epochs {plan.epochs + 1} to {max(most.values())}" in str(plan)
    assert plan.evaluation == pytest.approx(20 * len(names) + (0 if wait else more))


def test_a_plan_says_images_minutes_and_what_is_left_out():
    words = str(plan_of(400))
    assert "minutes an epoch" in words
    assert "3,000" in words
    assert "left out: long (one epoch and its evaluation take 10.3 minutes more)" in words
    assert "workers" not in words
    assert "joint" not in words
    row = next(line for line in str(plan_of(3000, joint=0)).splitlines() if line.startswith("joint"))
    assert row.split() == ["joint", "78,000", "13.0", "1"]


def test_a_plan_for_several_workers_says_how_long_a_round_of_theirs_takes():
    words = str(plan_of(2000, workers=2))
    assert "2 workers, each taken to be as fast as this machine, the longest epochs first: an" in words
    assert "epoch of every task takes 10.0 minutes; evaluation is here" in words
    few = {name: IMAGES[name] for name in ("short", "middle", "even")}
    assert "epoch of every task takes 1.5 minutes" in str(plan_of(2000, workers=3, images=few))


@pytest.mark.parametrize(("seconds", "spent"), [(60, 0.0), (150, 30.0)])
def test_a_budget_too_small_for_two_tasks_says_how_much_it_takes(seconds, spent):
    needed = (cost_of(["short", "middle"], 1, {}) + spent) / 0.95 / 60
    with pytest.raises(ValueError, match=rf"of {seconds / 60:g} minutes is too small.*short and middle") as e:
        plan_of(seconds, spent=spent)
    assert f"take {needed:.1f} minutes" in str(e.value)
    enough = math.floor(needed) + 1
    assert f"--budget-minutes {enough} " in str(e.value)
    assert list(plan_of(60 * enough, spent=spent).images)[:2] == ["short", "middle"]


def test_one_task_is_no_merge():
    with pytest.raises(ValueError, match="at least two tasks, got short"):
        plan_of(1e6, images={"short": 3000})


def test_evaluated_images_are_those_of_all_models_and_coefficients(monkeypatch):
    monkeypatch.setattr(evaluation, "TEST", 10)
    monkeypatch.setattr(evaluation, "VALIDATION", 1)
    mean, regmean = (len(base.SCALING_COEFS[rule]) for rule in base.TWO_RULES)
    assert evaluation.evaluated_images() == 10 + 2 * 10 + 2 * (10 + mean) + 2 * (10 + regmean)
    assert evaluation.evaluated_images(joint=True) == evaluation.evaluated_images() + 2 * 10
    grids, interference = 2 * 6 * 3 * 10, 3 * 3 * 10
    assert evaluation.extra_images(3) == grids + interference


# --- the speed ---


def test_a_batch_that_does_not_fit_the_gpu_is_split(monkeypatch):
    asked = []

    def trainer(*_args, speed, **_options):
        asked.append(speed.micro_batch_size)
        if speed.micro_batch_size != 16:
            raise memory.TooLittleMemoryError("too little", 16)
        return SimpleNamespace(epoch=lambda epoch, *_: {"images_per_second": 10.0 * epoch}, memory="m")

    monkeypatch.setattr(budget, "Trainer", trainer)
    backbone, recipe = clip.load_visual("tiny-clip"), replace(rounds.RECIPE, batch_size=4)
    measured, speed = budget.measure_speed(backbone, recipe, device=torch.device("cpu"), speed=Speed())
    assert asked == [None, 16]
    assert speed == Speed(micro_batch_size=16)
    assert (measured.training, measured.memory) == (20.0, "m"), "the first epoch warms up"
    assert measured.evaluation > 0
    asked.clear()
    with pytest.raises(memory.TooLittleMemoryError):
        budget.measure_speed(backbone, recipe, device=torch.device("cpu"), speed=Speed(micro_batch_size=32))
    assert asked == [32], "what was asked for is not replaced"
