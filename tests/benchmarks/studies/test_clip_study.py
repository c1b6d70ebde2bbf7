"""The study of CLIP: rounds within a budget, going on after a stop, merging from files, its record."""

import contextlib
import json
import math
import os
import shlex
import shutil
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import nbformat
import pytest
import safetensors.torch
import torch

from conftest import CHAPTERS, ROOT
from taskvec_mini import figures, merging, records
from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.cli.parser import command_of, parse
from taskvec_mini.benchmarks.data import load_tasks
from taskvec_mini.benchmarks.encoders import clip
from taskvec_mini.benchmarks.engines import finetune_all, jobs
from taskvec_mini.benchmarks.heads import load_head
from taskvec_mini.benchmarks.studies import base
from taskvec_mini.benchmarks.studies.clip import MeasuredSpeed, budget, evaluation, rounds
from taskvec_mini.benchmarks.studies.clip import study as clip_study
from taskvec_mini.benchmarks.training import Experiment, RunFolder, memory
from taskvec_mini.vectors import TaskVector

pytest.importorskip("open_clip")
SPEED = MeasuredSpeed(training=100.0, evaluation=1000.0, memory="memory on cpu: some")


def kept(folder):
    return set(RunFolder(folder).kept)


@cache
def few_images(names, suite, folder):
    """The tasks with 80 training images each, read once for all these tests."""
    return load_tasks(names, suite=suite, folder=folder, limit=80)


def load_few(names, *, suite, folder):
    return dict(few_images(tuple(names), suite, folder))


def data_folder():
    """The folder of real images, or None."""
    folder = Path(os.environ.get("TASKVEC_MINI_DATA") or ROOT.parent / "shared" / "data")
    return folder if (folder / "mnist.npz").exists() else None


