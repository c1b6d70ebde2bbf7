"""Accuracies of merged models: counted by hand, no trace in the encoder, no image prepared twice."""

import contextlib
import copy
import dataclasses
import gc
import math
import weakref

import pytest
import torch

from small_encoder import flat_of, tiny_backbone, tiny_head, tiny_run, tiny_task
from taskvec_mini.benchmarks.data import TextTask
from taskvec_mini.benchmarks.encoders import (
    holding,
    load_backbone,
    state_of,
    trained_parameters,
    write_parameters,
)
from taskvec_mini.benchmarks.evaluation import accuracies, climb, sweep, tune
from taskvec_mini.benchmarks.evaluation import accuracy as evaluation
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.vectors import TaskVector

COEFS = [-1.0, 0.0, 0.3, 1.0, 2.0]


@pytest.fixture(scope="module")
def run():
    return tiny_run(epochs=6, learning_rate=0.05)


@pytest.fixture
def tasks():
    """Of unequal sizes and numbers of classes."""
    return {"quarters": tiny_task(), "halves": tiny_task("halves", classes=2, seed=9)}


HEADS = {"halves": tiny_head(2, seed=1), "quarters": tiny_head(), "spare": tiny_head(3)}


def counted(backbone, head, images, labels):
    """One image at a time."""
    right = 0
    for image, label in zip(images, labels, strict=True):
        logits = head(backbone.model(backbone.prepare(image[None])))
        right += int(logits[0].argmax()) == int(label)
    return right / len(labels)


def moved(state):
    """A new encoder with these parameters: what evaluation in place has to agree with."""
    backbone = tiny_backbone()
    backbone.model.load_state_dict(state)
    return backbone


# --- counting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("batch", [1, 5, 500])
def test_accuracies_are_shares_of_images_counted_one_by_one(run, tasks, split, batch, monkeypatch):
    monkeypatch.setattr(evaluation, "_IMAGES", {"cpu": batch})
    found = accuracies(tiny_backbone(), HEADS, tasks, parameters=run.state(), split=split)
    assert list(found) == ["quarters", "halves"]
    for name, task in tasks.items():
        expected = counted(moved(run.state()), HEADS[name], *task.part(split))
        assert found[name] == pytest.approx(expected)


@pytest.mark.parametrize("limit", [None, 33])
def test_texts_of_unequal_lengths_are_shares_counted_one_by_one(limit):
    """They are judged in another order than they stand in, the short ones first."""
    backbone = load_backbone("random-pocket-text")
    words = ["good film", "a bad one", "the worst of all the films that were shown here", "fine"]
    texts = [f"{' '.join(words[: 1 + row % 4])} {row}" for row in range(70)]
    tokens = backbone.tokenize(texts)
    labels = torch.arange(70) % 4 % 3
    task = TextTask("lengths", ("a", "b", "c"), *[tokens, labels] * 3, "0" * 64)
    head = prototype_head(backbone, task)
    found = accuracies(backbone, {"lengths": head}, {"lengths": task}, limit=limit)["lengths"]
    assert found == pytest.approx(counted(backbone, head, tokens[:limit], labels[:limit]))


