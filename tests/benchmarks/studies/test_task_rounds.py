"""Rounds on benchmark tasks: by hand, against joint gradient descent, and taken up again."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from small_encoder import tiny_backbone, tiny_task
from taskvec_mini import merging
from taskvec_mini.alternating import alternate, matrix_rule
from taskvec_mini.benchmarks.encoders.parameters import state_of
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies.task_rounds import TaskRounds
from taskvec_mini.benchmarks.training.finetune import Settings, finetune, finetune_jointly
from taskvec_mini.benchmarks.training.trainer import Trainer

SETTINGS = Settings(learning_rate=0.02, epochs=2, batch_size=16, centre="batch")


def flat(state):
    return torch.cat([part.reshape(-1) for part in state.values()])


def tasks_and_heads(sizes=(40, 24)):
    backbone = tiny_backbone()
    tasks = {f"task{i}": tiny_task(f"task{i}", train=size, seed=i) for i, size in enumerate(sizes)}
    return backbone, {name: prototype_head(backbone, task) for name, task in tasks.items()}, tasks


def run(each, rounds, **options):
    return list(
        alternate(
            each.losses,
            each.start,
            rounds=rounds,
            epochs=each.settings.epochs,
            finetune=each.finetune,
            **options,
        )
    )


def test_two_rounds_by_hand():
    backbone, heads, tasks = tasks_and_heads()
    before = state_of(backbone.model)
    history = run(TaskRounds(backbone, heads, tasks, SETTINGS), 2)
    assert torch.equal(flat(state_of(backbone.model)), flat(before))
    theta, here = flat(before), tiny_backbone()
    for number, seed in ((1, 0), (2, 1000)):
        settings = dataclasses.replace(SETTINGS, seed=seed)
        ends = [
            flat(finetune(here, heads[n], tasks[n], settings=settings, progress=False).state()) for n in tasks
        ]
        theta = theta + sum(end - theta for end in ends) / 2
        torch.testing.assert_close(history[number].theta, theta, rtol=1e-5, atol=1e-7)
        theta = history[number].theta
        torch.nn.utils.vector_to_parameters(theta, here.model.parameters())
    assert history[2].gradient_evaluations == 2 * 2 * 2
    assert history[2].floats_communicated == 2 * 2 * 2 * len(theta)


def test_one_full_batch_round_is_a_step_of_joint_gradient_descent():
    backbone, heads, tasks = tasks_and_heads()
    settings = Settings(learning_rate=50.0, epochs=1, optimizer="gd", batch_size=16)
    for rounds in (1, 3):
        averaged = run(TaskRounds(backbone, heads, tasks, settings), rounds)[-1].theta
        recipe = dataclasses.replace(settings, epochs=rounds)
        joint = flat(finetune_jointly(backbone, heads, tasks, settings=recipe, progress=False).state())
        moved = (joint - flat(state_of(backbone.model))).norm()
        assert moved > 1e-3
        assert (averaged - joint).norm() < 1e-4 * moved  # float32


@pytest.mark.parametrize("centre", ["frozen", "batch"])
def test_losses_are_those_of_the_validation_images(centre):
    backbone, heads, tasks = tasks_and_heads()
    each = TaskRounds(backbone, heads, tasks, dataclasses.replace(SETTINGS, centre=centre))
    theta = each.start + 0.01
    other = tiny_backbone()
    torch.nn.utils.vector_to_parameters(theta, other.model.parameters())
    for loss, name in zip(each.losses, tasks, strict=True):
        embedded = other.model(other.prepare(tasks[name].val_images)).detach()
        if centre == "batch":
            embedded = embedded - embedded.mean(0) + heads[name].centre
        expected = F.cross_entropy(heads[name](embedded), tasks[name].val_labels)
        torch.testing.assert_close(loss(theta), expected, rtol=1e-4, atol=1e-6)


def test_a_rule_of_merging_sees_every_tensor():
    backbone, heads, tasks = tasks_and_heads()
    each = TaskRounds(backbone, heads, tasks, SETTINGS)
    history = run(each, 1, merge=matrix_rule(merging.ties, layout=each.layout, density=0.5))
    vectors = [
        finetune(backbone, heads[n], tasks[n], settings=SETTINGS, progress=False).task_vector() for n in tasks
    ]
    expected = merging.ties(vectors, density=0.5).flat
    torch.testing.assert_close(history[1].theta - each.start, expected, rtol=1e-3, atol=1e-6)


def test_a_stopped_run_reads_what_is_there(tmp_path, monkeypatch):
    backbone, heads, tasks = tasks_and_heads()
    alone = run(TaskRounds(backbone, heads, tasks, SETTINGS), 2)
    for name in tasks:
        finetune(
            backbone, heads[name], tasks[name], settings=dataclasses.replace(SETTINGS, epochs=3),
            folder=tmp_path / "experts" / name, progress=False,
        )  # fmt: skip
    each = TaskRounds(
        backbone, heads, tasks, SETTINGS, folder=tmp_path / "rounds", first_round=tmp_path / "experts"
    )
    whole = run(each, 2)
    assert sorted(path.name for path in (tmp_path / "rounds").iterdir()) == ["round_02"]
    monkeypatch.setattr(Trainer, "epoch", lambda *_: pytest.fail("a finished encoder is trained again"))
    again = run(each, 2)
    for number in (1, 2):
        assert torch.equal(alone[number].theta, whole[number].theta)
        assert torch.equal(alone[number].theta, again[number].theta)


def test_an_error_puts_the_parameters_back():
    backbone, heads, tasks = tasks_and_heads()
    each = TaskRounds(backbone, heads, tasks, dataclasses.replace(SETTINGS, learning_rate=1e30))
    before = each.start
    with pytest.raises(ArithmeticError, match="task0"):
        run(each, 1)
    assert torch.equal(each.start, before)
