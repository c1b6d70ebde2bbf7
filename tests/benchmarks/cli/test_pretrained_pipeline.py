"""Encoders from packages on the command line: texts are cut with the tokenizer of the encoder in use."""

import importlib.util
import json
import sys

import pytest
import torch

from small_texts import as_read, files, texts_of
from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.data import VOCABULARY, load_tokenizer, texts
from taskvec_mini.benchmarks.encoders import BACKBONES, load_backbone, tokenizer_of
from taskvec_mini.benchmarks.studies import base
from taskvec_mini.benchmarks.training import Experiment

__all__ = ["files"]  # a fixture
MINILM = BACKBONES["minilm"].needs
needs_package = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, MINILM)), reason="the extra `pretrained` is not installed"
)
TASKS = ("trec6", "sst2")


def call(*words):
    return command_line.main([str(word) for word in words])


def made_up(name, part):
    classes, start = texts.sources()[name].classes, 0 if part == "train" else 100
    labels = [i % len(classes) for i in range(60 if part == "train" else 20)]
    found = zip(texts_of(labels, start=start), labels, strict=True)
    return [(text, classes[label]) for text, label in found]


@needs_package
def test_minilm_is_finetuned_merged_and_judged_from_the_command_line(files, tmp_path, capsys):
    runs, merged = tmp_path / "runs", tmp_path / "merged.safetensors"
    for name in TASKS:
        data = files(*(as_read(made_up(name, part)) for part in ("train", "test")), name=name)
    words = ["--suite", "text", "--backbone", "minilm", "--tasks", *TASKS, "--limit", 40]
    training = ["--epochs", 1, "--batch-size", 8, "--learning-rate", 3e-5, "--device", "cpu"]
    assert call("finetune", *words, *training, "--data", data, "--out", runs) == 0
    assert "Loading weights" not in capsys.readouterr().err
    assert call("merge", "--runs", runs, "--out", merged) == 0
    judged = ["--runs", runs, "--vector", merged, "--data", data, "--device", "cpu"]
    assert call("evaluate", *judged, "--tune", 0.5, 1.0) == 0
    shown = capsys.readouterr().out
    assert "accuracies on test texts; individual: after epoch 1; scaling coefficient" in shown
    table = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith(TASKS)}
    assert table.keys() == set(TASKS)
    assert json.loads((runs / "experiment.json").read_text())["backbone"] == "minilm"

    encoder = load_backbone("minilm")
    tasks = Experiment.open(runs).tasks(TASKS, data, encoder=encoder)
    for name, task in tasks.items():
        expected = encoder.tokenize([text for text, _ in made_up(name, "test")])
        assert torch.equal(task.test_tokens, expected)
        identity = Experiment.open(runs).run(name).identity()
        assert identity["tasks"][name]["sha256"] == task.sha256
        assert encoder.vocabulary_sha256 in json.dumps(identity["backbone"])


@needs_package
def test_tasks_of_a_study_are_cut_with_the_encoders_tokenizer(files):
    data = files(as_read(made_up("sst2", "train")), as_read(made_up("sst2", "test")), name="sst2")
    chosen = base.SuiteSettings(suite="text", tasks=("sst2",), limit=20, recentre=0)
    encoder = load_backbone("random-minilm", max_length=16)
    suite = base.make_suite(encoder, chosen, folder=data, seed=0)
    expected = encoder.tokenize([text for text, _ in made_up("sst2", "test")])
    assert torch.equal(suite.tasks["sst2"].test_tokens, expected)
    assert expected.shape == (20, 16)


def test_the_tokenizer_of_an_encoder_is_its_own():
    assert tokenizer_of(load_backbone("random-pocket")) is None
    own = tokenizer_of(load_backbone("random-pocket-text", max_length=20))
    assert (own.sha256, own.max_length) == (load_tokenizer(VOCABULARY).sha256, 20)


def test_minilm_takes_no_images_and_the_others_no_texts(tmp_path, capsys):
    assert call("finetune", "--suite", "digits", "--backbone", "minilm", "--out", tmp_path / "runs") == 2
    assert "minilm takes texts, but the tasks of the suite 'digits' are images" in capsys.readouterr().err
    words = ["--suite", "text", "--backbone", "efficientnet-lite0", "--out", tmp_path / "runs"]
    assert call("finetune", *words) == 2
    assert "efficientnet-lite0 takes images, but the tasks" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_list_says_what_is_not_installed_and_how_to_get_it(monkeypatch, capsys):
    modules = {"minilm": MINILM[-1], "efficientnet-lite0": "timm", "resnet18": "torchvision"}
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module, None)
    assert call("list") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name, module in modules.items():
        said = f"; NOT INSTALLED: {module}"
        assert said in lines[name], "minilm asks no Hub here"
        assert f'(python -m pip install "{BACKBONES[name].install}")' in lines[name]
    assert BACKBONES["minilm"].install == "taskvec-mini[pretrained]"
    assert "NOT" not in lines["pocket"]