# --- the run ---------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only while somebody trains: ten for each new epoch, unless `lasts` has others.

    An epoch of joint training lasts ten for each task.
    """

    def __init__(self, finetune, finetune_jointly):
        self.now, self.finetune, self.trained, self.lasts = 0.0, finetune, [], {}
        self.finetune_jointly = finetune_jointly

    def __call__(self):
        return self.now

    def pass_by(self, name, seconds, folder, settings):
        if not (folder / f"epoch_{settings.epochs:03}.json").exists():
            self.trained.append((name, settings.epochs))
            self.now += self.lasts.get(len(self.trained), seconds)

    def train(self, backbone, head, task, *, folder, settings, **options):
        self.pass_by(task.name, 10.0, folder, settings)
        return self.finetune(backbone, head, task, folder=folder, settings=settings, **options)

    def train_jointly(self, backbone, heads, tasks, *, folder, settings, **options):
        self.pass_by("joint", 10.0 * len(tasks), folder, settings)
        return self.finetune_jointly(backbone, heads, tasks, folder=folder, settings=settings, **options)


@pytest.fixture
def clock(monkeypatch):
    """Few images, a short recipe, a fake clock: an epoch takes ten seconds, and evaluating a task one."""
    found = Clock(jobs.finetune, jobs.finetune_jointly)
    monkeypatch.setattr(jobs, "finetune", found.train)
    monkeypatch.setattr(jobs, "finetune_jointly", found.train_jointly)
    monkeypatch.setattr(clip_study, "load_tasks", load_few)
    monkeypatch.setattr(clip_study, "MOST", 3)
    monkeypatch.setattr(clip_study, "CONVERGED", {})
    for name, value in (("TEST", 60), ("VALIDATION", 30)):
        monkeypatch.setattr(evaluation, name, value)
    recipe = replace(rounds.RECIPE, batch_size=40, learning_rate=1e-3)
    monkeypatch.setattr(rounds, "RECIPE", recipe)
    measured = replace(SPEED, training=8.0, evaluation=float(evaluation.evaluated_images()))
    monkeypatch.setattr(budget, "measure_speed", lambda *_args, speed, **_more: (measured, speed))
    return found


@pytest.fixture
def quick_evaluation(clock, monkeypatch):
    """Evaluation takes no time."""
    measured = replace(SPEED, training=8.0, evaluation=1e9)
    monkeypatch.setattr(budget, "measure_speed", lambda *_args, speed, **_more: (measured, speed))


def ask(folder, **changes):
    """A request for real images where there are any."""
    data = data_folder()
    given = {"suite": "bundle", "tasks": ("mnist", "gtsrb")}
    if data is None:
        given = {"suite": "digits", "tasks": ("digits", "mirrored")}
    given |= {"budget_minutes": 10, "runs": folder, "backbone": "tiny-clip", "data": data}
    return clip_study.ClipRequest(**(given | changes))


def run_clip(clock, request):
    return clip_study.Clip(clock=clock).run(request)


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan])
def test_a_budget_of_nothing_is_refused_and_not_taken_for_the_default(tmp_path, clock, minutes):
    with pytest.raises(ValueError, match="--budget-minutes must be"):
        run_clip(clock, ask(tmp_path, budget_minutes=minutes))
    assert not list(tmp_path.iterdir())


def test_a_download_without_a_folder_is_refused_before_the_weights_are_fetched(tmp_path, clock, monkeypatch):
    monkeypatch.delenv("TASKVEC_MINI_DATA", raising=False)
    monkeypatch.setattr(clip, "load_clip", lambda _name: pytest.fail("fetched weights"))
    with pytest.raises(ValueError, match=r"suite 'hub' need a folder.*--data FOLDER.*TASKVEC_MINI_DATA"):
        run_clip(clock, ask(tmp_path, suite="hub", tasks=("dtd", "cars"), data=None))
    assert not list(tmp_path.iterdir())


def test_the_hub_s_images_are_counted_without_fetching_them():
    found = clip_study.training_images("hub", None, data=None)
    assert list(found) == ["sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
    assert (found["mnist"], found["dtd"], found["svhn"]) == (55_000, 3_384, 68_257)


@pytest.mark.parametrize(
    ("suite", "names", "message"),
    [
        ("hub", ["dtd", "dtd"], "'dtd' is given twice"),
        ("hub", ["dtt"], "did you mean 'dtd'"),
        ("hub", ["scenes15"], "unknown task of the suite 'hub', 'scenes15'"),
        ("hup", None, "did you mean 'hub'"),
    ],
)
def test_names_are_checked_before_anything_is_loaded(suite, names, message):
    with pytest.raises(ValueError, match=message):
        clip_study.training_images(suite, names, data=None)


def test_a_study_from_heads_to_its_record(tmp_path, clock, capsys):
    study = clip_study.Clip(clock=clock)
    asked = ask(tmp_path / "runs")
    results = study.run(asked)
    names = asked.tasks if asked.suite == "digits" else sorted(asked.tasks, key=results["images"].get)
    assert sorted(results["tasks"]) == sorted(names)
    assert results["epochs"] == [1, 3]
    assert results["trained_epochs"] == dict.fromkeys(results["tasks"], 3)
    assert [(row["rule"], row["epoch"]) for row in results["merged"]] == [
        ("mean", 1), ("mean", 3), ("regmean_from_vectors", 1), ("regmean_from_vectors", 3)
    ]  # fmt: skip
    assert results["left_out"] == []
    check_merge(tmp_path / "runs", results, results["merged"][1])
    said = capsys.readouterr().err
    assert "plan for 10 minutes" in said
    assert "8 images/s in training" in said
    assert said.index("memory on cpu: some") < said.index("epoch 1/1")
    about = {"seeds": study.seeds, "settings": study.settings, "data": study.data}
    written = records.write(tmp_path / "clip.json", results, command="record clip", seconds=1.0, **about)
    assert records.read(tmp_path / "clip.json") == written
    assert written["settings"]["speed"]["precision"] == "float32"
    check_going_on(tmp_path / "runs", results, clock)


def check_merge(folder, results, row):
    """The row of a merge, counted again with vectors in memory and heads by hand."""
    assert row["scaling_coef"] in base.SCALING_COEFS["mean"]
    start = safetensors.torch.load_file(Experiment(folder).pretrained)
    vectors = []
    for name in results["tasks"]:
        end = safetensors.torch.load_file(folder / name / "epoch_003.safetensors")
        vectors.append(TaskVector.between(start, {key: end[key] for key in start}))
    state = merging.mean(vectors).apply_to(start, row["scaling_coef"])
    backbone = clip.load_visual("tiny-clip")
    backbone.model.load_state_dict(state)
    asked = ask(folder)
    tasks = load_few(results["tasks"], suite=asked.suite, folder=asked.data)
    for name, task in tasks.items():
        head = load_head(folder / name / "head.safetensors")
        with torch.no_grad():
            embedded = backbone.model(backbone.prepare(task.test_images[:60]))
        right = (embedded @ head.prototypes.T).argmax(1) == task.test_labels[:60]
        assert row["test"][name] == pytest.approx(float(right.double().mean()), abs=1e-5)


def check_going_on(folder, results, clock):
    """Nothing is trained twice, and the numbers are the same; after a loss only what was lost is trained."""
    clock.trained.clear()
    again = run_clip(clock, ask(folder))
    assert clock.trained == []
    assert again == results
    name = results["tasks"][0]
    shutil.rmtree(folder / name)
    again = run_clip(clock, ask(folder))
    assert clock.trained == [(name, 1), (name, 2), (name, 3)]
    for part in ("zero_shot", "individual", "merged", "train_accuracy"):
        assert again[part] == results[part]


def test_a_budget_ends_a_run_and_a_further_one_takes_it_up(tmp_path, clock):
    folder = tmp_path / "runs"
    first = run_clip(clock, ask(folder, budget_minutes=36 / 60 / 0.95))
    assert [epoch for _, epoch in clock.trained] == [1, 1], "a round that does not fit is not begun"
    assert first["epochs"] == [1]
    assert [each["what"] for each in first["left_out"]] == ["epochs 2 to 3"]
    assert clock.now <= 36
    clock.now, before = 0.0, list(clock.trained)
    clock.trained.clear()
    second = run_clip(clock, ask(folder, budget_minutes=36 / 60 / 0.95))
    assert [epoch for _, epoch in clock.trained] == [2, 2]
    assert second["epochs"] == [1, 2]
    assert second["zero_shot"] == first["zero_shot"]
    assert second["merged"][0] == first["merged"][0]
    assert len(before) == 2


def test_an_epoch_that_takes_longer_than_planned_ends_the_round(tmp_path, clock):
    clock.lasts = {3: 20.0}
    results = run_clip(clock, ask(tmp_path, budget_minutes=45 / 60 / 0.95))
    assert [epoch for _, epoch in clock.trained] == [1, 1, 2]
    assert results["epochs"] == [1], "only a round that all tasks have finished is merged"
    assert "no time for epoch 2 of" in results["left_out"][-1]["why"]
    assert {1, 2} == kept(tmp_path / clock.trained[0][0]), "what is finished is kept"


def test_the_next_round_is_expected_to_take_what_the_last_one_took(tmp_path, clock):
    clock.lasts = {1: 20.0, 2: 20.0}
    results = run_clip(clock, ask(tmp_path, budget_minutes=70 / 60 / 0.95))
    assert [epoch for _, epoch in clock.trained] == [1, 1], "30 seconds are left, and 40 are needed"
    assert results["epochs"] == [1]


def test_only_the_first_and_the_last_round_stay_on_the_disk(tmp_path, clock):
    results = run_clip(clock, ask(tmp_path))
    assert [kept(tmp_path / name) for name in results["tasks"]] == [{1, 3}, {1, 3}]


def test_a_task_that_may_go_on_keeps_its_optimiser(tmp_path, clock):
    run_clip(clock, ask(tmp_path, budget_minutes=56 / 60 / 0.95))
    assert [epoch for _, epoch in clock.trained] == [1, 1, 2, 2]
    assert len(list(tmp_path.rglob("latest.safetensors"))) == 2


def test_another_encoder_needs_another_folder(tmp_path, clock):
    shared = {
        "suite": ask(tmp_path).suite,
        "backbone": "other",
        "heads": "zero-shot",
        "limit": None,
        "seed": 0,
    }
    Experiment(tmp_path, shared).create()
    with pytest.raises(ValueError, match=r"backbone = 'other'.*another folder with --runs"):
        run_clip(clock, ask(tmp_path))


def test_too_little_disk_is_told_before_anything_is_trained(tmp_path, clock, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(clip_study.shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    with pytest.raises(OSError, match=r"may take 2\.1 MB.*has 1\.0 MB free: give fewer --tasks"):
        run_clip(clock, ask(tmp_path))
    assert clock.trained == []


@pytest.mark.parametrize(("joint", "words"), [(False, "2.1 MB"), (True, "2.9 MB")])
def test_the_disk_takes_as_much_as_was_said_and_in_the_end_only_what_is_merged(
    tmp_path, clock, monkeypatch, capsys, joint, words
):
    monkeypatch.setattr(clip_study, "MOST", 4)
    sizes, replace_file = [], os.replace

    def watched(part, path):  # a file is whole, and the old one is still there
        sizes.append(sum(each.stat().st_size for each in tmp_path.rglob("*.safetensors*")))
        replace_file(part, path)

    monkeypatch.setattr(os, "replace", watched)
    run_clip(clock, ask(tmp_path, joint=joint))
    copy = 4 * 33_280
    heads = sum(path.stat().st_size for path in tmp_path.rglob("head.safetensors"))
    found = [(size - heads) / copy for size in (max(sizes), sizes[-1])]
    assert found[0] == pytest.approx(budget.parameter_copies(dict.fromkeys(range(2 + joint), 4)), rel=0.03), (
        "and file headers"
    )
    assert f"checkpoints: up to {words}, 0 B of it is there" in capsys.readouterr().err
    assert not list(tmp_path.rglob("latest.safetensors")), "no task goes on"
    run_clip(clock, ask(tmp_path, joint=joint))
    there = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    end = memory.amount(copy * (1 + 2 * (2 + joint)))
    assert f"checkpoints: up to {end}, {memory.amount(there)} of it is there" in capsys.readouterr().err
    assert len(list(tmp_path.rglob("epoch_*.safetensors"))) == 4 + 2 * joint


def test_without_a_gpu_the_option_says_so_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command_line.main(["record", "clip", "--gpu", "--runs", str(tmp_path)]) == 2
    assert "torch sees no NVIDIA GPU here; in Colab choose one under Runtime" in capsys.readouterr().err


@pytest.mark.parametrize(("has_bfloat16", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_means_bfloat16_where_its_processor_has_it(monkeypatch, has_bfloat16, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has_bfloat16)
    device, speed = clip_study.device_and_speed(gpu=True)
    assert (device.type, speed.precision) == ("cuda", precision)


# --- what chapter 6's records have besides ----------------------------------------------------------------


def counted(backbone, state, head, task):
    """Test accuracy by hand."""
    backbone.model.load_state_dict(state)
    with torch.no_grad():
        embedded = backbone.model(backbone.prepare(task.test_images[:60]))
    right = (embedded @ head.prototypes.T).argmax(1) == task.test_labels[:60]
    return pytest.approx(float(right.double().mean()), abs=1e-5)


def test_a_joint_model_a_grid_and_interference_are_those_made_by_hand(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(clip_study, "MOST", 2)
    asked = ask(tmp_path, joint=True)
    results = run_clip(clock, asked)
    names = results["tasks"]
    assert results["left_out"] == []
    assert clock.trained == [*((n, 1) for n in names), ("joint", 1), *((n, 2) for n in names), ("joint", 2)]
    tasks = load_few(names, suite=asked.suite, folder=asked.data)
    heads = {name: load_head(tmp_path / name / "head.safetensors") for name in names}
    backbone = clip.load_visual("tiny-clip")
    start = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    settings = replace(rounds.RECIPE, epochs=2)
    joint = clock.finetune_jointly(backbone, heads, tasks, settings=settings, progress=False)
    vectors = {}
    for name in names:
        end = safetensors.torch.load_file(tmp_path / name / "epoch_002.safetensors")
        vectors[name] = {key: end[key] - start[key] for key in start}

    def scores(state):
        return {name: counted(backbone, state, heads[name], tasks[name]) for name in names}

    def moved(steps):
        return {key: start[key] + sum(scale * vectors[n][key] for n, scale in steps.items()) for key in start}

    for epoch in (1, 2):
        assert results["joint"]["0"][str(epoch)] == scores({**start, **joint.state(epoch)})
    grid = {(row["epoch"], row["scaling_coef"]): row for row in results["grid"]}
    assert set(grid) == {(e, coef) for e in (1, 2) for coef in (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)}
    assert grid[1, 0.0]["test"] == results["zero_shot"]["0"] == scores(start)
    for coef in (1.0, 8.0):
        assert grid[2, coef]["test"] == scores(moved(dict.fromkeys(names, coef / 2)))
    for name in names:
        half, zero = scores(moved({name: 0.5})), results["zero_shot"]["0"]
        assert {n: zero[n] + change for n, change in results["cross"]["0"][name].items()} == half
    assert set(results["training_seconds"]["0"]) == {"individual", "joint"}
    folder = tmp_path / f"joint_{'_'.join(sorted(names))}"
    assert kept(folder) == {1, 2}
    assert not list(tmp_path.rglob("latest.safetensors")), "no run goes on"


def chapter_6(words):
    """The code of chapter 6's cell that holds these words."""
    path = next(path for path in CHAPTERS if path.stem.startswith("06"))
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return next(cell for cell in cells if words in cell)


