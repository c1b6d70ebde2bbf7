"""The search for a setting and the probes: each does what it says, counted again by hand."""

import dataclasses
import json

import pytest
import torch

import study_checks
from small_encoder import tiny_backbone
from small_studies import FEW, FEW_IMAGES, GRIDS, check_record, counted, make_small, run, tiny_tasks
from taskvec_mini.benchmarks.heads import linear_probe, prototype_head
from taskvec_mini.benchmarks.studies import ablations
from taskvec_mini.benchmarks.training import Settings, finetune

NAMES = (
    "chosen",
    "centre frozen in training and judging",
    "heads from all training images",
    "SGD, learning rate 2e-3",
)


@pytest.fixture
def small(monkeypatch, tmp_path):
    make_small(monkeypatch, tmp_path)
    monkeypatch.setattr(ablations, "TASKS", FEW_IMAGES)
    monkeypatch.setattr(ablations, "IMAGES", FEW_IMAGES)
    variants = {name: ablations.VARIANTS[name] for name in NAMES}
    monkeypatch.setattr(ablations, "VARIANTS", variants)


def test_the_search_changes_what_it_says(tmp_path, small):
    study = ablations.Search()
    results = run(study, seeds=(0,))
    study_checks.check_search(results, {**study.settings, "grids": GRIDS}, FEW)
    check_record(tmp_path, results, study)
    assert run(ablations.Search(), seeds=(0,)) == results
    backbone, task = tiny_backbone(seed=len("pocket")), tiny_tasks(0)["cars"]
    for name, shots, recentre, centre in (
        ("chosen", 5, 9, "batch"),
        ("centre frozen in training and judging", 5, 0, "frozen"),
        ("heads from all training images", None, 9, "batch"),
    ):
        head = prototype_head(backbone, task, shots=shots)
        settings = dataclasses.replace(ablations.CHOSEN, centre=centre)
        alone = finetune(backbone, head, task, settings=settings, progress=False)
        row = next(row for row in results["rows"] if row["variant"] == name)
        assert row["individual"]["cars"] == counted(alone.state(), head, task, recentre=recentre)


def test_the_spread_changes_the_threads_alone_and_puts_them_back(tmp_path, small, monkeypatch):
    used = []
    monkeypatch.setattr(ablations.torch, "set_num_threads", used.append)
    study = ablations.Spread()
    results = run(study, seeds=(0,))
    assert used == [1, 2, torch.get_num_threads()]
    check_record(tmp_path, results, study)
    found = [{name: row[name] for name in ("zero_shot", "individual", "merged")} for row in results["rows"]]
    chosen = run(ablations.Search(), seeds=(0,))["rows"][0]
    chosen.pop("variant")
    assert found == [chosen, chosen], "with as many threads all numbers are the same"


def test_variants_name_settings_that_exist():
    fields = {each.name for each in dataclasses.fields(Settings)}
    variants = ablations.VARIANTS
    assert variants["chosen"] == {}
    assert len({json.dumps(each, sort_keys=True) for each in variants.values()}) == len(variants)
    for changes in variants.values():
        recipe = {name: value for name, value in changes.items() if name in fields}
        assert set(changes) - set(recipe) <= {"backbone", "recentre", "shots"}
        dataclasses.replace(ablations.CHOSEN, **recipe)


def test_the_probes_of_each_encoder(tmp_path, small):
    study = ablations.Probes()
    results = run(study, seeds=(0,))
    study_checks.check_probes(results, study.settings, FEW)
    check_record(tmp_path, results, study)
    task = tiny_tasks(0)["gtsrb"]
    expected = linear_probe(tiny_backbone(seed=6), task).accuracy
    assert results["pocket"]["gtsrb"] == pytest.approx(expected, abs=1e-5)
