"""Rounds on benchmark tasks: by hand, as joint gradient descent, taken up again; and chapter 7."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import study_checks
from small_encoder import tiny_backbone, tiny_task
from small_studies import FEW, FEW_IMAGES, GRIDS, RECIPE, check_record, make_small, run, tiny_tasks
from taskvec_mini import merging
from taskvec_mini.benchmarks.encoders import state_of
from taskvec_mini.benchmarks.evaluation import accuracies
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies.early_or_late import EarlyOrLate
from taskvec_mini.benchmarks.studies.rounds import Rounds, alternate_tasks
from taskvec_mini.benchmarks.training import Settings, Trainer, finetune, finetune_jointly

SETTINGS = Settings(learning_rate=0.02, epochs=2, batch_size=16, centre="batch")


def flat(state):
    return torch.cat([part.reshape(-1) for part in state.values()])


def tasks_and_heads(sizes=(40, 24)):
    backbone = tiny_backbone()
    tasks = {f"task{i}": tiny_task(f"task{i}", train=size, seed=i) for i, size in enumerate(sizes)}
    return backbone, {name: prototype_head(backbone, task) for name, task in tasks.items()}, tasks


def alternated(backbone, heads, tasks, rounds, *, settings=SETTINGS, merge=merging.mean, **options):
    history, _ = alternate_tasks(
        backbone, heads, tasks, settings=settings, rounds=rounds, merge=merge, **options
    )
    return history


# --- rounds ----------------------------------------------------------------------------------------------


def test_full_batch_rounds_of_two_with_an_exchange_are_joint_descent():
    backbone, heads, tasks = tasks_and_heads()
    settings = Settings(optimizer="gd", learning_rate=5.0, epochs=2)
    joint = finetune_jointly(
        backbone, heads, tasks, settings=dataclasses.replace(settings, epochs=4), progress=False
    )
    plain = alternated(backbone, heads, tasks, 2, settings=settings)[-1]
    exchanged = alternated(backbone, heads, tasks, 2, settings=settings, control_variates=True)[-1]
    expected = flat(joint.state())
    moved = expected - flat(state_of(backbone.model))
    assert (exchanged.theta - expected).norm() < 1e-4 * moved.norm()
    assert (plain.theta - expected).norm() > 1e-3 * moved.norm()
    assert exchanged.gradient_evaluations == 2 * 2 * (2 + 1)
    assert exchanged.floats_communicated == 2 * plain.floats_communicated


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_exchange_gives_the_optimiser_the_shifted_gradient(optimizer):
    """With whole sets as batches the first step of all tasks is the same, whatever the optimiser."""
    backbone, heads, tasks = tasks_and_heads((24, 24))
    settings = Settings(optimizer=optimizer, learning_rate=0.01, epochs=1, batch_size=24)
    ends = {}

    def kept(vectors):
        ends.update(enumerate(vectors))
        return merging.mean(vectors)

    alternated(backbone, heads, tasks, 1, settings=settings, merge=kept, control_variates=True)
    assert (ends[0] - ends[1]).norm() < 1e-3 * ends[0].norm()
    alternated(backbone, heads, tasks, 1, settings=settings, merge=kept)
    assert (ends[0] - ends[1]).norm() > 0.1 * ends[0].norm()


def test_a_stopped_run_with_an_exchange_goes_on_and_is_not_taken_for_a_plain_one(tmp_path):
    backbone, heads, tasks = tasks_and_heads()
    frozen = dataclasses.replace(SETTINGS, centre="frozen")
    options = {
        "settings": frozen,
        "folder_of": lambda number, name: tmp_path / str(number) / name,
        "control_variates": True,
    }
    alternated(backbone, heads, tasks, 1, **options)
    both = alternated(backbone, heads, tasks, 2, **options)
    again = alternated(backbone, heads, tasks, 2, settings=frozen, control_variates=True)
    assert torch.equal(both[-1].theta, again[-1].theta)
    with pytest.raises(ValueError, match="extra_loss"):
        alternated(backbone, heads, tasks, 1, settings=frozen, folder_of=options["folder_of"])
    with pytest.raises(ValueError, match="centre=\"frozen\", got 'batch'"):
        alternated(backbone, heads, tasks, 1, control_variates=True)


def test_two_rounds_by_hand():
    backbone, heads, tasks = tasks_and_heads()
    before = state_of(backbone.model)
    history = alternated(backbone, heads, tasks, 2)
    assert torch.equal(flat(state_of(backbone.model)), flat(before))
    theta, own = flat(before), tiny_backbone()
    for number, seed in ((1, 0), (2, 1000)):
        settings = dataclasses.replace(SETTINGS, seed=seed)
        ends = [
            flat(finetune(own, heads[n], tasks[n], settings=settings, progress=False).state()) for n in tasks
        ]
        theta = theta + sum(end - theta for end in ends) / 2
        torch.testing.assert_close(history[number].theta, theta, rtol=1e-5, atol=1e-7)
        theta = history[number].theta
        torch.nn.utils.vector_to_parameters(theta, own.model.parameters())
    assert history[2].gradient_evaluations == 2 * 2 * 2
    assert history[2].floats_communicated == 2 * 2 * 2 * len(theta)


def test_one_full_batch_round_is_a_step_of_joint_gradient_descent():
    backbone, heads, tasks = tasks_and_heads()
    settings = Settings(learning_rate=50.0, epochs=1, optimizer="gd", batch_size=16)
    for rounds in (1, 3):
        averaged = alternated(backbone, heads, tasks, rounds, settings=settings)[-1].theta
        recipe = dataclasses.replace(settings, epochs=rounds)
        joint = flat(finetune_jointly(backbone, heads, tasks, settings=recipe, progress=False).state())
        moved = (joint - flat(state_of(backbone.model))).norm()
        assert moved > 1e-3
        assert (averaged - joint).norm() < 1e-4 * moved  # float32


@pytest.mark.parametrize("centre", ["frozen", "batch"])
def test_losses_are_those_of_the_validation_images(centre):
    backbone, heads, tasks = tasks_and_heads()
    settings = dataclasses.replace(SETTINGS, centre=centre)
    last = alternated(backbone, heads, tasks, 1, settings=settings)[-1]
    other = tiny_backbone()
    torch.nn.utils.vector_to_parameters(last.theta, other.model.parameters())
    for loss, name in zip(last.losses, tasks, strict=True):
        embedded = other.model(other.prepare(tasks[name].val_images)).detach()
        if centre == "batch":
            embedded = embedded - embedded.mean(0) + heads[name].centre
        expected = F.cross_entropy(heads[name](embedded), tasks[name].val_labels)
        assert loss == pytest.approx(float(expected), rel=1e-4)


def test_a_rule_of_merging_sees_every_tensor():
    backbone, heads, tasks = tasks_and_heads()
    ties = lambda vectors: merging.ties(vectors, density=0.5, per_tensor=True)  # noqa: E731
    history, last = alternate_tasks(backbone, heads, tasks, settings=SETTINGS, rounds=1, merge=ties)
    vectors = [
        finetune(backbone, heads[n], tasks[n], settings=SETTINGS, progress=False).task_vector() for n in tasks
    ]
    expected = ties(vectors)
    assert last.layout == expected.layout
    torch.testing.assert_close(last.flat, expected.flat, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(history[1].theta - history[0].theta, expected.flat, rtol=1e-3, atol=1e-6)


def test_a_stopped_run_reads_what_is_there(tmp_path, monkeypatch):
    backbone, heads, tasks = tasks_and_heads()
    alone = alternated(backbone, heads, tasks, 2)
    whole = alternated(
        backbone, heads, tasks, 2, folder_of=lambda number, name: tmp_path / f"round{number}" / name
    )
    monkeypatch.setattr(Trainer, "epoch", lambda *_: pytest.fail("a finished encoder is trained again"))
    again = alternated(
        backbone, heads, tasks, 2, folder_of=lambda number, name: tmp_path / f"round{number}" / name
    )
    for number in (1, 2):
        assert torch.equal(alone[number].theta, whole[number].theta)
        assert torch.equal(alone[number].theta, again[number].theta)


def test_an_error_puts_the_parameters_back():
    backbone, heads, tasks = tasks_and_heads()
    before = flat(state_of(backbone.model))
    with pytest.raises(ArithmeticError, match="task0"):
        alternated(backbone, heads, tasks, 1, settings=dataclasses.replace(SETTINGS, learning_rate=1e30))
    assert torch.equal(flat(state_of(backbone.model)), before)


# --- the study -------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    make_small(monkeypatch, tmp_path)


def small_study(**options):
    about = {"tasks": FEW_IMAGES, "recipe": RECIPE, "budget": 2, "splits": (1, 2), **options}
    return Rounds("a budget of two epochs", **about)


def test_the_study_of_rounds(tmp_path, small):
    study = small_study(post_hoc=True)
    results = run(study)
    study_checks.check_rounds(results, study.settings, (0, 1))
    check_record(tmp_path, results, study)
    assert sorted(path.name for path in (tmp_path / "pocket" / "seed0" / "rounds" / "mean_2").iterdir()) == [
        "round_02"
    ], "round 1 is plain finetuning, which is there already"
    early = run(EarlyOrLate("the same", tasks=FEW_IMAGES, recipe=RECIPE, epochs=(1, 2)))
    study_checks.check_same_references(early, results)
    once = {row["seed"]: row["tuned"] for row in results["rounds"] if row["rounds"] == 1}
    for row in early["merged"]:
        if (row["epoch"], row["rule"]) == (2, "mean"):
            assert once[row["seed"]] == {key: row[key] for key in ("scaling_coef", "val_mean", "test")}


def test_the_study_of_rounds_under_another_rule(small):
    study = small_study(rule="tsv")
    results = run(study, seeds=(1,))
    study_checks.check_rounds(results, study.settings, (1,))
    assert "post_hoc" not in results


def test_what_follows_a_finished_merge_trains_on_validation_images_alone(small):
    """Both phases by hand, from the merge on: what trains on the specialists' images gives other numbers."""
    row = run(small_study(post_hoc=True, splits=(1,)), seeds=(1,))["post_hoc"][0]
    tasks = {name: task for name, task in tiny_tasks(1).items() if name in FEW}
    backbone = tiny_backbone(seed=len("pocket"))
    heads = {name: prototype_head(backbone, task, shots=5) for name, task in tasks.items()}
    start = state_of(backbone.model)
    recipe = dataclasses.replace(RECIPE, epochs=2, seed=1)
    vectors = [
        finetune(backbone, heads[name], task, settings=recipe, progress=False).task_vector()
        for name, task in tasks.items()
    ]
    assert row["tuned"]["scaling_coef"] in GRIDS["mean"]
    merged = merging.mean(vectors).apply_to(start, row["tuned"]["scaling_coef"])
    backbone.model.load_state_dict(merged)

    def phases(held_out):
        """Norms of the first round from the merge, and the accuracies of joint training from there."""
        settings = dataclasses.replace(recipe, epochs=1)
        norms = []
        for name, task in held_out.items():
            found = finetune(backbone, heads[name], task, settings=settings, progress=False)
            norms.append(float(found.task_vector().flat.double().norm()))
        joint = finetune_jointly(backbone, heads, held_out, settings=recipe, progress=False).state()
        return norms, accuracies(backbone, heads, tasks, parameters=joint, recentre=9)

    held_out = {
        name: dataclasses.replace(task, train_images=task.val_images, train_labels=task.val_labels)
        for name, task in tasks.items()
    }
    norms, joint = phases(held_out)
    assert row["history"][1]["norms"] == pytest.approx(norms, abs=2e-5)
    assert row["joint"] == pytest.approx(joint, abs=1e-5)
    others, other = phases(tasks)
    assert all(abs(a - b) > 1e-2 for a, b in zip(norms, others, strict=True)), "the test can tell"
    assert other != joint
