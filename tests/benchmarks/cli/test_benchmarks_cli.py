"""The command line of the benchmarks: what it promises in its help, what it computes, how it refuses."""

import argparse
import copy
import dataclasses
import inspect
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from taskvec_mini import TaskVector, merging, records
from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.cli import list as _cli_list
from taskvec_mini.benchmarks.cli import record as _cli_record
from taskvec_mini.benchmarks.cli import runs as _cli_runs
from taskvec_mini.benchmarks.cli import words as _cli_words
from taskvec_mini.benchmarks.data import suites as datasets
from taskvec_mini.benchmarks.encoders import clip
from taskvec_mini.benchmarks.encoders.load import MOBILENET_WEIGHTS, load_backbone
from taskvec_mini.benchmarks.engines import jobs
from taskvec_mini.benchmarks.evaluation import accuracy as evaluation
from taskvec_mini.benchmarks.heads import load_head, prototype_head
from taskvec_mini.benchmarks.heads import zero_shot as clip_heads
from taskvec_mini.benchmarks.heads.templates import TEMPLATES
from taskvec_mini.benchmarks.studies import registry as studies
from taskvec_mini.benchmarks.training import experiment as _cli_shelf
from taskvec_mini.benchmarks.training.settings import Settings

TASKS = ["digits", "odd or even"]
ENCODER = ["--suite", "digits", "--backbone", "random-pocket"]
TRAINING = [*ENCODER, "--limit", "60", "--batch-size", "20", "--learning-rate", "1e-3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _no_folder_of_data(monkeypatch):
    monkeypatch.delenv(datasets.FOLDER_VARIABLE, raising=False)


def call(*words):
    """The exit status of one command line."""
    return command_line.main([str(word) for word in words])


def finetune(folder, *more):
    return call("finetune", *TRAINING, "--tasks", *TASKS, "--epochs", 2, "--out", folder, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two tiny runs of two epochs."""
    folder = tmp_path_factory.mktemp("shelf") / "deeper" / "runs"
    assert finetune(folder) == 0
    return folder


# --- help ------------------------------------------------------------------------------------------------


def commands():
    main = command_line.parser()
    return next(action.choices for action in main._actions if isinstance(action.choices, dict))


@pytest.mark.parametrize("name", [None, "list", "finetune", "merge", "evaluate", "record", "throughput"])
def test_the_examples_in_the_help_are_lines_that_parse(name):
    text = (command_line.parser() if name is None else commands()[name]).format_help()
    examples = re.findall(rf"^  {_cli_words.PROGRAM} (.*)$", text, re.MULTILINE)
    assert name == "list" or len(examples) >= 2
    for example in examples:
        assert command_line.parser().parse_args(shlex.split(example)).command


def test_help_explains_every_option_of_every_command():
    for name, command in commands().items():
        assert command.description
        for action in command._actions:
            assert action.help, (name, action.dest)
            default = action.default
            told = (
                action.required or default in (None, False, [], "==SUPPRESS==") or "default:" in action.help
            )
            assert told, (name, action.dest)


def test_finetune_has_a_word_for_every_setting_with_the_default_that_it_names():
    command = commands()["finetune"]
    actions = {action.dest: action for action in command._actions}
    options = command_line.parser().parse_args(["finetune"])
    for setting in dataclasses.fields(Settings):
        assert setting.name in actions
        told = re.search(r"\(default: (.*)\)", actions[setting.name].help)[1]
        value = getattr(_cli_runs.settings_of(options), setting.name)
        assert told == str(value).lower() or float(told) == value, setting.name
        if setting.name not in ("learning_rate", "epochs"):
            assert value == setting.default


def test_the_words_of_finetune_become_its_settings():
    words = (
        "finetune --epochs 7 --seed 5 --optimizer sgd --learning-rate 0.5 --batch-size 9 --weight-decay 0.1 "
        "--momentum 0.9 --warmup-steps 3 --clip-norm 2 --schedule cosine --centre batch"
    )
    found = _cli_runs.settings_of(command_line.parser().parse_args(words.split()))
    assert found == Settings(
        learning_rate=0.5, epochs=7, optimizer="sgd", batch_size=9, weight_decay=0.1, momentum=0.9,
        schedule="cosine", warmup_steps=3, clip_norm=2.0, centre="batch", seed=5,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["finetune", "--epoch", "2"],
        ["evaluate"],
        ["evaluate", "--tune", "--scaling-coef", "1"],
    ],
)
def test_words_that_are_not_understood_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(words)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


# --- list ------------------------------------------------------------------------------------------------


def line_of(text, word):
    return next(line for line in text.splitlines() if line.split()[:1] == [word])


def test_list_shows_what_there_is_and_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(
        studies, "STUDIES", {"first_epoch": SimpleNamespace(description="norms, epoch by epoch")}
    )
    assert call("list") == 0
    text = capsys.readouterr().out
    assert "TASKVEC_MINI_DATA names (not set)" in text
    assert line_of(text, "sign_digits").split() == ["sign_digits", "extra/sign_digits.npz"]
    assert line_of(text, "inverted").split() == ["inverted", "10", "8x8", "grey", "1,213", "135", "449"]
    assert line_of(text, "svhn").split() == ["svhn", "73,257", "26,032", "not", "yet", "there"]
    assert "NOT AVAILABLE" in line_of(text, "mobilenet")
    assert f"{sum(p.numel() for p in load_backbone('random-pocket').model.parameters()):,}" in text
    assert "density=0.2" in line_of(text, "ties")
    assert "--seed" in line_of(text, "dare")
    assert line_of(text, "first_epoch").split(maxsplit=1)[1] == "norms, epoch by epoch"


def test_list_says_which_file_is_damaged_and_goes_on(tmp_path, capsys):
    (tmp_path / "mnist.npz").write_bytes(b"PK and no more")
    assert call("list", "--data", tmp_path) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  mnist .* is truncated or corrupted", text, re.MULTILINE)
    assert re.search(r"^  cars .* is missing; copy it there", text, re.MULTILINE)
    assert line_of(text, "inverted")


@pytest.mark.parametrize(("words", "folder"), [([], "known"), (["--data", "given"], "given")])
def test_list_looks_into_the_folder_given_or_that_of_the_environment(monkeypatch, capsys, words, folder):
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, "known")
    for name in ("_loaded", "_texts"):
        monkeypatch.setattr(_cli_list, name, lambda *of: {"task": of[-2], "folder": f"of {of[-1]}"})
    monkeypatch.setattr(_cli_list, "_backbone", lambda *_: "an encoder")
    assert call("list", *words) == 0
    text = capsys.readouterr().out
    assert f"suite bundle: real images in small files, in {folder}" in text
    assert line_of(text, "mnist").split() == ["mnist", "of", folder]
    assert line_of(text, "sst2").split() == ["sst2", "of", folder]


def test_the_rules_are_the_public_functions_of_merging():
    found = _cli_list.rules()
    assert {"task_arithmetic", "mean", "ties", "dare", "breadcrumbs", "tsv"} <= set(found)
    for name, rule in found.items():
        assert rule is getattr(merging, name)
        assert not name.startswith("_")


# --- finetune --------------------------------------------------------------------------------------------


def test_finetune_writes_a_run_a_task_and_what_they_share(runs):
    for name in TASKS:
        assert {"head.safetensors", "epoch_001.safetensors", "epoch_002.safetensors", "epoch_001.json"} <= {
            path.name for path in (runs / name).iterdir()
        }
    shared = json.loads((runs / "runs.json").read_text(encoding="utf-8"))
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


def test_a_file_half_written_is_no_epoch(tmp_path):
    (tmp_path / "digits").mkdir()
    for name in ("epoch_001.safetensors", "epoch_002.safetensors.part", "epoch_003.json", "head.safetensors"):
        (tmp_path / "digits" / name).touch()
    assert _cli_shelf.Shelf(tmp_path, {}).epochs("digits") == [1]


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


@pytest.mark.parametrize(("seen", "found"), [(0, None), (1, "cuda")])
def test_the_device_is_the_gpu_that_torch_sees(monkeypatch, seen, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(seen))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: seen)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found and torch.device(found))
    assert _cli_shelf.device_of(None).type == (found or "cpu")
    assert _cli_shelf.device_of("cpu").type == "cpu"
    for word in ("cuda", "cuda:0", "cuda:1", "mps"):
        if found and word in ("cuda", "cuda:0"):
            assert _cli_shelf.device_of(word) == torch.device(word)
        else:
            with pytest.raises(ValueError, match=f"--device '{word}': torch sees no such GPU here"):
                _cli_shelf.device_of(word)


def test_the_encoder_is_where_it_is_wanted_and_its_weights_may_lie_with_the_data(tmp_path):
    made = _cli_shelf.encoder("random-pocket", argparse.Namespace(device="meta"))
    assert made.device.type == "meta"
    message = re.escape(f"there is no file {tmp_path / 'weights' / MOBILENET_WEIGHTS};")
    with pytest.raises(FileNotFoundError, match=message):
        _cli_shelf.encoder("mobilenet", argparse.Namespace(data=tmp_path))


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
            assert f"{head} is truncated or corrupted (" in said
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
    return datasets.load_tasks(["digits", "mirrored"], suite="digits", limit=60)


def test_encoders_of_clip_get_heads_from_texts_unless_told_otherwise(clip_tasks, tmp_path, capsys):
    both = clip.load_clip("tiny-clip")
    heads = {
        name: clip_heads.zero_shot_head(both, task, templates=TEMPLATES["digits"])
        for name, task in clip_tasks.items()
    }
    assert clip_runs(tmp_path / "texts") == clip_runs(tmp_path / "means", "--heads", "prototypes") == 0
    for name, found in prototypes_of(tmp_path / "texts").items():
        assert torch.equal(found, heads[name].prototypes)
    for name, found in prototypes_of(tmp_path / "means").items():
        assert torch.equal(found, prototype_head(load_backbone("tiny-clip"), clip_tasks[name]).prototypes)
    for folder, kind, other in (("texts", "zero-shot", "prototypes"), ("means", "prototypes", "zero-shot")):
        assert json.loads((tmp_path / folder / "runs.json").read_text())["heads"] == kind
        before = contents(tmp_path / folder)
        assert clip_runs(tmp_path / folder, "--heads", other) == 2
        assert f"holds runs with heads = {kind!r}, not {other!r}" in capsys.readouterr().err
        assert contents(tmp_path / folder) == before
    path = tmp_path / "merged.safetensors"
    assert call("merge", "--runs", tmp_path / "texts", "--out", path) == 0
    words = ["--runs", tmp_path / "texts", "--vector", path, "--device", "cpu"]
    assert call("evaluate", *words, "--scaling-coef", 0.5) == 0
    zero_shot = evaluation.accuracies(load_backbone("tiny-clip"), heads, clip_tasks, split="test")
    rows = rows_of(capsys.readouterr().out.partition("\n")[2])
    assert {name: rows[name][0] for name in zero_shot} == pytest.approx(zero_shot, abs=6e-4)


def test_a_folder_from_before_there_was_a_choice_has_prototypes(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    noted = json.loads((tmp_path / "runs.json").read_text(encoding="utf-8"))
    del noted["heads"]
    (tmp_path / "runs.json").write_text(json.dumps(noted), encoding="utf-8")
    before = contents(tmp_path)
    assert finetune(tmp_path) == finetune(tmp_path, "--heads", "prototypes") == 0
    assert contents(tmp_path) == before
    noted["backbone"] = "tiny-clip"
    (tmp_path / "runs.json").write_text(json.dumps(noted), encoding="utf-8")
    assert finetune(tmp_path, "--backbone", "tiny-clip") == 2
    assert "holds runs with heads = 'prototypes', not 'zero-shot'" in capsys.readouterr().err


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


def test_the_kinds_of_heads_are_the_words_of_the_option():
    heads = next(action for action in commands()["finetune"]._actions if action.dest == "heads")
    assert tuple(heads.choices) == clip_heads.KINDS


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

    monkeypatch.setattr("taskvec_mini.benchmarks.encoders.load.load_backbone", other)
    assert call("merge", "--runs", runs, "--out", tmp_path / "m.safetensors") == 2
    assert "began with other weights of random-pocket than are here now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rule", "word", "message"),
    [
        ("ties", "densty=0.3", "unknown option of ties 'densty': did you mean 'density'?"),
        ("ties", "density", "--option 'density' must be NAME=VALUE, for instance density=0.3"),
        ("ties", "density=high", "--option density=high: the value must be a number, such as 0.2"),
        ("ties", "density=true", "--option density=true: the value must be a number"),
        ("ties", "per_tensor=1", "--option per_tensor=1: the value must be true or false, such as false"),
        ("mean", "density=0.3", "mean has no options, got 'density=0.3'; leave --option out"),
        ("dare", "generator=3", "unknown option of dare 'generator'"),
    ],
)
def test_options_that_a_rule_does_not_have_are_refused(rule, word, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _cli_runs.rule_options(rule, getattr(merging, rule), [word])


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
    tasks = datasets.load_tasks(TASKS, suite="digits", limit=60)
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
    task = datasets.load_tasks(TASKS[1], suite="digits", limit=60)[TASKS[1]]
    head = prototype_head(load_backbone("random-pocket"), task)
    state = load_file(runs / TASKS[1] / "epoch_001.safetensors")
    own = by_hand(state, head, task.val_images, task.val_labels)
    assert rows[TASKS[1]][1] == pytest.approx(own, abs=6e-4)


def test_folder_and_seed_of_the_data_reach_every_command(tmp_path, monkeypatch, capsys):
    digits = datasets.load_tasks("digits", suite="digits")["digits"]
    arrays = {"class_names": np.array(digits.class_names)}
    for part in ("train", "test"):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = (each.numpy() for each in digits.part(part))
    path, runs = tmp_path / "mnist.npz", tmp_path / "runs"
    np.savez(path, **arrays)
    monkeypatch.setitem(datasets.BUNDLE, "mnist", (path.name, records.checksum(path)))
    words = ["--suite", "bundle", "--tasks", "mnist", "--seed", 3, "--epochs", 1, "--data", tmp_path]
    assert finetune(runs, *words) == 0
    task = datasets.load_tasks("mnist", folder=tmp_path, limit=60, seed=3)["mnist"]
    backbone = load_backbone("random-pocket")
    head = prototype_head(backbone, task)
    assert torch.equal(load_head(runs / "mnist" / "head.safetensors").prototypes, head.prototypes)
    again = _cli_shelf.Shelf.open(runs).tasks(["mnist"], tmp_path)["mnist"]  # as a worker of a cluster
    assert torch.equal(again.train_images, task.train_images)
    capsys.readouterr()
    assert evaluate(runs, tmp_path, "--scaling-coef", 0, "--data", tmp_path) == 0
    text = capsys.readouterr().out.partition("\n")[2]
    assert "scaling coefficient 0 (as given)" in text
    zero_shot = by_hand(backbone.model.state_dict(), head, task.val_images, task.val_labels)
    found = rows_of(text)["mnist"]
    assert found[0] == found[2] == pytest.approx(zero_shot, abs=6e-4)


def test_recentring_reaches_the_tuning_and_every_column(runs, tmp_path, monkeypatch, capsys):
    asked, real = [], evaluation.accuracies

    def counted(*words, recentre=0, **more):
        asked.append(recentre)
        return real(*words, recentre=recentre, **more)

    monkeypatch.setattr(evaluation, "accuracies", counted)
    assert evaluate(runs, tmp_path, "--tune", 0.5, 1.5, "--recentre", 7) == 0
    assert len(asked) >= 2 + 2 + len(TASKS)  # two coefficients; pretrained and merged; each specialist
    assert set(asked) == {7}
    asked.clear()
    assert evaluate(runs, tmp_path, "--scaling-coef", 0.5) == 0
    assert set(asked) == {0}


def test_an_individual_accuracy_of_zero_leaves_the_ratio_open():
    text = _cli_runs.table({"individual": {"a": 0.0, "b": 0.5}, "merged": {"a": 0.1, "b": 0.5}})
    assert [line.split()[-1] for line in text.splitlines()] == ["normalised", "nan", "1.000", "nan"]


# --- record ----------------------------------------------------------------------------------------------


class Sums:
    """A study that knows its checksums only after it has run."""

    description = "sums"

    def __init__(self, results):
        self.results, self.seeds, self.settings = results, (0, 1), {"epochs": 3}

    def run(self, options):
        self.data = {"a.npz": "0" * 64}
        return {"found": self.results}


def test_record_writes_a_complete_record_whose_command_parses(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "STUDIES", {"sums": Sums([0.5])})
    studies.STUDIES["sums"].device = "cuda"
    monkeypatch.setattr(records, "_device", lambda device: f"a {device.type} device")
    path = tmp_path / "new" / "sums.json"
    assert call("record", "sums", "--data", tmp_path, "--out", path) == 0
    found = records.read(path)
    assert found["results"] == {"found": [0.5]}
    assert found["device"] == "a cuda device"
    assert (found["seeds"], found["settings"], found["data"]) == ([0, 1], {"epochs": 3}, {"a.npz": "0" * 64})
    assert found["command"] == "python -m taskvec_mini.benchmarks record sums"
    words = shlex.split(found["command"])[3:]
    assert command_line.parser().parse_args(words).study == "sums"
    assert str(path) in capsys.readouterr().out


def test_a_study_without_numbers_leaves_the_older_record(tmp_path, monkeypatch, capsys):
    path = tmp_path / "sums.json"
    for results, status in (([0.5], 0), ([float("nan")], 2)):
        monkeypatch.setattr(studies, "STUDIES", {"sums": Sums(results)})
        assert call("record", "sums", "--out", path) == status
    assert records.read(path)["results"]["found"] == [0.5]
    assert "results['found'][0] is nan" in capsys.readouterr().err


def test_records_go_to_the_book_unless_told_otherwise(tmp_path, monkeypatch):
    path = _cli_record._default_path("first_epoch")
    assert path.parts[-3:] == ("book", "recorded", "first_epoch.json")
    monkeypatch.setattr(_cli_record, "_REPOSITORY", tmp_path)  # where there is no book, as after pip install
    assert _cli_record._default_path("first_epoch") == Path("first_epoch.json")


# --- errors ----------------------------------------------------------------------------------------------


DIGITS = "finetune --suite digits --out {}/r --backbone"
BUNDLE = "finetune --tasks mnist --out {}/r --backbone random-pocket"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (BUNDLE, "set the environment variable TASKVEC_MINI_DATA"),
        (BUNDLE, "(on the command line: --data FOLDER, --suite digits)"),
        ("finetune --suite text --out {}/r", "(on the command line: --data FOLDER, --suite text-hub)"),
        (f"{BUNDLE} --data {{}}/no", "is no folder; give the folder"),
        (f"{DIGITS} pockt", "unknown backbone 'pockt': did you mean 'pocket'"),
        (f"{DIGITS} random-pocket --tasks digts", "did you mean 'digits'"),
        (f"{DIGITS} random-pocket --epochs 0", "epochs must be at least 1"),
        (f"{DIGITS} random-pocket --learning-rate -1", "learning_rate must be above 0"),
        ("merge --runs {}/none", "holds no runs; make some with `finetune`"),
        (
            "merge --runs {runs} --tasks digits digits",
            "the task 'digits' is given twice; name each task once",
        ),
        ("merge --runs {runs} --rule tie", "unknown merging rule 'tie': did you mean 'ties'"),
        ("merge --runs {runs} --tasks digit", "did you mean 'digits'"),
        ("merge --runs {runs} --epoch 9", "have not epoch 9 in common; there is 1, 2: finetune longer"),
        (
            "evaluate --runs {runs} --vector {}/none.safetensors --tune",
            "none.safetensors; make it with `merge`",
        ),
        ("evaluate --runs {runs} --vector {runs}/runs.json --tune", "runs.json is truncated or corrupted"),
        ("record no_such_study", "no_such_study"),
    ],
)
def test_an_error_is_one_clean_line_and_status_2(runs, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setattr(studies, "STUDIES", {"sums": Sums(1)})
    line = words.replace("{runs}", str(runs)).replace("{}", str(tmp_path)).split()
    assert command_line.main(line) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert len(said.err.splitlines()) == 1
    assert message in said.err
    with pytest.raises((ValueError, OSError)):
        command_line.main([*line, "--debug"])


def test_without_any_study_record_says_where_they_belong(monkeypatch, capsys):
    monkeypatch.setattr(studies, "STUDIES", {})
    assert call("record", "sums") == 2
    assert "there are no studies in taskvec_mini.benchmarks.studies" in capsys.readouterr().err


def test_a_bug_is_not_taken_for_a_user_s_error(monkeypatch):
    def broken(_options):
        raise AssertionError("a bug")

    monkeypatch.setattr(command_line, "_command", lambda _name: broken)
    with pytest.raises(AssertionError, match="a bug"):
        call("list")


def test_stopping_by_hand_is_no_error_with_a_traceback(monkeypatch, capsys):
    def stopped(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_command", lambda _name: stopped)
    assert call("list") == 130
    assert "the same command goes on from there" in capsys.readouterr().err


TALKATIVE = """
import sys
from taskvec_mini.benchmarks import __main__ as line
line._command = lambda _: lambda _: print("many words " * 100_000)
sys.exit(line.main(["list"]))
"""


def test_a_reader_of_the_pipe_may_stop_early():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", TALKATIVE], **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_signature_of_every_rule_fits_the_command_line():
    """A rule's options have defaults of a kind that a word on the command line can become."""
    for rule in _cli_list.rules().values():
        for name, parameter in list(inspect.signature(rule).parameters.items())[1:]:
            assert name == "generator" or isinstance(parameter.default, bool | int | float | str)
