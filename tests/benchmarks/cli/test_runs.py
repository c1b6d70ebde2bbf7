"""`finetune`, `merge` and `evaluate` from the command line: what they compute, and how they refuse."""

import copy
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from taskvec_mini import TaskVector, _files, merging
from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.cli import runs as run_commands
from taskvec_mini.benchmarks.cli.requests import ListRequest
from taskvec_mini.benchmarks.data import DATA_VARIABLE, load_tasks, suites
from taskvec_mini.benchmarks.encoders import clip, load_backbone
from taskvec_mini.benchmarks.engines import jobs
from taskvec_mini.benchmarks.evaluation import accuracies
from taskvec_mini.benchmarks.heads import TEMPLATES, load_head, prototype_head, zero_shot_head
from taskvec_mini.benchmarks.training import Experiment
from taskvec_mini.errors import UserError

TASKS = ["digits", "odd or even"]
ENCODER = ["--suite", "digits", "--backbone", "random-pocket"]
TRAINING = [*ENCODER, "--limit", "60", "--batch-size", "20", "--learning-rate", "1e-3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _no_folder_of_data(monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)


def call(*words):
    """The exit status of one command line."""
    return command_line.main([str(word) for word in words])


def finetune(folder, *more):
    return call("finetune", *TRAINING, "--tasks", *TASKS, "--epochs", 2, "--out", folder, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two tiny runs of two epochs."""
    folder = tmp_path_factory.mktemp("experiments") / "deeper" / "runs"
    assert finetune(folder) == 0
    return folder


# --- finetune --------------------------------------------------------------------------------------------


def test_finetune_writes_a_run_a_task_and_what_they_share(runs):
    for name in TASKS:
        assert {"head.safetensors", "epoch_001.safetensors", "epoch_002.safetensors", "epoch_001.json"} <= {
            path.name for path in (runs / name).iterdir()
        }
    shared = json.loads((runs / "experiment.json").read_text(encoding="utf-8"))
    assert shared == {
        "suite": "digits",
        "backbone": "random-pocket",
        "heads": "prototypes",
        "limit": 60,
        "seed": 0,
    }


def contents(folder):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    }


def test_a_second_call_trains_nothing_and_changes_no_file(runs, capsys):
    before = contents(runs)
    assert finetune(runs) == 0
    assert contents(runs) == before
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    assert [row[-5:-3] for row in rows] == [["2", "0"], ["2", "0"]], "two epochs each, none of them now"


def test_more_epochs_go_on_from_those_that_are_there(runs, tmp_path, capsys):
    assert finetune(tmp_path, "--epochs", 1) == 0
    first = (tmp_path / "digits" / "epoch_001.safetensors").read_bytes()
    capsys.readouterr()
    assert finetune(tmp_path, "--epochs", 2) == 0
    assert (tmp_path / "digits" / "epoch_001.safetensors").read_bytes() == first
    assert capsys.readouterr().out.splitlines()[1].split()[1:3] == ["2", "1"], "one of two epochs now"
    ends = [load_file(folder / "digits" / "epoch_002.safetensors") for folder in (runs, tmp_path)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_fewer_epochs_than_are_there_train_nothing(runs, capsys):
    before = contents(runs)
    assert finetune(runs, "--epochs", 1) == 0
    assert contents(runs) == before
    assert capsys.readouterr().out.splitlines()[1].split()[1:3] == ["1", "0"]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("foo", "is no device that torch knows; give cpu or cuda"),
        ("cuda:x", "is no device that torch knows; give cpu or cuda"),
        ("cuda:99", "torch sees no such GPU here; leave --device out, or give cpu"),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "evaluate", "throughput"])
def test_a_device_that_is_not_there_is_told_in_a_line(runs, tmp_path, capsys, command, word, why):
    if command == "evaluate":
        assert evaluate(runs, tmp_path, "--tune", "--device", word) == 2
    else:
        assert call(command, "--out", tmp_path / "new", "--device", word) == 2
    assert re.match(rf"error: --device '{word}':? {re.escape(why)}", capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "61"], "holds runs with limit = 60, not 61; choose another folder with --out"),
        (["--seed", "1"], "holds runs with seed = 0, not 1"),
        (["--suite", "torchvision"], "holds runs with suite = 'digits', not 'torchvision'"),
        (["--heads", "zero-shot"], "random-pocket has no text encoder, which zero-shot heads are made with"),
        (["--batch-size", "30"], "settings.batch_size = 20, but this run has 30; use another folder"),
    ],
)
def test_runs_of_another_kind_need_another_folder(runs, capsys, words, message):
    before = contents(runs)
    assert finetune(runs, *words) == 2
    assert message in capsys.readouterr().err
    assert contents(runs) == before


def test_a_class_without_an_image_is_told_before_the_first_task_is_trained(tmp_path, capsys):
    tasks = ["--tasks", "odd or even", "digits"]
    assert finetune(tmp_path / "runs", *tasks, "--limit", 5) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: task 'digits' has no training image of ")
    assert said.endswith("(a higher limit, on the command line --limit)\n")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_head_is_made_again_by_the_same_command(runs, tmp_path, capsys):
    folder, vector = tmp_path / "runs", tmp_path / "merged.safetensors"
    shutil.copytree(runs, folder)
    assert call("merge", "--runs", folder, "--out", vector) == 0
    head, before = folder / "digits" / "head.safetensors", contents(folder)
    whole = head.read_bytes()
    judge = lambda: call("evaluate", "--runs", folder, "--vector", vector, "--scaling-coef", 1)  # noqa: E731
    again = "give the command that made the runs (`finetune` or `record`) again"
    for damaged in (whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1])):
        head.write_bytes(damaged)
        for command in (judge, lambda: finetune(folder)):
            assert command() == 2
            said = capsys.readouterr().err
            assert f"{head} is " in said
            assert "truncated or corrupted (" in said
            assert f"; delete this file and {again}" in said
            assert "save()" not in said
    head.unlink()
    assert judge() == 2
    assert f"there is no head {head}; {again}" in capsys.readouterr().err
    assert finetune(folder) == 0
    assert {path: data for path, (data, _) in contents(folder).items()} == {
        path: data for path, (data, _) in before.items()
    }


def test_a_word_mistyped_leaves_no_folder_behind(tmp_path):
    assert finetune(tmp_path / "runs", "--tasks", "digts") == 2
    assert list(tmp_path.iterdir()) == []


# --- the heads of CLIP -----------------------------------------------------------------------------------


def clip_runs(folder, *more):
    words = ["--suite", "digits", "--backbone", "tiny-clip", "--limit", 60, "--device", "cpu"]
    return call("finetune", *words, "--tasks", "digits", "mirrored", "--out", folder, *more)


def prototypes_of(folder):
    return {name: load_head(folder / name / "head.safetensors").prototypes for name in ("digits", "mirrored")}


@pytest.fixture
def clip_tasks():
    pytest.importorskip("open_clip")
    return load_tasks(["digits", "mirrored"], suite="digits", limit=60)


def test_encoders_of_clip_get_heads_from_texts_unless_told_otherwise(clip_tasks, tmp_path, capsys):
    both = clip.load_clip("tiny-clip")
    heads = {
        name: zero_shot_head(both, task, templates=TEMPLATES["digits"]) for name, task in clip_tasks.items()
    }
    assert clip_runs(tmp_path / "texts") == clip_runs(tmp_path / "means", "--heads", "prototypes") == 0
    for name, found in prototypes_of(tmp_path / "texts").items():
        assert torch.equal(found, heads[name].prototypes)
    for name, found in prototypes_of(tmp_path / "means").items():
        assert torch.equal(found, prototype_head(load_backbone("tiny-clip"), clip_tasks[name]).prototypes)
    for folder, kind, other in (("texts", "zero-shot", "prototypes"), ("means", "prototypes", "zero-shot")):
        assert json.loads((tmp_path / folder / "experiment.json").read_text())["heads"] == kind
        before = contents(tmp_path / folder)
        assert clip_runs(tmp_path / folder, "--heads", other) == 2
        assert f"holds runs with heads = {kind!r}, not {other!r}" in capsys.readouterr().err
        assert contents(tmp_path / folder) == before
    path = tmp_path / "merged.safetensors"
    assert call("merge", "--runs", tmp_path / "texts", "--out", path) == 0
    words = ["--runs", tmp_path / "texts", "--vector", path, "--device", "cpu"]
    assert call("evaluate", *words, "--scaling-coef", 0.5) == 0
    zero_shot = accuracies(load_backbone("tiny-clip"), heads, clip_tasks, split="test")
    rows = rows_of(capsys.readouterr().out.partition("\n")[2])
    assert {name: rows[name][0] for name in zero_shot} == pytest.approx(zero_shot, abs=6e-4)


def test_a_task_without_templates_is_told_before_anything_is_made(clip_tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(TEMPLATES, "digits")
    assert clip_runs(tmp_path / "runs") == 2
    said = capsys.readouterr().err
    assert "there are no templates for the task 'digits', so it has no zero-shot head" in said
    assert "take --heads prototypes for all" in said
    assert list(tmp_path.iterdir()) == []
    assert clip_runs(tmp_path / "runs", "--heads", "prototypes") == 0


def test_the_text_encoder_is_gone_when_finetuning_begins(clip_tasks, tmp_path, monkeypatch):
    loaded, there, load, train = [], [], clip.load_clip, jobs.finetune

    def watched(*words, **more):
        model = load(*words, **more)
        loaded.append(weakref.ref(model.transformer))
        return model

    def finetuned(*words, **more):
        there.append([each() is not None for each in loaded])
        return train(*words, **more)

    monkeypatch.setattr(clip, "load_clip", watched)
    monkeypatch.setattr(jobs, "finetune", finetuned)
    assert clip_runs(tmp_path) == 0
    assert there == [[False], [False, False]]


# --- merge -----------------------------------------------------------------------------------------------


def own_vectors(runs, epoch):
    """The task vectors, made by hand from the files."""
    start = load_backbone("random-pocket").model.state_dict()
    for name in TASKS:
        state = load_file(runs / name / f"epoch_{epoch:03}.safetensors")
        yield TaskVector.between(start, {key: state[key] for key in start})


@pytest.mark.parametrize(
    ("words", "rule", "options", "epoch"),
    [
        ("", "task_arithmetic", {}, 2),
        ("--rule mean --epoch 1", "mean", {}, 1),
        (
            "--rule ties --option density=0.5 --option per_tensor=TRUE",
            "ties",
            {"density": 0.5, "per_tensor": True},
            2,
        ),
        ("--rule ties --option elect=count", "ties", {"elect": "count"}, 2),
        (
            "--rule breadcrumbs --option smallest=0 --option largest=.1",
            "breadcrumbs",
            {"smallest": 0, "largest": 0.1},
            2,
        ),
        ("--rule dare --seed 3", "dare", {"generator": 3}, 2),
    ],
)
def test_merge_applies_the_rule_to_the_task_vectors_of_an_epoch(
    runs, tmp_path, capsys, words, rule, options, epoch
):
    path = tmp_path / "new" / "merged.safetensors"
    assert call("merge", "--runs", runs, *words.split(), "--out", path) == 0
    if "generator" in options:
        options = {"generator": torch.Generator().manual_seed(options["generator"])}
    expected = getattr(merging, rule)(own_vectors(runs, epoch), **options)
    found = TaskVector.load(path)
    assert found.layout == expected.layout
    assert torch.equal(found.flat, expected.flat)
    said = capsys.readouterr().out
    assert f"{rule} of digits, odd or even after epoch {epoch}" in said
    assert f"{expected.norm():.4g}" in said


def test_merge_takes_the_tasks_in_the_order_asked(runs, tmp_path, capsys):
    assert call("merge", "--runs", runs, "--tasks", "odd or even", "--out", tmp_path / "m.safetensors") == 0
    assert torch.equal(TaskVector.load(tmp_path / "m.safetensors").flat, list(own_vectors(runs, 2))[1].flat)


def test_a_run_that_is_one_epoch_behind_decides_the_common_epoch(runs, tmp_path, capsys):
    assert finetune(tmp_path, "--epochs", 1, "--tasks", "digits") == 0
    assert finetune(tmp_path, "--epochs", 2, "--tasks", "odd or even") == 0
    assert call("merge", "--runs", tmp_path, "--out", tmp_path / "m.safetensors") == 0
    assert torch.equal(TaskVector.load(tmp_path / "m.safetensors").flat, sum(own_vectors(runs, 1)).flat)
    assert call("merge", "--runs", tmp_path, "--epoch", 2, "--out", tmp_path / "m.safetensors") == 2
    assert "have not epoch 2 in common; there is 1: finetune longer" in capsys.readouterr().err


def test_runs_that_began_with_other_weights_are_refused(runs, tmp_path, capsys, monkeypatch):
    def other(*_, **__):
        backbone = load_backbone("random-pocket")
        backbone.model.project.bias.data += 1e-3
        return backbone

    monkeypatch.setattr(run_commands, "load_backbone", other)
    assert call("merge", "--runs", runs, "--out", tmp_path / "m.safetensors") == 2
    assert "began with other weights of random-pocket than are here now" in capsys.readouterr().err


# --- evaluate --------------------------------------------------------------------------------------------


def by_hand(state, head, images, labels):
    """Accuracy from a model of its own, all images at once."""
    backbone = load_backbone("random-pocket")
    model = copy.deepcopy(backbone.model)
    model.load_state_dict(state)
    with torch.no_grad():
        answers = head(model(backbone.prepare(images))).argmax(1).tolist()
    return sum(a == b for a, b in zip(answers, labels.tolist(), strict=True)) / len(labels)


def rows_of(text):
    """The rows of a printed table: the last numbers of each line, by what stands before them."""
    lines = itertools.takewhile(lambda line: not line.startswith("accuracies"), text.splitlines()[1:])
    rows = [re.split(r"\s{2,}", line) for line in lines]
    return {row[0]: [float(value) for value in row[1:]] for row in rows}


@pytest.fixture(scope="module")
def expected(runs):
    """Validation accuracies by hand: zero-shot, individual, merged at 0.5 and at 1.5."""
    tasks = load_tasks(TASKS, suite="digits", limit=60)
    backbone = load_backbone("random-pocket")
    start, vector = backbone.model.state_dict(), sum(own_vectors(runs, 2))
    found = {}
    for name, task in tasks.items():
        own = load_file(runs / name / "epoch_002.safetensors")
        states = [start, own, vector.apply_to(start, 0.5), vector.apply_to(start, 1.5)]
        head = prototype_head(backbone, task)
        found[name] = [by_hand(state, head, task.val_images, task.val_labels) for state in states]
    return found


def evaluate(runs, folder, *words):
    path = folder / "merged.safetensors"
    assert call("merge", "--runs", runs, "--out", path) == 0
    return call("evaluate", "--runs", runs, "--vector", path, "--split", "val", "--device", "cpu", *words)


@pytest.mark.parametrize(("coef", "column"), [(0.5, 2), (1.5, 3)])
def test_the_table_holds_the_accuracies_of_all_three_encoders(runs, expected, tmp_path, capsys, coef, column):
    assert evaluate(runs, tmp_path, "--scaling-coef", coef) == 0
    text = capsys.readouterr().out.partition("\n")[2]
    assert text.splitlines()[0].split() == ["task", "zero-shot", "individual", "merged", "normalised"]
    rows = rows_of(text)
    assert list(rows) == [*TASKS, "mean"]
    for name, (zero_shot, individual, *merged) in expected.items():
        ratio = merged[column - 2] / individual
        assert rows[name] == pytest.approx([zero_shot, individual, merged[column - 2], ratio], abs=6e-4)
    assert rows["mean"] == pytest.approx(
        [sum(row) / 2 for row in zip(*(rows[n] for n in TASKS), strict=True)], abs=1e-3
    )
    assert f"validation images; individual: after epoch 2; scaling coefficient {coef:g} (as given)" in text


def test_tune_takes_the_coefficient_that_is_best_on_validation_images(runs, expected, tmp_path, capsys):
    means = [sum(row[column] for row in expected.values()) for column in (2, 3)]
    assert means[0] != means[1]
    best = (0.5, 1.5)[means.index(max(means))]
    assert evaluate(runs, tmp_path, "--tune", 0.5, 1.5) == 0
    said = f"scaling coefficient {best:g} (the best mean validation accuracy of 2 tried, 0.5 to 1.5)"
    assert said in capsys.readouterr().out


def test_evaluate_takes_the_tasks_and_the_epoch_asked(runs, tmp_path, capsys):
    assert evaluate(runs, tmp_path, "--scaling-coef", 1, "--epoch", 1, "--tasks", TASKS[1]) == 0
    text = capsys.readouterr().out.partition("\n")[2]
    assert "individual: after epoch 1;" in text
    rows = rows_of(text)
    assert list(rows) == [TASKS[1], "mean"]
    task = load_tasks(TASKS[1], suite="digits", limit=60)[TASKS[1]]
    head = prototype_head(load_backbone("random-pocket"), task)
    state = load_file(runs / TASKS[1] / "epoch_001.safetensors")
    own = by_hand(state, head, task.val_images, task.val_labels)
    assert rows[TASKS[1]][1] == pytest.approx(own, abs=6e-4)


# --- a vector knows its past -----------------------------------------------------------------------------


def test_a_merged_vector_says_what_it_is_made_of(runs, tmp_path):
    path = tmp_path / "m.safetensors"
    words = ["--rule", "dare", "--option", "drop_rate=0.5", "--seed", 3, "--epoch", 1]
    assert call("merge", "--runs", runs, *words, "--out", path) == 0
    about = TaskVector.load(path).about
    assert (about["rule"], about["options"], about["seed"]) == ("dare", {"drop_rate": 0.5}, 3)
    assert (about["suite"], about["backbone"], about["epoch"]) == ("digits", "random-pocket", 1)
    start = load_backbone("random-pocket").model.state_dict()
    assert about["pretrained"] == _files.checksum(start)
    assert list(about["tasks"]) == TASKS
    for name in TASKS:
        assert about["tasks"][name]["checkpoint"] == _files.sha256(runs / name / "epoch_001.safetensors")
    assert about["tasks"][TASKS[0]]["run"] != about["tasks"][TASKS[1]]["run"]


def judge(folder, vector, *words):
    return call(
        "evaluate", "--runs", folder, "--vector", vector, "--scaling-coef", 1, "--device", "cpu", *words
    )


def test_a_merge_is_judged_on_its_tasks_beside_the_specialists_of_its_epoch(runs, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    assert call("merge", "--runs", runs, "--tasks", "digits", "--epoch", 1, "--out", path) == 0
    capsys.readouterr()
    assert judge(runs, path) == 0
    text = capsys.readouterr().out
    assert list(rows_of(text)) == ["digits", "mean"]
    zero_shot, individual, merged, ratio = rows_of(text)["digits"]
    assert (merged, ratio) == (individual, 1.0)  # the merge of one task is its specialist
    assert merged != zero_shot
    assert "individual: after epoch 1;" in text
    assert "merged: task_arithmetic of digits after epoch 1" in text


def test_a_merge_is_not_judged_as_one_of_other_tasks(runs, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    assert call("merge", "--runs", runs, "--tasks", "digits", "--out", path) == 0
    assert judge(runs, path, "--tasks", *TASKS) == 2
    assert "is made of digits and knows nothing of odd or even; leave it out" in capsys.readouterr().err


def test_a_merge_of_other_runs_is_refused(runs, tmp_path, capsys):
    path, other = tmp_path / "m.safetensors", tmp_path / "other"
    assert call("merge", "--runs", runs, "--out", path) == 0
    assert finetune(other, "--learning-rate", "2e-3") == 0
    assert judge(other, path) == 2
    assert f"{path} is made of another run of digits than {other} holds" in capsys.readouterr().err
    # the same run, on a machine that rounds in another way
    shutil.rmtree(other)
    shutil.copytree(runs, other)
    run = Experiment.open(other).run("digits")
    state = {name: part + 1e-6 for name, part in run.state(2).items()}
    about = {"run": run.checksum(), "epoch": 2}
    _files.write_tensors(run.checkpoint(2), state, about, kind="taskvec_mini.checkpoint/2")
    assert judge(other, path) == 2
    assert f"{path} is made of another checkpoint of digits than {other} holds" in capsys.readouterr().err


def test_a_merge_from_other_weights_is_refused(runs, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    assert call("merge", "--runs", runs, "--out", path) == 0
    vector = TaskVector.load(path)
    vector.save(path, about={**vector.about, "pretrained": "01234567"})
    assert judge(runs, path) == 2
    assert "began with other weights of random-pocket than random-pocket has here" in capsys.readouterr().err


def test_a_vector_without_a_past_is_judged_only_against_what_is_named(runs, tmp_path, capsys):
    path = tmp_path / "own.safetensors"
    sum(own_vectors(runs, 2)).save(path)
    for words in ([], ["--epoch", 2], ["--tasks", *TASKS]):
        assert judge(runs, path, *words) == 2
        assert f"{path} does not say what it is made of; make it with `merge`" in capsys.readouterr().err
    assert judge(runs, path, "--epoch", 2, "--tasks", *TASKS) == 0


@pytest.mark.parametrize("name", ["epoch_002.safetensors", "head.safetensors", "latest.safetensors"])
def test_a_file_of_another_task_s_run_is_refused_by_name(runs, tmp_path, capsys, name):
    folder, vector = tmp_path / "runs", tmp_path / "m.safetensors"
    shutil.copytree(runs, folder)
    assert call("merge", "--runs", folder, "--out", vector) == 0
    shutil.copy(runs / "odd or even" / name, folder / "digits" / name)
    capsys.readouterr()
    if name.startswith("latest"):
        assert finetune(folder, "--epochs", 3) == 2
    else:
        assert judge(folder, vector) == 2
    said = capsys.readouterr().err
    assert str(folder / "digits" / name) in said
    assert "another run" in said or "is not the head that the run of digits was trained with" in said


def test_folder_and_seed_of_the_data_reach_every_command(tmp_path, monkeypatch, capsys):
    digits = load_tasks("digits", suite="digits")["digits"]
    arrays = {"class_names": np.array(digits.class_names)}
    for part in ("train", "test"):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = (each.numpy() for each in digits.part(part))
    path, runs = tmp_path / "mnist.npz", tmp_path / "runs"
    np.savez(path, **arrays)
    known = suites.BundleFile(path.name, _files.sha256(path))
    monkeypatch.setattr(suites, "bundle_files", lambda: {"mnist": known})
    words = ["--suite", "bundle", "--tasks", "mnist", "--seed", 3, "--epochs", 1, "--data", tmp_path]
    assert finetune(runs, *words) == 0
    task = load_tasks("mnist", folder=tmp_path, limit=60, seed=3)["mnist"]
    backbone = load_backbone("random-pocket")
    head = prototype_head(backbone, task)
    assert torch.equal(load_head(runs / "mnist" / "head.safetensors").prototypes, head.prototypes)
    again = Experiment.open(runs).tasks(["mnist"], tmp_path, encoder=backbone)["mnist"]  # as a worker
    assert torch.equal(again.train_images, task.train_images)
    capsys.readouterr()
    assert evaluate(runs, tmp_path, "--scaling-coef", 0, "--data", tmp_path) == 0
    text = capsys.readouterr().out.partition("\n")[2]
    assert "scaling coefficient 0 (as given)" in text
    zero_shot = by_hand(backbone.model.state_dict(), head, task.val_images, task.val_labels)
    found = rows_of(text)["mnist"]
    assert found[0] == found[2] == pytest.approx(zero_shot, abs=6e-4)


def test_an_individual_accuracy_of_zero_leaves_the_ratio_open():
    text = run_commands.table({"individual": {"a": 0.0, "b": 0.5}, "merged": {"a": 0.1, "b": 0.5}})
    assert [line.split()[-1] for line in text.splitlines()] == ["normalised", "nan", "1.000", "nan"]


# --- errors ----------------------------------------------------------------------------------------------


BUNDLE = "finetune --suite bundle --tasks mnist --out {}/r --backbone random-pocket"
DIGITS = "finetune --out {}/r --backbone random-pocket"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (BUNDLE, "set the environment variable TASKVEC_MINI_DATA"),
        (BUNDLE, "(on the command line: --data FOLDER, --suite digits)"),
        ("finetune --suite text --out {}/r", "suite='text-hub' downloads the same tasks"),
        (f"{BUNDLE} --data {{}}/no", "is no folder; give the folder"),
        (f"{BUNDLE} --data {{file}}", "is no folder; give the folder"),
        (f"{BUNDLE} --data {{}}", "mnist.npz is missing"),
        ("finetune --out {}/r --backbone pockt", "unknown backbone 'pockt': did you mean 'pocket'"),
        ("finetune --out {}/r --backbone pocket-text", "pocket-text takes texts, but the tasks of the suite"),
        (f"{DIGITS} --tasks digts", "did you mean 'digits'"),
        (f"{DIGITS} --tasks digits digits", "the task 'digits' is given twice; name each task once"),
        (f"{DIGITS} --epochs 0", "epochs must be at least 1"),
        (
            f"{DIGITS} --learning-rate 0",
            "above 0, got 0.0; choose a positive value such as 0.0001",
        ),
        (f"{DIGITS} --seed 99999999999999999999", "seed must be below 2**63, got 99999999999999999999"),
        (f"{DIGITS} --limit 0", "limit must be at least 1"),
        ("finetune --out {file}", "could not be made"),
        ("finetune --out {file}/r", "could not be made"),
        ("merge --runs {}/none", "holds no runs; make some with `finetune`"),
        ("merge --runs {file}", "holds no runs; make some with `finetune`"),
        (
            "merge --runs {runs} --tasks digits digits",
            "the task 'digits' is given twice; name each task once",
        ),
        ("merge --runs {runs} --rule tie", "unknown merging rule 'tie': did you mean 'ties'"),
        ("merge --runs {runs} --tasks digit", "did you mean 'digits'"),
        ("merge --runs {runs} --epoch 9", "have not epoch 9 in common; there is 1, 2: finetune longer"),
        ("merge --runs {runs} --rule dare --seed -1", "seed must be at least 0, got -1"),
        ("merge --runs {runs} --out {file}/merged.safetensors", "merged.safetensors could not be written"),
        ("merge --runs {runs} --out {}", "is a folder; give the name of a file"),
        ("merge --runs {runs} --rule ties --option densty=0.3", "option of ties 'densty': did you mean"),
        ("merge --runs {runs} --rule ties --option density", "'density' must be NAME=VALUE, for instance"),
        ("merge --runs {runs} --rule ties --option density=high", "the value must be a number, such as 0.2"),
        ("merge --runs {runs} --rule ties --option density=true", "the value must be a number, such as 0.2"),
        ("merge --runs {runs} --rule ties --option per_tensor=1", "must be true or false, such as false"),
        ("merge --runs {runs} --rule mean --option density=0.3", "mean has no options, got 'density=0.3'"),
        ("merge --runs {runs} --rule dare --option generator=3", "unknown option of dare 'generator'"),
        (
            "evaluate --runs {runs} --vector {}/none.safetensors --tune",
            "is not there; make the file with `merge`",
        ),
        ("evaluate --runs {runs} --vector {} --tune", "is a folder; make the file with `merge`"),
        ("evaluate --runs {runs} --vector {runs}/experiment.json --tune", "is truncated or corrupted"),
        ("throughput --out {file}/record.json", "record.json could not be written"),
        ("throughput --workers -1", "workers must be at least 0, got -1"),
        ("record no_such_study", "unknown study 'no_such_study'"),
    ],
)
def test_an_error_is_one_clean_line_and_status_2(runs, tmp_path, capsys, words, message):
    file = tmp_path / "file"
    file.write_text("no folder")
    line = (
        words.replace("{runs}", str(runs)).replace("{file}", str(file)).replace("{}", str(tmp_path)).split()
    )
    assert command_line.main(line) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert len(said.err.splitlines()) == 1
    assert message in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing was made"
    with pytest.raises(UserError):
        command_line.main([*line, "--debug"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize(
    "words",
    [
        f"{DIGITS} --limit 60",
        "merge --runs {runs} --out {}/r/merged.safetensors",
        "throughput --out {}/r/t.json",
    ],
)
def test_a_folder_that_may_not_be_written_is_named(runs, tmp_path, capsys, words):
    (tmp_path / "r").mkdir(mode=0o500)
    line = words.replace("{runs}", str(runs)).replace("{}", str(tmp_path)).split()
    assert command_line.main(line) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert str(tmp_path / "r") in said
    (tmp_path / "r").chmod(0o700)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("experiment.json", "{}", "experiment.json is damaged, it names no suite; delete this file and"),
        ("experiment.json", "{", "experiment.json is damaged, it is no description of an experiment"),
        ("digits/settings.json", "{}", "settings.json is damaged, it does not say what the run is; delete"),
        ("digits/settings.json", "", "settings.json is damaged"),
        ("digits/epoch_002.safetensors", "", "epoch_002.safetensors"),
        ("digits/head.safetensors", "", "head.safetensors"),
        ("merged.safetensors", "", "merged.safetensors"),
    ],
)
def test_a_damaged_file_of_an_experiment_is_named(runs, tmp_path, capsys, name, content, message):
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    vector = folder / "merged.safetensors"
    assert call("merge", "--runs", folder, "--out", vector) == 0
    (folder / name).write_text(content)
    capsys.readouterr()
    words = ["--runs", folder, "--vector", vector, "--scaling-coef", 1, "--device", "cpu"]
    assert call("evaluate", *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert message in said


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"epoch": 2}'])
def test_a_damaged_record_of_an_epoch_is_named_before_anything_is_trained(runs, tmp_path, capsys, content):
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    record = folder / "digits" / "epoch_002.json"
    record.write_text(content)
    assert finetune(folder, "--epochs", 3) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: task 'digits': {record} is damaged")
    record.unlink()
    assert finetune(folder) == 0
    assert record.read_bytes() == (runs / "digits" / "epoch_002.json").read_bytes()


@pytest.mark.parametrize(
    "bug",
    [
        KeyError("loss"),
        TypeError("'NoneType' object is not subscriptable"),
        AttributeError("'NoneType' object has no attribute 'loss'"),
        ValueError("math domain error"),
        RuntimeError("The size of tensor a (3) must match"),
        OSError(5, "Input/output error"),
        ZeroDivisionError("division by zero"),
        AssertionError("a bug"),
    ],
)
def test_a_bug_is_not_taken_for_a_user_s_error(monkeypatch, capsys, bug):
    def broken(_request):
        raise bug

    monkeypatch.setitem(command_line.FUNCTIONS, ListRequest, broken)
    with pytest.raises(type(bug)) as caught:
        call("list")
    assert caught.value is bug
    assert capsys.readouterr().err == ""


BROKEN = """
import sys
from taskvec_mini.benchmarks import __main__ as line
from taskvec_mini.benchmarks.training import finetune
from taskvec_mini.benchmarks.engines import jobs
jobs.finetune = lambda *_, **__: {}.get("loss")[0]
sys.exit(line.main(sys.argv[1:]))
"""


def test_a_bug_in_a_task_shows_its_traceback_and_its_task(tmp_path):
    words = [*TRAINING, "--tasks", "digits", "--out", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, "finetune", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-2:] == [
        "TypeError: 'NoneType' object is not subscriptable",
        "while finetuning on task 'digits'",
    ]


def test_stopping_by_hand_is_no_error_with_a_traceback(monkeypatch, capsys):
    def stopped(_request):
        raise KeyboardInterrupt

    monkeypatch.setitem(command_line.FUNCTIONS, ListRequest, stopped)
    assert call("list") == 130
    assert "the same command goes on from there" in capsys.readouterr().err


TALKATIVE = """
import sys
from taskvec_mini.benchmarks import __main__ as line
from taskvec_mini.benchmarks.cli.requests import ListRequest
line.FUNCTIONS[ListRequest] = lambda _: print("many words " * 100_000)
sys.exit(line.main(["list"]))
"""


def test_a_reader_of_the_pipe_may_stop_early():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", TALKATIVE], **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