def test_chapter_6_draws_the_record_of_a_reader(tmp_path, clock):
    digits = {"suite": "digits", "tasks": ("digits", "mirrored"), "data": None}
    study = clip_study.Clip(clock=clock)
    results = study.run(ask(tmp_path / "runs", joint=True, **digits))
    path = tmp_path / "clip.json"
    records.write(path, results, command="record", seeds=[0], seconds=1.0, settings=study.settings)
    scope = {"figures": figures}
    exec(chapter_6("class Merges"), scope)
    asked = 'Merges("06_early_or_late"'
    exec(chapter_6(asked).replace(asked, f"Merges({str(path.with_suffix(''))!r}"), scope)
    exec(chapter_6("def nearest"), scope)
    names = scope["pocket"].names
    assert names == results["tasks"]
    assert scope["pocket"].level("joint") == [
        pytest.approx(sum(results["joint"]["0"][epoch].values()) / 2) for epoch in ("1", "3")
    ]
    bars = scope["merge_at"](epochs=3, scaling_coef=2.0)
    row = next(row for row in results["grid"] if (row["epoch"], row["scaling_coef"]) == (3, 2.0))
    shown = {bar["task"]: bar["test accuracy"] for bar in bars if bar["model"] == "merge"}
    assert shown == row["test"]


