"""Texts go the way of the images: heads, finetuning, exact gradients, sweeps and the command line."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call
from torch.nn import functional as F

from small_encoder import tiny_task
from small_texts import Words, as_read, files, texts_of, tiny_text_encoder, tiny_text_head, tiny_text_task
from taskvec_mini import TaskVector
from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.cli import runs as run_commands
from taskvec_mini.benchmarks.data import VOCABULARY, unit_of
from taskvec_mini.benchmarks.encoders import load_backbone, state_of
from taskvec_mini.benchmarks.evaluation import accuracy as evaluation
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.training.finetune import Settings, finetune
from taskvec_mini.benchmarks.training.gradients import full_batch_gradient
from taskvec_mini.benchmarks.training.trainer import plan
from taskvec_mini.errors import UserError

__all__ = ["files"]  # a fixture
needs_vocabulary = pytest.mark.skipif(
    not VOCABULARY.is_file(), reason="the vocabulary of pocket-text is not there"
)


def embedding_of(model, tokens):
    """One text by itself: the mean of its words' rows, a matrix, a shift, tanh; no batch, no padding."""
    rows = [model.words.weight[token] for token in tokens.tolist() if token > 0]
    return torch.tanh(model.mix.weight @ (sum(rows) / len(rows)) + model.mix.bias)


def logits_of(head, embedding):
    direction = embedding - head.centre
    return head.logit_scale * head.prototypes.to(direction.dtype) @ (direction / direction.norm())


# --- one part of the pipeline after the other ------------------------------------------------------------


def test_the_prototypes_are_mean_directions_of_the_classes():
    encoder, task = tiny_text_encoder(), tiny_text_task()
    head = prototype_head(encoder, task, logit_scale=7.0)
    with torch.no_grad():
        embedded = [embedding_of(encoder.model, tokens) for tokens in task.train_tokens]
    centre = sum(embedded) / len(embedded)
    torch.testing.assert_close(head.centre, centre)
    for label in range(3):
        own = [e - centre for e, y in zip(embedded, task.train_labels, strict=True) if y == label]
        mean = sum(each / each.norm() for each in own)
        torch.testing.assert_close(head.prototypes[label], mean / mean.norm(), rtol=1e-4, atol=1e-6)
    assert head.logit_scale == 7.0


def by_hand(encoder, head, task, settings):
    """Ordinary training of a copy, text by text, with an optimiser of torch."""
    model = copy.deepcopy(encoder.model)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.0)
    for epoch in range(1, settings.epochs + 1):
        for _, rows in plan([len(task.train_labels)], settings, epoch=epoch):
            logits = torch.stack([logits_of(head, embedding_of(model, task.train_tokens[i])) for i in rows])
            optimizer.zero_grad()
            F.cross_entropy(logits, task.train_labels[rows]).backward()
            optimizer.step()
    return state_of(model)


def test_a_run_that_was_killed_ends_in_the_bits_of_one_that_was_not_and_is_ordinary_training(
    tmp_path, capsys
):
    encoder, head, task = tiny_text_encoder(), tiny_text_head(), tiny_text_task()
    settings, steps = Settings(learning_rate=0.02, epochs=3, batch_size=8), []

    def killed(model, _):
        steps.append(1)
        if len(steps) == 6:  # of four steps an epoch: in the middle of the second
            raise KeyboardInterrupt
        return 0 * sum(part.sum() for part in model.parameters())

    with pytest.raises(KeyboardInterrupt):
        finetune(encoder, head, task, settings=settings, folder=tmp_path / "a", extra_loss=killed)
    assert (tmp_path / "a" / "epoch_001.safetensors").exists()
    assert not (tmp_path / "a" / "epoch_002.safetensors").exists()
    resumed = finetune(encoder, head, task, settings=settings, folder=tmp_path / "a", extra_loss=killed)
    whole = finetune(encoder, head, task, settings=settings, folder=tmp_path / "b", extra_loss=killed)
    assert len(steps) == 6 + 8 + 12, "the first epoch is not trained again"
    ends = [load_file(tmp_path / name / "epoch_003.safetensors") for name in "ab"]
    expected = by_hand(encoder, head, task, settings)
    for name in expected:
        assert torch.equal(ends[0][name], ends[1][name])
        torch.testing.assert_close(ends[0][name], expected[name], rtol=1e-4, atol=1e-5)
    assert resumed.accuracies[-1] == whole.accuracies[-1] > whole.accuracies[0]
    shown = capsys.readouterr().err
    assert "epoch 1/3  loss" in shown
    assert "texts/s" in shown
    assert "image" not in shown
    assert "images_per_second" in json.loads((tmp_path / "a" / "epoch_001.json").read_text()), (
        "the older name"
    )


def test_the_exact_gradient_is_that_of_all_texts_at_once():
    encoder, head, task = tiny_text_encoder(), tiny_text_head(), tiny_text_task()
    model = copy.deepcopy(encoder.model).double()
    logits = torch.stack([logits_of(head, embedding_of(model, tokens)) for tokens in task.train_tokens])
    F.cross_entropy(logits, task.train_labels).backward()
    expected = torch.cat([part.grad.reshape(-1) for part in model.parameters()])
    found = full_batch_gradient(encoder, head, task, batch_size=9)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert found.norm() > 0.01


