"""The studies of chapter 6: what they share with one another, and a merge counted again by hand."""

import dataclasses

import pytest

import study_checks
from small_encoder import tiny_backbone
from small_studies import (
    CORE,
    GRIDS,
    IMAGES,
    RECIPE,
    TEXTS,
    check_record,
    counted,
    make_small,
    run,
    tiny_tasks,
)
from taskvec_mini import merging
from taskvec_mini.benchmarks.data import file_checksums
from taskvec_mini.benchmarks.encoders import state_of
from taskvec_mini.benchmarks.evaluation import accuracies
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies import base
from taskvec_mini.benchmarks.studies import subsets as study_subsets
from taskvec_mini.benchmarks.studies.early_or_late import EarlyOrLate
from taskvec_mini.benchmarks.studies.rounds import Rounds
from taskvec_mini.benchmarks.studies.subsets import Subsets, some_subsets
from taskvec_mini.benchmarks.training import Trainer, finetune


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    make_small(monkeypatch, tmp_path)
    monkeypatch.setattr(study_subsets, "IMAGES", IMAGES)
    monkeypatch.setattr(study_subsets, "RECIPE", RECIPE)


def early_or_late():
    return EarlyOrLate("rules against epochs", tasks=IMAGES, recipe=RECIPE, epochs=(1, 8))


def test_the_studies_of_merging(tmp_path, monkeypatch):
    study = early_or_late()
    early = run(study)
    study_checks.check_early_or_late(early, study.settings, (0, 1))
    check_record(tmp_path, early, study, CORE)
    check_again(tmp_path / "again", early, monkeypatch)
    by_hand = check_a_merge_by_hand(early)
    monkeypatch.setattr(Trainer, "epoch", lambda *_: pytest.fail("finished encoders are trained again"))
    study = Subsets("some tasks", subsets=some_subsets(CORE))
    needs = run(study)
    study_checks.check_some_tasks(needs, study.settings, (0, 1), some_subsets(CORE))
    study_checks.check_same_encoders(early, needs)
    check_frozen_heads_by_hand(needs, *by_hand)
    check_record(tmp_path, needs, study, CORE)


def check_again(folder, results, monkeypatch):
    """Seed 1 by itself, in a folder of its own, is what it was after seed 0."""
    with monkeypatch.context() as patch:
        patch.setattr(base, "RUNS", folder)
        again = run(early_or_late(), seeds=(1,))
    for kind in ("zero_shot", "individual", "joint", "cross"):
        assert again[kind]["1"] == results[kind]["1"]
    assert again["merged"] == [row for row in results["merged"] if row["seed"] == 1]
    assert again["grid"] == []  # of the first seed alone


def check_a_merge_by_hand(results):
    """The mean of all eight after eight epochs, seed 1: encoders, average, λ and accuracy made anew.

    The heads, the tasks and the merged vector are handed on.
    """
    backbone, tasks = tiny_backbone(seed=len("pocket")), tiny_tasks(1)
    heads = {name: prototype_head(backbone, task, shots=5) for name, task in tasks.items()}
    recipe = dataclasses.replace(RECIPE, seed=1)
    alone = {
        name: finetune(backbone, heads[name], task, settings=recipe, progress=False)
        for name, task in tasks.items()
    }
    row = next(r for r in results["merged"] if (r["seed"], r["epoch"], r["rule"]) == (1, 8, "mean"))
    merged = merging.mean([each.task_vector() for each in alone.values()])
    val = {}
    for coef in GRIDS["mean"]:
        state = merged.apply_to(state_of(backbone.model), coef)
        scores = [counted(state, heads[n], tasks[n], recentre=9, split="val") for n in tasks]
        val[coef] = sum(scores) / 8
    assert row["scaling_coef"] == max(val, key=lambda coef: (round(val[coef], 4), -coef))
    assert row["val_mean"] == pytest.approx(val[row["scaling_coef"]], abs=1e-4)
    state = merged.apply_to(state_of(backbone.model), row["scaling_coef"])
    assert row["test"] == {name: counted(state, heads[name], tasks[name], recentre=9) for name in tasks}
    single = {name: counted(alone[name].state(), heads[name], tasks[name], recentre=9) for name in tasks}
    assert results["individual"]["1"]["8"] == single
    half = alone["cars"].task_vector().apply_to(state_of(backbone.model), 0.5)
    moved = accuracies(backbone, heads, tasks, parameters=half, recentre=9)
    zero = results["zero_shot"]["1"]
    assert results["cross"]["1"]["cars"] == pytest.approx({n: moved[n] - zero[n] for n in tasks}, abs=1e-4)
    return heads, tasks, merged


def check_frozen_heads_by_hand(results, heads, tasks, merged):
    """Heads that stay where they are judge the same merge by their own centre."""
    rows = [row for row in results["rows"] if row["centre"] == "frozen"]
    row = next(row for row in rows if (row["seed"], row["epoch"]) == (1, 8))
    start = state_of(tiny_backbone(seed=len("pocket")).model)
    for kind, coef in (("zero_shot", 0.0), ("test", row["scaling_coef"])):
        state = merged.apply_to(start, coef)
        assert row[kind] == {name: counted(state, heads[name], tasks[name], recentre=0) for name in tasks}


def test_the_studies_of_texts():
    about = {"backbone": "pocket-text", "tasks": TEXTS, "recipe": RECIPE}
    study = EarlyOrLate("rules on texts", epochs=(1, 2), **about)
    early = run(study)
    study_checks.check_early_or_late(early, study.settings, (0, 1))
    same = Rounds("two epochs on texts", budget=2, splits=(1, 2), post_hoc=True, **about)
    rounds = run(same)
    study_checks.check_rounds(rounds, same.settings, (0, 1))
    study_checks.check_same_references(early, rounds)
    assert early["texts"] == rounds["texts"] == {name: 30 + i for i, name in enumerate(TEXTS.tasks)}
    files = [f"{name}.{part}.tsv" for name in TEXTS.tasks for part in ("train", "test")]
    assert list(study.data) == list(same.data) == files
    assert study.data["sst2.test.tsv"] == file_checksums("sst2")["sst2.test.tsv"]
    assert study.settings["training_texts"] == 1200