def test_the_seconds_of_training_are_those_of_all_epochs_until_the_last_round(tmp_path, clock):
    names = run_clip(clock, ask(tmp_path, joint=True))["tasks"]
    folders = [*(tmp_path / name for name in names), Experiment(tmp_path).joint(names).path]
    for number, folder in enumerate(folders):
        for epoch in (1, 2, 3):
            path = folder / f"epoch_{epoch:03}.json"
            told = json.loads(path.read_text()) | {"seconds": 10.0**number * epoch}
            path.write_text(json.dumps(told))
    again = run_clip(clock, ask(tmp_path, joint=True))
    assert again["training_seconds"] == {"0": {"individual": 66.0, "joint": 600.0}}


def test_joint_training_that_does_not_fit_is_left_out_and_may_come_later(tmp_path, clock, quick_evaluation):
    minutes = 1 / 60 / 0.95
    first = run_clip(clock, ask(tmp_path, joint=True, budget_minutes=39 * minutes))
    assert [epoch for _, epoch in clock.trained] == [1, 1], "the tasks' second round does not fit either"
    assert first["left_out"][0] == {
        "what": "joint",
        "why": "one epoch of all these tasks takes 0.3 minutes more",
    }
    assert "joint" not in first
    assert "joint" not in first["training_seconds"]["0"]
    clock.now = 0.0
    clock.trained.clear()
    second = run_clip(clock, ask(tmp_path, joint=True, budget_minutes=45 * minutes))
    assert clock.trained == [("joint", 1)], "a second round takes 40 seconds, with that of joint training"
    assert list(second["joint"]["0"]) == ["1"]
    clock.now = 0.0
    clock.trained.clear()
    third = run_clip(clock, ask(tmp_path, joint=True, budget_minutes=41 * minutes))
    assert [epoch for _, epoch in clock.trained] == [2, 2, 2]
    assert third["joint"]["0"]["1"] == second["joint"]["0"]["1"]
    assert list(third["joint"]["0"]) == ["1", "2"]