def test_only_the_encoder_computes_in_bfloat16(tasks, monkeypatch):
    seen = []
    monkeypatch.setattr(type(HEADS["spare"]), "forward", seen_by(seen, type(HEADS["spare"]).forward))
    exact = accuracies(tiny_backbone(), HEADS, tasks)
    rounded = accuracies(tiny_backbone(), HEADS, tasks, precision="bfloat16")
    assert {dtype for dtype, _ in seen} == {torch.float32}
    (_, first), (_, again) = seen[0], seen[len(seen) // 2]
    assert 0 < float((first - again).abs().max()) < 0.05 * float(first.abs().max())
    assert rounded == pytest.approx(exact, abs=0.2)


def seen_by(seen, forward):
    def seeing(head, embedded):
        seen.append((embedded.dtype, embedded.clone()))
        return forward(head, embedded)

    return seeing


@pytest.mark.parametrize("first", [0, 3, 9])
@pytest.mark.parametrize("top", [0, 4, 9])
def test_a_climb_ends_at_the_top(first, top):
    asked = []
    best, tried = climb(lambda value: asked.append(value) or -abs(value - top), range(10), first=first)
    assert best == top
    assert len(asked) == len(set(asked)) == len(tried) <= abs(first - top) + 3


def test_a_climb_stays_where_no_neighbour_is_better():
    assert climb(lambda _: 1.0, [0.5, 1.0, 2.0], first=1.0)[0] == 1.0
    with pytest.raises(ValueError, match="first must be one of"):
        climb(lambda _: 1.0, [0.5, 1.0], first=3.0)


@pytest.mark.parametrize(("at_zero", "expected"), [(0.2, 5), (0.6, 0)])
def test_a_known_score_is_not_asked_for_and_wins_over_a_lower_top(at_zero, expected):
    asked = []
    scores = {3: 0.1, 4: 0.2, 5: 0.5, 6: 0.4, 7: 0.4}
    best, tried = climb(
        lambda value: asked.append(value) or scores[value], range(10), first=4, known={0: at_zero}
    )
    assert best == expected
    assert tried[0] == at_zero
    assert 0 not in asked


def test_only_the_first_images_count_where_there_is_a_limit(run, tasks):
    backbone = moved(run.state())
    for limit in (1, 7, 1000):
        found = accuracies(backbone, HEADS, tasks, limit=limit)
        for name, task in tasks.items():
            images, labels = (part[:limit] for part in task.part("test"))
            assert found[name] == pytest.approx(counted(backbone, HEADS[name], images, labels))


def test_without_parameters_the_backbone_is_taken_as_it_is(run, tasks):
    assert accuracies(moved(run.state()), HEADS, tasks) == accuracies(
        tiny_backbone(), HEADS, tasks, parameters=run.state()
    )


def test_a_flat_vector_says_the_same_as_named_parameters(run, tasks):
    flat = torch.cat([part.reshape(-1) for part in run.state().values()])
    named = accuracies(tiny_backbone(), HEADS, tasks, parameters=run.state())
    assert accuracies(tiny_backbone(), HEADS, tasks, parameters=flat) == named
    assert named["quarters"] > accuracies(tiny_backbone(), HEADS, tasks)["quarters"]


def test_dropout_plays_no_part_in_evaluation(run, tasks):
    plain, noisy = moved(run.state()), moved(run.state())
    noisy.model = torch.nn.Sequential(*noisy.model, torch.nn.Dropout(0.9)).train()
    assert accuracies(noisy, HEADS, tasks) == accuracies(plain, HEADS, tasks)
    assert noisy.model.training


# --- many models -----------------------------------------------------------------------------------------


def test_a_sweep_is_one_rebuilt_model_after_the_other(run, tasks):
    vector = run.task_vector()
    table = sweep(
        tiny_backbone(), HEADS, tasks, pretrained=run.pretrained, merged=vector, scaling_coefs=COEFS
    )
    assert table.shape == (5, 2)
    for row, coef in zip(table.tolist(), COEFS, strict=True):
        rebuilt = moved(vector.apply_to(run.pretrained, coef))
        expected = [counted(rebuilt, HEADS[name], *task.part("val")) for name, task in tasks.items()]
        assert row == pytest.approx(expected)
    assert len(set(map(tuple, table.tolist()))) > 2


def test_the_order_of_names_does_not_matter(run, tasks):
    """A file lists its tensors in another order than the model."""
    vector = run.task_vector()
    names = [name for name, _ in vector.layout][::-1]
    turned = {name: run.state()[name] for name in names}, {name: run.pretrained[name] for name in names}
    options = {"scaling_coefs": COEFS, "split": "test"}
    expected = sweep(tiny_backbone(), HEADS, tasks, pretrained=run.pretrained, merged=vector, **options)
    other = TaskVector.between(turned[1], turned[0])
    assert torch.equal(
        sweep(tiny_backbone(), HEADS, tasks, pretrained=turned[1], merged=other, **options), expected
    )
    found = accuracies(tiny_backbone(), HEADS, tasks, parameters=turned[0])
    assert list(found.values()) == expected[3].tolist()


def test_tuning_looks_at_validation_images_alone(run, tasks, monkeypatch):
    vector, merge = run.task_vector(), {"pretrained": run.pretrained, "scaling_coefs": COEFS}
    table = sweep(tiny_backbone(), HEADS, tasks, merged=vector, split="val", **merge)
    best = tune(tiny_backbone(), HEADS, tasks, merged=vector, **merge)
    assert table.mean(1)[COEFS.index(best)] == table.mean(1).max()
    useless = {
        name: dataclasses.replace(task, test_images=task.test_images * 0, train_images=task.train_images * 0)
        for name, task in tasks.items()
    }
    assert tune(tiny_backbone(), HEADS, useless, merged=vector, **merge) == best


def test_tuning_takes_the_first_of_equals_and_the_mean_over_tasks(monkeypatch):
    table = torch.tensor([[0.9, 0.1], [0.6, 0.6], [0.7, 0.5]], dtype=torch.float64)
    monkeypatch.setattr(evaluation, "sweep", lambda *_, **__: table)
    options = {"pretrained": {}, "merged": None, "scaling_coefs": iter([0.1, 0.2, 0.3])}
    assert tune(None, {}, {}, **options) == 0.2


# --- no trace --------------------------------------------------------------------------------------------


def test_the_encoder_has_its_own_parameters_again(run, tasks):
    backbone = tiny_backbone()
    storage = [part.data_ptr() for part in backbone.model.parameters()]
    before = flat_of(backbone.model).clone()
    options = {"pretrained": run.pretrained, "merged": run.task_vector(), "scaling_coefs": COEFS}
    pretrained = copy.deepcopy(run.pretrained)
    accuracies(backbone, HEADS, tasks, parameters=run.state())
    sweep(backbone, HEADS, tasks, **options)
    with contextlib.suppress(RuntimeError), holding(backbone.model, run.state()):
        assert torch.equal(flat_of(backbone.model), flat_of(moved(run.state()).model))
        raise RuntimeError
    assert torch.equal(flat_of(backbone.model), before)
    assert [part.data_ptr() for part in backbone.model.parameters()] == storage  # written in place
    assert all(torch.equal(run.pretrained[name], part) for name, part in pretrained.items())


@pytest.fixture
def prepared(monkeypatch):
    """How often images were prepared, by number."""
    calls, backbone = [], tiny_backbone()
    prepare = type(backbone).prepare
    monkeypatch.setattr(
        type(backbone), "prepare", lambda self, images: calls.append(len(images)) or prepare(self, images)
    )
    return calls


def test_images_are_prepared_once(run, tasks, prepared):
    backbone = tiny_backbone()
    options = {"pretrained": run.pretrained, "merged": run.task_vector(), "scaling_coefs": COEFS}
    sweep(backbone, HEADS, tasks, split="test", **options)
    accuracies(backbone, HEADS, tasks, split="test")
    assert prepared == [16, 16]
    accuracies(backbone, HEADS, tasks, split="val")
    assert prepared == [16, 16, 12, 12]
    evaluation.forget_prepared_images()
    accuracies(backbone, HEADS, tasks, split="val")
    assert prepared == [16, 16, 12, 12, 12, 12]


def test_another_preparation_is_not_mistaken_for_the_one_that_is_kept(run, tasks, prepared):
    for changes in ({}, {"std": (0.9, 0.9, 0.9)}, {"mean": (0.0, 0.0, 0.0)}):
        other = dataclasses.replace(moved(run.state()), **changes)
        found = accuracies(other, HEADS, tasks)
        for name, task in tasks.items():
            assert found[name] == pytest.approx(counted(other, HEADS[name], *task.part("test")))


def test_too_many_images_are_not_kept(tasks, prepared, monkeypatch):
    monkeypatch.setattr(evaluation, "_LARGEST", 12 * 8 * 8 * 16 - 1)
    first = accuracies(tiny_backbone(), HEADS, tasks)
    assert accuracies(tiny_backbone(), HEADS, tasks) == first
    assert prepared == [16, 16, 16, 16]


def test_prepared_images_go_with_their_task():
    gc.collect()
    task = tiny_task()
    accuracies(tiny_backbone(), HEADS, {"quarters": task})
    kept = weakref.ref(task)
    before = len(evaluation._prepared)
    del task
    gc.collect()
    assert kept() is None
    assert len(evaluation._prepared) == before - 1


# --- parameters ------------------------------------------------------------------------------------------


def test_a_state_is_a_copy():
    model = tiny_backbone().model
    state = state_of(model)
    state["0.weight"].zero_()
    assert model[0].weight.abs().sum() > 0
    assert list(state) == list(trained_parameters(model))


# --- refusals --------------------------------------------------------------------------------------------


def test_parameters_that_do_not_fit_are_refused_and_leave_no_trace(run, tasks):
    backbone = tiny_backbone()
    before = flat_of(backbone.model).clone()
    state = run.state()
    missing = {name: part for name, part in state.items() if name != "4.bias"}
    for wrong, message in (
        (missing, "keys differ: the model has '4.bias', the state has not"),
        ({**state, "extra": torch.ones(1)}, "keys differ: the state has 'extra', the model has not"),
        ({**state, "4.bias": torch.ones(7)}, r"shapes differ at '4.bias': \(6,\) against \(7,\)"),
        (torch.ones(3), r"the flat vector has shape \(3,\) but the model trains 342 parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            accuracies(backbone, HEADS, tasks, parameters=wrong)
        assert torch.equal(flat_of(backbone.model), before)
    with pytest.raises(TypeError, match="the state must be a mapping"):
        write_parameters(backbone.model, [1, 2])


def test_what_cannot_be_evaluated_is_refused(run, tasks):
    options = {"pretrained": run.pretrained, "merged": run.task_vector()}
    with pytest.raises(
        ValueError, match="there is no head for the task 'halves'; heads are there for quarters"
    ):
        accuracies(tiny_backbone(), {"quarters": tiny_head()}, tasks)
    with pytest.raises(ValueError, match="unknown part 'validation': choose one of train, val, test"):
        accuracies(tiny_backbone(), HEADS, tasks, split="validation")
    with pytest.raises(ValueError, match="limit must be at least 1"):
        accuracies(tiny_backbone(), HEADS, tasks, limit=0)
    with pytest.raises(ValueError, match="scaling_coefs is empty"):
        sweep(tiny_backbone(), HEADS, tasks, scaling_coefs=[], **options)
    with pytest.raises(ValueError, match="tasks is empty"):
        sweep(tiny_backbone(), HEADS, {}, scaling_coefs=[1.0], **options)
    with pytest.raises(ValueError, match="a scaling coefficient must be finite"):
        sweep(tiny_backbone(), HEADS, tasks, scaling_coefs=[float("nan")], **options)


def test_a_frozen_model_can_be_evaluated_but_not_finetuned(tasks):
    backbone = tiny_backbone()
    backbone.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        trained_parameters(backbone.model)
    assert accuracies(backbone, HEADS, tasks) == accuracies(tiny_backbone(), HEADS, tasks)


def test_a_model_that_answers_nan_has_no_accuracy(run, tasks):
    backbone, heads = tiny_backbone(), {name: tiny_head() for name in tasks}
    broken = {name: torch.full_like(part, math.nan) for name, part in state_of(backbone.model).items()}
    with pytest.raises(ValueError, match=r"answers NaN to images of the task .*smaller scaling coefficient"):
        accuracies(backbone, heads, tasks, parameters=broken)
