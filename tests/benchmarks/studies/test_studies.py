"""The recorded studies: tiny runs of each counted again by hand, and identities in every record there is."""

import argparse
import dataclasses
import itertools
import json
import re
from functools import partial

import pytest
import torch

import study_checks
from conftest import ROOT
from small_encoder import tiny_backbone, tiny_task
from small_texts import tiny_text_encoder, tiny_text_task
from taskvec_mini import merging, records
from taskvec_mini.benchmarks.data import text_tables as text_sources
from taskvec_mini.benchmarks.data.suites import BUNDLE, CORE
from taskvec_mini.benchmarks.encoders.parameters import state_of
from taskvec_mini.benchmarks.evaluation.accuracy import accuracies
from taskvec_mini.benchmarks.heads import linear_probe, prototype_head
from taskvec_mini.benchmarks.studies import ablations as study_search
from taskvec_mini.benchmarks.studies import base as study_data
from taskvec_mini.benchmarks.studies import early_or_late as study_merging
from taskvec_mini.benchmarks.studies import first_epoch as study_first_epoch
from taskvec_mini.benchmarks.studies import probes as study_probes
from taskvec_mini.benchmarks.studies import rounds as study_rounds
from taskvec_mini.benchmarks.studies import subsets as study_needs
from taskvec_mini.benchmarks.studies import text as study_text
from taskvec_mini.benchmarks.studies.registry import STUDIES
from taskvec_mini.benchmarks.training.finetune import Settings, finetune
from taskvec_mini.benchmarks.training.gradients import full_batch_gradient
from taskvec_mini.benchmarks.training.trainer import Trainer

FEW = ("gtsrb", "rsscn7", "cars")
SETS_WITH_MOST_TO_GAIN = [study_needs.MOST_TO_GAIN[:size] for size in (4, 5, 6, 7)]
OPTIONS = argparse.Namespace(data=None)
SHELF = ROOT / "book" / "recorded"
RECORDED = sorted([*SHELF.glob("0[567]_*.json"), *SHELF.glob("encoder_probes.json")])
SEARCH_GRIDS = {rule: study_merging.RULES[rule][1] for rule in study_merging.TWO_RULES}
RECIPE = Settings(learning_rate=0.02, epochs=8, batch_size=16, centre="batch")
GRIDS = {rule: (combine, coefs[1:3]) for rule, (combine, coefs) in study_merging.RULES.items()}
VARIANTS = {
    name: study_search.VARIANTS[name]
    for name in (
        "chosen",
        "centre frozen in training and judging",
        "heads from all training images",
        "SGD, learning rate 2e-3",
    )
}


def load_tiny(names, *, folder, seed):
    """Tasks of unequal size under names of the bundle; each seed has images of its own."""
    assert folder is None
    places = {name: CORE.index(name) for name in names}
    return {name: hard_task(name, train=40 + 4 * i, seed=1000 * seed + 10 * i) for name, i in places.items()}