def test_a_joint_epoch_there_is_no_time_for_any_more_is_left_out(tmp_path, clock, quick_evaluation):
    clock.lasts = {2: 40.0}
    results = run_clip(clock, ask(tmp_path, joint=True, budget_minutes=51 / 60 / 0.95))
    assert [epoch for _, epoch in clock.trained] == [1, 1]
    why = "it was expected to take 50 s, and 1 s were left"
    assert results["left_out"][0] == {"what": "joint", "why": why}
    assert "joint" not in results


def test_joint_training_that_is_behind_is_judged_at_its_own_age(tmp_path, clock, quick_evaluation):
    clock.lasts = {5: 30.0}  # longer than planned
    results = run_clip(clock, ask(tmp_path, joint=True, budget_minutes=85 / 60 / 0.95))
    assert [epoch for _, epoch in clock.trained] == [1, 1, 1, 2, 2]
    assert results["epochs"] == [1, 2]
    assert results["trained_epochs"] == {**dict.fromkeys(results["tasks"], 2), "joint": 1}
    assert results["joint"]["0"]["2"] == results["joint"]["0"]["1"]
    assert "no time for epoch 2 of joint: it was expected to take 2" in results["left_out"][0]["why"]


def test_joint_training_may_be_added_to_tasks_that_are_finished(tmp_path, clock, quick_evaluation):
    first = run_clip(clock, ask(tmp_path))
    clock.now = 0.0
    second = run_clip(clock, ask(tmp_path, joint=True, budget_minutes=45 / 60 / 0.95))
    assert clock.trained[-2:] == [("joint", 1), ("joint", 2)]
    assert second["trained_epochs"] == {**first["trained_epochs"], "joint": 2}
    assert second["merged"] == first["merged"], "no merge is lost"


