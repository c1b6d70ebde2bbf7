"""The studies of a good start, in seconds: who enters, what stands beside a merge, and what is kept."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from taskvec_mini import merging
from taskvec_mini.benchmarks.data import DATA_VARIABLE
from taskvec_mini.benchmarks.encoders import load_backbone, state_of
from taskvec_mini.benchmarks.evaluation import accuracies
from taskvec_mini.benchmarks.heads import linear_probe
from taskvec_mini.benchmarks.studies import StudyRequest, base, good_start, task_choice
from taskvec_mini.benchmarks.studies.good_start import (
    CANDIDATES,
    SCALING_COEFS,
    Candidate,
    GoodStart,
    tuned_merge,
)
from taskvec_mini.benchmarks.studies.task_choice import TaskChoice
from taskvec_mini.benchmarks.training import Settings, Trainer

DIGITS = base.SuiteSettings(
    suite="digits", tasks=("digits", "mirrored"), limit=120, validation=40, test=60, shots=None, recentre=0
)
RECIPE = Settings(learning_rate=1e-3, epochs=4, parts=2, batch_size=16)
TEXTS_BY_HAND = base.SuiteSettings(
    suite="text", tasks=("subj", "sst2"), limit=60, validation=20, test=60, shots=None, recentre=0
)
NEARBY = Path(__file__).parents[4] / "shared" / "data"
TEXT_FOLDER = None if os.environ.get(DATA_VARIABLE) else NEARBY
needs_texts = pytest.mark.skipif(
    TEXT_FOLDER is not None and not (NEARBY / "text").is_dir(), reason="the texts are not here"
)


@pytest.fixture(autouse=True)
def runs_of_this_test(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "RUNS", tmp_path / "studies")


def study(**changes):
    told = {
        "backbone": "random-pocket",
        "tasks": DIGITS,
        "recipe": RECIPE,
        "ages": (1, 2, 4),
        "rules": ("mean", "ties"),
    }
    made = GoodStart("small", **{**told, **changes})
    made.seeds = (0,)
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "RUNS", tmp_path_factory.mktemp("studies"))
        made = study()
        results = made.run(StudyRequest())
        backbone = load_backbone("random-pocket")
        suite = base.make_suite(backbone, DIGITS, folder=None, seed=0)
        runs = base.individual_runs(suite, recipe=RECIPE, epochs=(1, 2, 4))
        return made, results, suite, runs


@pytest.fixture
def finished(small):
    """The results of `small`; its runs lie where this test's runs would, and may be damaged."""
    _, results, suite, _ = small
    shutil.copytree(suite.experiment.folder.parents[1], base.RUNS)  # all encoders, seeds
    return results


def test_everything_stands_beside_the_merges(small):
    made, results, suite, runs = small
    assert results["epochs"] == [0.5, 1.0, 2.0]
    assert json.loads(json.dumps(results)) == results
    assert results["start"]["0"] == {
        name: round(value, 5)
        for name, value in accuracies(suite.backbone, suite.heads, suite.tasks, limit=60).items()
    }
    for name, task in suite.tasks.items():
        few = dataclasses.replace(task, test_images=task.test_images[:60], test_labels=task.test_labels[:60])
        assert results["probe"]["0"][name] == round(linear_probe(suite.backbone, few).accuracy, 5)
        after_one = accuracies(
            suite.backbone, suite.heads, {name: task}, parameters=runs[name].state(2), limit=60
        )[name]
        assert results["individual"]["0"]["1"][name] == round(after_one, 5)
        assert results["steps_a_pass"]["0"][name] == 8  # 120 images, 16 a step
    assert set(results["joint"]["0"]) == {"0.5", "1", "2"}
    assert {(row["epoch"], row["rule"]) for row in results["merged"]} == {
        (epoch, rule) for epoch in (0.5, 1.0, 2.0) for rule in ("mean", "ties")
    }
    assert made.settings["recipe"]["parts"] == 2
    assert made.settings["candidates"]["ties"]["rule"] == "ties"


def test_a_coefficient_is_a_top_of_the_grid_in_validation(small):
    _, results, suite, runs = small
    rows = [row for row in results["merged"] if row["rule"] == "mean"]
    start = state_of(suite.backbone.model)
    for row, age in zip(rows, (1, 2, 4), strict=True):
        merged = merging.mean([run.task_vector(age) for run in runs.values()])
        place = SCALING_COEFS.index(row["scaling_coef"])
        near = SCALING_COEFS[max(place - 1, 0) : place + 2]
        tried = {coef: mean_accuracy(suite, merged.apply_to(start, coef), split="val") for coef in near}
        best = max(near, key=lambda coef: (tried[coef], coef == row["scaling_coef"]))
        assert best == row["scaling_coef"]
        assert row["val_mean"] == pytest.approx(tried[best], abs=1e-5)
        on_test = mean_accuracy(suite, merged.apply_to(start, best), split="test", limit=60)
        assert sum(row["test"].values()) / 2 == pytest.approx(on_test, abs=1e-5)


def test_options_reach_the_rules_that_take_them():
    """Kernels as matrices are merged otherwise than in the mean; the plain mean has no such option."""
    plain, unrolled = study(rules=("mean", "iso_c")), study(options={"kernels": "matrix"})
    assert unrolled.candidate("iso_c").options == {"kernels": "matrix"}
    assert unrolled.candidate("mean") == plain.candidate("mean") == CANDIDATES["mean"]
    assert unrolled.candidate("dare").options == {"drop_rate": 0.9}
    suite, runs = plain.specialists(load_backbone("random-pocket"), StudyRequest(), seed=0)
    models = [
        each.merged_model(suite, runs, age=2, rule="iso_c", scaling_coef=1.0) for each in (plain, unrolled)
    ]
    vectors = [run.task_vector(2) for run in runs.values()]
    start = state_of(suite.backbone.model)
    for kernels, model in zip(("mean", "matrix"), models, strict=True):
        expected = merging.iso_c(vectors, kernels=kernels).apply_to(start, 1.0)
        assert all(torch.equal(model[name], expected[name]) for name in expected)
    assert any(not torch.equal(models[0][name], models[1][name]) for name in models[0])