def test_a_sweep_counts_the_right_answers_of_each_merged_encoder():
    encoder, coefs = tiny_text_encoder(), [0.0, 0.5, 2.0]
    tasks = {"three": tiny_text_task("three"), "two": tiny_text_task("two", classes=2)}
    heads = {"three": tiny_text_head(), "two": tiny_text_head(2, seed=1)}
    start, other = state_of(encoder.model), state_of(tiny_text_encoder(seed=5).model)
    vector = TaskVector.between(start, other)
    found = evaluation.sweep(encoder, heads, tasks, pretrained=start, merged=vector, scaling_coefs=coefs)
    for row, coef in zip(found.tolist(), coefs, strict=True):
        state = {name: start[name] + coef * (other[name] - start[name]) for name in start}
        for share, (name, task) in zip(row, tasks.items(), strict=True):
            embedded = functional_call(encoder.model, state, task.val_tokens.long())
            answers = [int(logits_of(heads[name], each).argmax()) for each in embedded]
            right = [a == b for a, b in zip(answers, task.val_labels.tolist(), strict=True)]
            assert share == pytest.approx(sum(right) / len(right))
    assert len({*map(tuple, found.tolist())}) > 1, "the coefficient matters"


def test_what_is_counted_has_the_name_of_what_the_tasks_hold():
    assert unit_of([tiny_text_task(), tiny_text_task("b")]) == "texts"
    assert unit_of([tiny_task()]) == "images"
    assert unit_of([tiny_task(), tiny_text_task()]) == "examples"


def test_images_are_no_texts():
    with pytest.raises(TypeError, match=r"images must be .* torch.uint8 .*, got torch.int32"):
        prototype_head(load_backbone("random-pocket"), tiny_text_task())


# --- the command line ------------------------------------------------------------------------------------


def call(*words):
    return command_line.main([str(word) for word in words])


def some_files(files):
    """Two tasks, in files whose rows tell their class; their folder."""
    for name, classes in (
        ("sst2", ("negative", "positive")),
        ("emotion", ("anger", "joy", "optimism", "sadness")),
    ):
        parts = {}
        for part, start, count in (("train", 0, 60), ("test", 100, 20)):
            labels = [i % len(classes) for i in range(count)]
            texts = texts_of(labels, start=start)
            parts[part] = as_read([(text, classes[i]) for text, i in zip(texts, labels, strict=True)])
        folder = files(**parts, name=name)
    return folder


@pytest.fixture(params=["tiny", pytest.param("random-pocket-text", marks=needs_vocabulary)])
def backbone(request, monkeypatch):
    """The name of an encoder; the tiny one stands in for it, with its own words."""
    if request.param == "tiny":
        monkeypatch.setattr("taskvec_mini.benchmarks.data.tokenizer.load_tokenizer", Words)
        monkeypatch.setattr(run_commands, "load_backbone", lambda *_, **__: tiny_text_encoder())
    return "random-pocket-text"


def test_texts_are_finetuned_merged_and_judged_from_the_command_line(files, tmp_path, capsys, backbone):
    data, runs, merged = some_files(files), tmp_path / "runs", tmp_path / "merged.safetensors"
    words = ["--suite", "text", "--backbone", backbone, "--tasks", "sst2", "emotion", "--device", "cpu"]
    training = ["--epochs", 1, "--limit", 40, "--batch-size", 10, "--learning-rate", 1e-2]
    assert call("finetune", *words, *training, "--data", data, "--out", runs) == 0
    said = capsys.readouterr()
    assert "texts/s" in said.out.splitlines()[0]
    assert "texts/s" in said.err
    assert "images" not in said.out + said.err.replace("images_per_second", "")
    shared = json.loads((runs / "experiment.json").read_text())
    assert shared == {"suite": "text", "backbone": backbone, "heads": "prototypes", "limit": 40, "seed": 0}
    assert call("merge", "--runs", runs, "--out", merged) == 0
    assert (
        call("evaluate", "--runs", runs, "--vector", merged, "--data", data, "--tune", 0.5, "--device", "cpu")
        == 0
    )
    shown = capsys.readouterr().out
    assert "accuracies on test texts; individual: after epoch 1; scaling coefficient 0.5" in shown
    rows = {
        line.split()[0]: line.split()[1:]
        for line in shown.splitlines()
        if line.startswith(("sst2", "emotion"))
    }
    assert set(rows) == {"sst2", "emotion"}
    assert all(
        float(value) * 20 == pytest.approx(round(float(value) * 20))
        for row in rows.values()
        for value in row[:3]
    )


@pytest.mark.parametrize(
    ("suite", "expected"), [("text", "pocket-text"), ("text-hub", "pocket-text"), ("digits", "pocket")]
)
def test_texts_have_an_encoder_of_their_own_by_default(tmp_path, monkeypatch, suite, expected):
    asked = []

    def load_backbone(name, **_):
        asked.append(name)
        raise UserError("that is enough")

    monkeypatch.setattr(run_commands, "load_backbone", load_backbone)
    assert call("finetune", "--suite", suite, "--out", tmp_path / "runs") == 2
    assert asked == [expected]


def test_an_encoder_of_images_is_refused_before_a_folder_is_made(files, tmp_path, capsys):
    words = ["--suite", "text", "--backbone", "random-pocket", "--tasks", "sst2", "--device", "cpu"]
    assert call("finetune", *words, "--data", some_files(files), "--out", tmp_path / "runs") == 2
    assert (
        "random-pocket takes images, but the tasks of the suite 'text' are texts" in capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


def test_list_shows_the_suites_of_texts(files, capsys):
    folder = some_files(files)
    assert call("list", "--data", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"suite text: short English texts in small files, in {folder / 'text'}" in lines
    assert [line.split() for line in lines if line.split()[:1] == ["emotion"]] == [
        ["emotion", "4", "54", "6", "20"],
        ["emotion", "cardiffnlp/tweet_eval", "emotion"],
    ]
    assert any("trec6.train.tsv is missing" in line for line in lines)