def hard_task(name, *, train, seed):
    """Patches of noise over every image, so that no encoder is always right."""
    task, parts = tiny_task(name, train=train, seed=seed), {}
    generator = torch.Generator().manual_seed(seed)
    for part in ("train_images", "val_images", "test_images"):
        images = getattr(task, part).long()
        noise = torch.randint(0, 140, (len(images), 4, 4, 3), generator=generator)
        spread = noise.repeat_interleave(8, 1).repeat_interleave(8, 2)
        parts[part] = ((images + spread) // 2).to(torch.uint8)
    return dataclasses.replace(task, **parts)


def tiny_tasks(seed, share):
    """The first images of each, as a study takes them."""
    tasks = load_tiny(CORE, folder=None, seed=seed)
    for name, task in tasks.items():
        count = round(share * len(task.train_labels))
        parts = {"train_images": task.train_images[:count], "train_labels": task.train_labels[:count]}
        tasks[name] = dataclasses.replace(task, **parts)
    return tasks


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Studies of a second: tiny images, a tiny encoder, short grids, two epochs or a few more."""
    monkeypatch.setattr(study_data, "load_tasks", load_tiny)
    for module in (study_first_epoch, study_merging, study_needs, study_rounds, study_search, study_probes):
        monkeypatch.setattr(module, "load_backbone", load_small)
        if hasattr(module, "SHARE"):
            monkeypatch.setattr(module, "SHARE", 0.75)
    recipes = {
        name: dataclasses.replace(recipe, epochs=2, learning_rate=0.02)
        for name, recipe in study_first_epoch.RECIPES.items()
    }
    for module, name, value in (
        (study_first_epoch, "EPOCHS", 2),
        (study_first_epoch, "RECIPES", recipes),
        (study_merging, "RULES", GRIDS),
        (study_rounds, "RULES", GRIDS),
        (study_merging, "RUNS", tmp_path),
        (study_merging, "RECENTRE", 9),
        (study_search, "VARIANTS", VARIANTS),
    ):
        monkeypatch.setattr(module, name, value)
    for method in (study_merging.Suite.scores, study_merging.Suite.merge, study_merging.Suite.tuned):
        monkeypatch.setitem(method.__kwdefaults__, "recentre", 9)
    monkeypatch.setitem(study_merging.experts.__kwdefaults__, "recipe", RECIPE)


@pytest.fixture
def few(monkeypatch):
    """Three of the eight tasks, where they will do."""
    monkeypatch.setattr(study_data, "CORE", FEW)


def load_small(name):
    """A tiny encoder under the name that was asked for."""
    return dataclasses.replace(tiny_backbone(seed=len(name)), name=name)


def early_or_late(epochs=(1, 8)):
    return study_merging.EarlyOrLate("rules against epochs", recipe=RECIPE, epochs=epochs)


def run(kind, seeds=(0, 1)):
    """A fresh study with fewer seeds; its results and itself."""
    study = kind()
    study.seeds = seeds
    return study.run(OPTIONS), study


def first_epoch():
    return study_first_epoch.FirstEpoch(study_first_epoch.RECIPES, "the first epoch of a few tasks")


def check_record(tmp_path, results, study, names=FEW):
    """What a study says about itself makes a complete record, and comes back as it was."""
    about = {"seeds": study.seeds, "settings": study.settings, "data": study.data}
    written = records.write(tmp_path / "found.json", results, command="record", seconds=1.0, **about)
    assert records.read(tmp_path / "found.json") == written
    assert written["results"] == json.loads(json.dumps(results))
    assert list(study.data) == [f"{name}.npz" for name in names]


def counted(state, head, task, *, recentre, split="test"):
    """The share of images that a head sees rightly, its centre moved by hand; rounded as in a record."""
    backbone = tiny_backbone(seed=len("pocket"))
    backbone.model.load_state_dict(state)
    single = lambda image: backbone.model(backbone.prepare(image[None]))[0].detach()  # noqa: E731
    centre = head.centre
    if recentre:
        first = task.train_images[:recentre]
        centre = sum(map(single, first)) / len(first)
    guesses = [int((head.prototypes @ (single(image) - centre)).argmax()) for image in task.part(split)[0]]
    right = sum(a == b for a, b in zip(guesses, task.part(split)[1].tolist(), strict=True))
    return round(right / len(guesses), 5)


# --- what the studies share ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75, 1.0])
def test_a_suite_keeps_the_proportions_of_its_tasks(monkeypatch, share):
    monkeypatch.setattr(study_data, "VALIDATION", 7)
    whole, cut = load_tiny(CORE, folder=None, seed=3), study_data.suite(None, 3, share)
    assert list(cut) == list(CORE)
    for name, task in cut.items():
        count = len(task.train_labels)
        assert abs(count - share * len(whole[name].train_labels)) <= 0.5
        assert torch.equal(task.train_images, whole[name].train_images[:count])
        assert torch.equal(task.train_labels, whole[name].train_labels[:count])
        assert torch.equal(task.val_images, whole[name].val_images[:7])
        assert torch.equal(task.val_labels, whole[name].val_labels[:7])
        assert torch.equal(task.test_images, whole[name].test_images)
        assert task.sha256 == whole[name].sha256


def test_sets_of_tasks_are_drawn_once_and_kin_come_first():
    chosen = study_needs.subsets(CORE)
    assert chosen == study_needs.subsets(list(CORE))
    assert [len(names) for names in chosen] == [2] * 3 + [3] * 3 + [5] * 3
    assert len(set(map(frozenset, chosen))) == 9
    assert all(set(names) <= set(CORE) and len(set(names)) == len(names) for names in chosen)
    assert chosen[0] == ("mnist", "streetchars")
    assert chosen[3] == ("mnist", "streetchars", "gtsrb")
    assert set(itertools.chain(*chosen)) == set(CORE), "every task takes part somewhere"


def test_numbers_are_rounded_to_plain_lists():
    assert study_data.rounded(torch.tensor([[1 / 3, 2.0]])) == [[0.333333, 2.0]]
    assert study_data.rounded(torch.tensor([0.25, -1 / 3]), digits=2) == [0.25, -0.33]


# --- the list --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_listed_and_run(name):
    study = STUDIES[name]
    assert re.fullmatch(r"(\d\d_)?[a-z]\w+", name)
    assert len(study.description.split()) >= 5
    assert study.seeds
    assert all(type(seed) is int for seed in study.seeds)
    assert study.device == "cpu"
    assert callable(study.run)


def test_descriptions_tell_studies_apart():
    assert len({study.description for study in STUDIES.values()}) == len(STUDIES)


# --- 05_first_epoch --------------------------------------------------------------------------------------


def test_the_study_of_the_first_epoch(tmp_path, few):
    results, study = run(first_epoch)
    study_checks.check_first_epoch(results, study.settings, (0, 1))
    check_record(tmp_path, results, study)
    again, _ = run(first_epoch, seeds=(1,))
    assert again["runs"] == [each for each in results["runs"] if each["seed"] == 1]


def test_the_first_gradient_and_the_last_task_vector_are_those_of_a_run_by_itself(few):
    results, _ = run(first_epoch, seeds=(1,))
    backbone, task = tiny_backbone(seed=len("pocket")), tiny_tasks(1, 0.75)["cars"]
    head = prototype_head(backbone, task)
    recipe = dataclasses.replace(study_first_epoch.RECIPES["adamw"], seed=1)
    alone = finetune(backbone, head, task, settings=recipe, progress=False)
    found = next(r for r in results["runs"] if (r["task"], r["optimizer"]) == ("cars", "adamw"))
    vector, slope = alone.task_vector().flat.double(), full_batch_gradient(backbone, head, task)
    assert found["task_vector_norms"][-1] == pytest.approx(float(vector.norm()), abs=1e-6)
    assert found["gradient_norms"][0] == pytest.approx(float(slope.norm()), abs=1e-6)
    cosine = float(-slope @ vector / slope.norm() / vector.norm())
    assert found["cosine_gradient_final"][0] == pytest.approx(cosine, abs=1e-5)
    score = counted(alone.state(), head, task, recentre=0, split="val")
    assert found["val_accuracy"][-1] == pytest.approx(score, abs=1e-5)


# --- 06_early_or_late and 06_what_a_merge_needs ----------------------------------------------------------


def test_the_studies_of_merging(tmp_path, monkeypatch):
    early, study = run(early_or_late)
    study_checks.check_early_or_late(early, study.settings, (0, 1))
    check_record(tmp_path, early, study, CORE)
    check_again(tmp_path / "again", early, monkeypatch)
    by_hand = check_a_merge_by_hand(early)
    monkeypatch.setattr(Trainer, "epoch", lambda *_: pytest.fail("finished encoders are trained again"))
    needs, study = run(study_needs.WhatAMergeNeeds)
    study_checks.check_some_tasks(needs, study.settings, (0, 1), study_needs.subsets(CORE))
    study_checks.check_same_encoders(early, needs)
    check_frozen_heads_by_hand(needs, *by_hand)
    check_record(tmp_path, needs, study, CORE)
    gain, study = run(study_needs.MostToGain, seeds=(1,))
    study_checks.check_some_tasks(gain, study.settings, (1,), SETS_WITH_MOST_TO_GAIN, frozen=False)
    study_checks.check_same_encoders(early, gain)


def check_again(folder, results, monkeypatch):
    """Seed 1 by itself, in a folder of its own, is what it was after seed 0."""
    with monkeypatch.context() as patch:
        patch.setattr(study_merging, "RUNS", folder)
        again, _ = run(early_or_late, seeds=(1,))
    for kind in ("zero_shot", "individual", "joint", "cross"):
        assert again[kind]["1"] == results[kind]["1"]
    assert again["merged"] == [row for row in results["merged"] if row["seed"] == 1]
    assert again["grid"] == []  # of the first seed alone


def check_a_merge_by_hand(results):
    """The mean of all eight after eight epochs, seed 1: encoders, average, λ and accuracy made anew.

    The heads, the tasks and the merged vector are handed on.
    """
    backbone, tasks = tiny_backbone(seed=len("pocket")), tiny_tasks(1, 0.75)
    heads = {name: prototype_head(backbone, task, shots=5) for name, task in tasks.items()}
    recipe = dataclasses.replace(RECIPE, seed=1)
    alone = {
        name: finetune(backbone, heads[name], task, settings=recipe, progress=False)
        for name, task in tasks.items()
    }
    row = next(r for r in results["merged"] if (r["seed"], r["epoch"], r["rule"]) == (1, 8, "mean"))
    merged = merging.mean([each.task_vector() for each in alone.values()])
    val = {}
    for coef in GRIDS["mean"][1]:
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


# --- 07_rounds ------------------------------------------------------------------------------------------


def rounds_study(**options):
    about = {"recipe": RECIPE, "budget": 2, "splits": (1, 2), **options}
    return study_rounds.Rounds("a budget of two epochs", **about)


def test_the_study_of_rounds(tmp_path, few):
    results, study = run(partial(rounds_study, post_hoc=True))
    study_checks.check_rounds(results, study.settings, (0, 1))
    check_record(tmp_path, results, study)
    early, _ = run(partial(early_or_late, (1, 2)))
    study_checks.check_same_references(early, results)
    once = {row["seed"]: row["tuned"] for row in results["rounds"] if row["rounds"] == 1}
    for row in early["merged"]:
        if (row["epoch"], row["rule"]) == (2, "mean"):
            assert once[row["seed"]] == {key: row[key] for key in ("scaling_coef", "val_mean", "test")}


def test_the_study_of_rounds_under_another_rule(few):
    results, study = run(partial(rounds_study, rule="tsv"), seeds=(1,))
    study_checks.check_rounds(results, study.settings, (1,))
    assert "post_hoc" not in results


# --- 07_text --------------------------------------------------------------------------------------------


def load_tiny_texts(names, *, folder, seed, limit):
    """Tasks of texts under the names of the study; each seed has an order of its own."""
    assert (folder, limit) == (None, study_text.TRAIN)
    tasks = {name: tiny_text_task(name, classes=2 + i % 3, train=30 + i) for i, name in enumerate(names)}
    for name, task in tasks.items():
        order = torch.randperm(len(task.train_labels), generator=torch.Generator().manual_seed(seed))
        parts = {"train_tokens": task.train_tokens[order], "train_labels": task.train_labels[order]}
        tasks[name] = dataclasses.replace(task, **parts)
    return tasks


@pytest.fixture
def texts(monkeypatch):
    monkeypatch.setattr(study_text, "load_text_tasks", load_tiny_texts)
    monkeypatch.setattr(study_text, "VALIDATION", 6)
    for module in (study_merging, study_rounds):
        monkeypatch.setattr(module, "load_backbone", lambda name: tiny_text_encoder())
    return {"recipe": RECIPE, "make": study_text.make_text_suite}


def test_the_studies_of_texts(tmp_path, texts):
    make = partial(study_merging.EarlyOrLate, "rules on texts", epochs=(1, 2), **texts)
    early, study = run(make)
    study_checks.check_early_or_late(early, study.settings, (0, 1))
    rounds, same = run(partial(rounds_study, post_hoc=True, **texts))
    study_checks.check_rounds(rounds, same.settings, (0, 1))
    study_checks.check_same_references(early, rounds)
    assert early["texts"] == rounds["texts"] == {name: 30 + i for i, name in enumerate(study_text.TASKS)}
    files = [f"{name}.{part}.tsv" for name in study_text.TASKS for part in ("train", "test")]
    assert list(study.data) == list(same.data) == files
    assert study.data["sst2.test.tsv"] == text_sources.BUNDLE["sst2"][1]
    assert study.settings["training_texts"] == study_text.TRAIN


# --- 06_search, encoder_probes ---------------------------------------------------------------------------


def test_the_search_changes_what_it_says(tmp_path, few):
    results, study = run(study_search.Search, seeds=(0,))
    grids = {rule: coefs for rule, (_, coefs) in GRIDS.items()}
    study_checks.check_search(results, {**study.settings, "grids": grids}, FEW)
    check_record(tmp_path, results, study)
    assert run(study_search.Search, seeds=(0,))[0] == results
    backbone, task = tiny_backbone(seed=len("pocket")), tiny_tasks(0, 0.75)["cars"]
    for name, shots, recentre, centre in (
        ("chosen", 5, 100, "batch"),
        ("centre frozen in training and judging", 5, 0, "frozen"),
        ("heads from all training images", None, 100, "batch"),
    ):
        head = prototype_head(backbone, task, shots=shots)
        settings = dataclasses.replace(study_search.CHOSEN, centre=centre)
        alone = finetune(backbone, head, task, settings=settings, progress=False)
        row = next(row for row in results["rows"] if row["variant"] == name)
        assert row["individual"]["cars"] == counted(alone.state(), head, task, recentre=recentre)


def test_variants_name_settings_that_exist(monkeypatch):
    monkeypatch.undo()
    fields = {each.name for each in dataclasses.fields(Settings)}
    variants = study_search.VARIANTS
    assert variants["chosen"] == {}
    assert len({json.dumps(each, sort_keys=True) for each in variants.values()}) == len(variants)
    for changes in variants.values():
        recipe = {name: value for name, value in changes.items() if name in fields}
        assert set(changes) - set(recipe) <= {"backbone", "recentre", "shots"}
        dataclasses.replace(study_search.CHOSEN, **recipe)


def test_the_probes_of_each_encoder(tmp_path, few):
    results, study = run(study_probes.Probes, seeds=(0,))
    study_checks.check_probes(results, study.settings, FEW)
    check_record(tmp_path, results, study)
    task = tiny_tasks(0, 0.75)["gtsrb"]
    assert results["pocket"]["gtsrb"] == pytest.approx(
        linear_probe(tiny_backbone(seed=6), task).accuracy, abs=1e-5
    )


# --- what was recorded -----------------------------------------------------------------------------------

each_record = pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])


@each_record
def test_a_record_says_which_study_on_which_data_it_is(path):
    record = records.read(path)
    assert re.fullmatch(rf"python -m taskvec_mini\.benchmarks record {path.stem}( .*)?", record["command"])
    assert record["seeds"] == list(STUDIES[path.stem].seeds)
    images = {f"{name}.npz": BUNDLE[name][1] for name in CORE}
    texts = {
        f"{name}.{part}.tsv": sha
        for name in study_text.TASKS
        for part, sha in zip(("train", "test"), text_sources.BUNDLE[name], strict=True)
    }
    assert record["data"] == (texts if path.stem.startswith("07_text") else images)
    assert record["seconds"] > 1


@each_record
def test_a_record_is_consistent_in_itself(path):
    record = records.read(path)
    results, settings, seeds = record["results"], record["settings"], tuple(record["seeds"])
    if path.stem == "06_search":
        study_checks.check_search(results, {**settings, "grids": SEARCH_GRIDS}, CORE)
        return
    if path.stem == "encoder_probes":
        study_checks.check_probes(results, settings, CORE)
        return
    assert seeds == (0, 1, 2)
    assert results["tasks"] == list(study_text.TASKS if path.stem.startswith("07_text") else CORE)
    check = {
        "05_first_epoch": study_checks.check_first_epoch,
        "05_full_batch": study_checks.check_first_epoch,
        "06_early_or_late": study_checks.check_early_or_late,
        "06_another_encoder": study_checks.check_early_or_late,
        "07_rounds": study_checks.check_rounds,
        "07_text": study_checks.check_early_or_late,
        "07_text_rounds": study_checks.check_rounds,
        "07_rounds_regmean": study_checks.check_rounds,
        "06_what_a_merge_needs": partial(study_checks.check_some_tasks, subsets=study_needs.subsets(CORE)),
        "06_most_to_gain": partial(
            study_checks.check_some_tasks, subsets=SETS_WITH_MOST_TO_GAIN, frozen=False
        ),
    }[path.stem]
    check(results, settings, seeds)


def results_of(name):
    path = SHELF / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not recorded yet")
    return records.read(path)["results"]


@pytest.mark.parametrize("name", ["06_what_a_merge_needs", "06_most_to_gain"])
def test_the_records_of_chapter_6_judge_the_same_encoders(name):
    study_checks.check_same_encoders(results_of("06_early_or_late"), results_of(name))


def test_the_tasks_with_most_to_gain_are_those_of_the_record():
    """Ordered by what eight epochs brought to the specialists, over zero shots, in the mean of all seeds."""
    early = results_of("06_early_or_late")
    gains = {
        name: sum(early["individual"][s]["8"][name] - early["zero_shot"][s][name] for s in ("0", "1", "2"))
        for name in early["tasks"]
    }
    assert tuple(sorted(gains, key=gains.get, reverse=True)[:7]) == study_needs.MOST_TO_GAIN