@needs_texts
def test_by_depth_the_first_block_keeps_the_size_of_the_mean_and_the_last_is_tuned():
    """A two-block encoder by hand: block 0 moves by the mean, block 1 by the mean and λ times it."""
    suite = base.make_suite(load_backbone("random-pocket-text"), TEXTS_BY_HAND, folder=TEXT_FOLDER, seed=0)
    runs = base.individual_runs(suite, recipe=RECIPE, epochs=(2,))
    vectors = {name: run.task_vector(2) for name, run in runs.items()}
    found = tuned_merge(suite, vectors, candidate=CANDIDATES["mean_by_depth"], first=1.0)
    merged = merging.mean(list(vectors.values()))
    start = state_of(suite.backbone.model)
    by_hand = merging.scale_by_depth(merged, first=1.0, last=1.0 + found["scaling_coef"]).apply_to(start, 1.0)
    expected = mean_accuracy(suite, by_hand, split="test", limit=60)
    assert sum(found["test"].values()) / 2 == pytest.approx(expected, abs=1e-2)


def mean_accuracy(suite, parameters, *, split, limit=None):
    found = accuracies(
        suite.backbone, suite.heads, suite.tasks, parameters=parameters, split=split, limit=limit
    )
    return sum(found.values()) / len(found)


def test_a_search_that_is_lost_among_ruined_models_falls_back_to_the_start(small):
    _, _, suite, runs = small
    vectors = {name: run.task_vector(4) for name, run in runs.items()}
    at_start = mean_accuracy(suite, None, split="val")
    ruined = {name: 1e3 * vector for name, vector in vectors.items()}
    found = tuned_merge(suite, ruined, candidate=CANDIDATES["mean"], first=3.1623, at_start=at_start)
    assert (found["scaling_coef"], found["val_mean"]) == (0.0, pytest.approx(at_start, abs=1e-5))
    assert found["test"] == suite.scores(None, suite.tasks)


def test_what_is_finished_is_read_again_and_nothing_else(finished, monkeypatch):
    monkeypatch.setattr(Trainer, "epoch", lambda *_: pytest.fail("finished encoders are trained again"))
    monkeypatch.setattr(
        good_start, "tuned_merge", lambda *_, **__: pytest.fail("a finished merge is made again")
    )
    assert without_seconds(study().run(StudyRequest())) == without_seconds(finished)
    monkeypatch.setitem(CANDIDATES, "mean", Candidate(rule="mean", first=0.1))
    made_again = []
    monkeypatch.setattr(
        good_start, "tuned_merge", lambda *a, **k: made_again.append(k) or tuned_merge(*a, **k)
    )
    other = study().run(StudyRequest())
    assert {made["candidate"].rule for made in made_again} == {"mean"}
    assert len(other["merged"]) == len(finished["merged"])


def without_seconds(results):
    return {name: value for name, value in results.items() if name != "seconds"}


@pytest.mark.usefixtures("finished")
def test_a_damaged_result_is_named_with_its_remedy():
    path = next(base.RUNS.rglob("merged_1_mean.json"))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"merged_1_mean\.json is damaged.*delete this file"):
        study().run(StudyRequest())


def test_a_task_enters_if_it_beats_the_probe_by_the_margin(monkeypatch):
    recipe = dataclasses.replace(RECIPE, epochs=1, parts=1)
    choice = TaskChoice("small", backbone="random-pocket", tasks=DIGITS, recipe=recipe, rates=(1e-5, 3e-3))
    results = choice.run(StudyRequest())
    best = f"{results['rate']:g}"
    means = {rate: sum(row["individual"][rate] for row in results["rows"]) for rate in ("1e-05", "0.003")}
    assert means[best] == max(means.values())
    assert means["1e-05"] != means["0.003"]
    chosen = [
        row["task"] for row in results["rows"] if row["individual"][best] >= row["probe"] + task_choice.MARGIN
    ]
    assert results["tasks"] == chosen
    suite = base.make_suite(load_backbone("random-pocket"), DIGITS, folder=None, seed=0)
    for row in results["rows"]:
        task = suite.tasks[row["task"]]
        assert row["probe"] == round(linear_probe(suite.backbone, task).val_accuracy, 5)
        start = accuracies(suite.backbone, suite.heads, {row["task"]: task}, split="val")[row["task"]]
        assert row["start"] == round(start, 5)
    monkeypatch.setattr(task_choice, "MARGIN", -1.0)
    assert choice.run(StudyRequest())["tasks"] == ["digits", "mirrored"]


@needs_texts
def test_two_tasks_on_texts():
    """The study of texts in miniature: specialists and their merge stand above the start."""
    tasks = base.SuiteSettings(
        suite="text", tasks=("trec6", "emotion"), limit=120, validation=24, test=60, shots=None, recentre=0
    )
    recipe = Settings(learning_rate=2e-3, epochs=4, batch_size=16, clip_norm=1.0)
    made = study(
        backbone="pocket-text", tasks=tasks, recipe=recipe, ages=(4,), rules=("mean",), jointly=False
    )
    results = made.run(StudyRequest(data=TEXT_FOLDER))
    start = sum(results["start"]["0"].values())
    assert sum(results["individual"]["0"]["4"].values()) > start
    assert sum(results["merged"][0]["test"].values()) > start