def test_a_task_that_is_added_late_says_why_there_is_no_late_merge(tmp_path, clock, quick_evaluation):
    words = {"suite": "digits", "tasks": ("digits", "mirrored"), "data": None}
    run_clip(clock, ask(tmp_path, **words))
    clock.now = 0.0
    words |= {"tasks": ("digits", "mirrored", "inverted"), "budget_minutes": 15 / 60 / 0.95}
    results = run_clip(clock, ask(tmp_path, **words))
    assert results["epochs"] == [1]
    why = {each["what"]: each["why"] for each in results["left_out"]}["a late merge"]
    assert "inverted began later than the others" in why
    words["budget_minutes"] = 25 / 60 / 0.95
    assert run_clip(clock, ask(tmp_path, **words))["epochs"] == [1, 3]


def test_a_folder_of_other_pretrained_parameters_is_refused(tmp_path, clock):
    run_clip(clock, ask(tmp_path))
    path = Experiment(tmp_path).pretrained
    path.unlink()
    other = {name: part + 1e-3 for name, part in clip.load_visual("tiny-clip").model.state_dict().items()}
    Experiment(tmp_path).keep_pretrained(other)
    with pytest.raises(ValueError, match=r"pretrained.safetensors holds other parameters than .*--runs"):
        run_clip(clock, ask(tmp_path))


def test_a_finished_study_needs_no_more_room(tmp_path, clock, monkeypatch):
    first = run_clip(clock, ask(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(clip_study.shutil, "disk_usage", lambda _path: usage._replace(free=100_000))
    assert run_clip(clock, ask(tmp_path)) == first


def test_joint_training_of_other_tasks_is_another_run(tmp_path, clock, quick_evaluation):
    asked = {"suite": "digits", "tasks": ("digits", "mirrored"), "data": None}
    run_clip(clock, ask(tmp_path, joint=True, budget_minutes=1, **asked))
    asked["tasks"] = ("digits", "mirrored", "inverted")
    clock.now = 0.0
    clock.trained.clear()
    results = run_clip(clock, ask(tmp_path, joint=True, budget_minutes=1, **asked))
    assert clock.trained == [("inverted", 1), ("joint", 1)]
    assert set(results["joint"]["0"]["1"]) == set(asked["tasks"])
    assert (tmp_path / "joint_digits_mirrored").is_dir(), "what was trained before is kept"


def test_what_there_is_no_time_to_judge_besides_is_left_out(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(clip_study, "MOST", 1)
    clock.lasts = {2: 11.6}  # longer than planned
    results = run_clip(clock, ask(tmp_path, budget_minutes=22.1 / 60 / 0.95))
    a_model = 2 * 60 / evaluation.evaluated_images()  # seconds on both tasks
    assert 6 * a_model > 22.1 - 21.6 > 2 * a_model
    assert results["grid"] == []
    assert set(results["cross"]["0"]) == set(results["tasks"])
    why = "it takes 1 s more"
    assert results["left_out"] == [{"what": "coefficients of the mean after epoch 1", "why": why}]


# --- several workers -------------------------------------------------------------------------------------


def test_the_tasks_of_a_round_are_begun_together_the_longest_first(tmp_path, clock, monkeypatch):
    """Two workers in the plan; the calls of the engine are real, but a round lasts as long as planned."""
    begun = []

    def together(encoder, given, **options):
        begin = clock.now
        found = finetune_all(encoder, given, **options)
        begun.append([(name, job.settings.epochs) for name, job in given.items()])
        clock.now = begin + 10.0 * math.ceil((clock.now - begin) / 20.0)
        return found

    monkeypatch.setattr(rounds, "finetune_all", together)
    monkeypatch.setattr(clip_study, "opened", lambda *_, **__: contextlib.nullcontext(2))
    monkeypatch.setattr(clip_study, "CONVERGED", {"inverted": 1})
    monkeypatch.setattr(
        clip_study, "training_images", lambda *_, **__: {"digits": 60, "inverted": 80, "mirrored": 70}
    )
    words = {"suite": "digits", "tasks": ("digits", "inverted", "mirrored"), "data": None}
    results = run_clip(clock, ask(tmp_path, budget_minutes=38 / 60 / 0.95, **words))
    first, second = [("inverted", 1), ("mirrored", 1), ("digits", 1)], [("mirrored", 2), ("digits", 2)]
    assert begun == [first, second]
    assert clock.now == 30.0, "two workers need two turns for three tasks, and one for two"
    assert results["epochs"] == [1, 2]
    assert "no time for epoch 3 of digits, mirrored" in results["left_out"][-1]["why"]


# --- the command line ------------------------------------------------------------------------------------


def test_the_recorded_command_parses_and_names_no_folder(tmp_path):
    line = (
        "record clip --budget-minutes 7.5 --gpu --backbone tiny-clip --suite digits --tasks digits mirrored "
        "--joint --micro-batch-size 16 --engine ray"
    )
    machine = ["--runs", str(tmp_path), "--address", "10.0.0.1:6379", "--workers", "3"]
    request = parse([*line.split(), *machine])
    command = command_of(request)
    assert command == f"python -m taskvec_mini.benchmarks {line}"
    again = parse(command.split()[3:])
    places = {"runs": tmp_path, "address": "10.0.0.1:6379", "workers": 3}
    assert replace(again, clip=replace(again.clip, **places)) == request


def test_the_recorded_command_keeps_names_with_spaces_and_every_digit():
    tasks = ("odd or even", "below five")
    request = parse(
        ["record", "clip", "--budget-minutes", "100.12345", "--suite", "digits", "--tasks", *tasks]
    )
    again = parse(shlex.split(command_of(request))[3:])
    assert (again.clip.tasks, again.clip.budget_minutes) == (tasks, 100.12345)


def test_the_command_writes_a_complete_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clip_study, "load_tasks", partial(load_tasks, limit=30))
    monkeypatch.setattr(rounds, "RECIPE", replace(rounds.RECIPE, batch_size=10))
    for module, name, value in (
        (clip_study, "MOST", 1),
        (evaluation, "TEST", 20),
        (evaluation, "VALIDATION", 9),
    ):
        monkeypatch.setattr(module, name, value)
    line = (
        "record clip --budget-minutes 600 --backbone tiny-clip --suite digits --tasks digits mirrored "
        "--micro-batch-size 5"
    )
    where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "clip.json")]
    assert command_line.main([*line.split(), *where]) == 0
    found = records.read(tmp_path / "clip.json")
    assert found["command"] == f"python -m taskvec_mini.benchmarks {line}"
    assert found["results"]["epochs"] == [1]
    assert (found["settings"]["speed"]["micro_batch_size"], found["settings"]["workers"]) == (5, 1)
    assert json.loads((tmp_path / "runs" / "digits" / "settings.json").read_text())["speed"] == {
        "micro_batch_size": 5
    }
    assert found["settings"]["measured_speed"]["training_images_per_second"] > 0
    assert set(found["data"]) == {"digits", "mirrored"}
    assert "measured: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    ["--gpu", "--budget-minutes 5", "--tasks dtd", "--runs x", "--suite hub", "--joint", "--engine ray",
     "--workers 2", "--micro-batch-size 4"],
)  # fmt: skip
def test_other_studies_refuse_the_options_of_this_one(capsys, words):
    assert command_line.main(["record", "06_search", *words.split()]) == 2
    said = capsys.readouterr().err
    assert f"the study '06_search' takes no {words.split()[0]}, only clip does" in said
