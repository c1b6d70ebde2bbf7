"""The study of the first epoch: its identities, and a run counted again by hand."""

import dataclasses

import pytest

import study_checks
from conftest import ROOT
from small_encoder import tiny_backbone
from small_studies import FEW_IMAGES, check_record, counted, make_small, run, tiny_tasks
from taskvec_mini import records
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies import STUDIES, first_epoch
from taskvec_mini.benchmarks.training import finetune, full_batch_gradient

RECIPES = {
    name: dataclasses.replace(recipe, epochs=2, learning_rate=0.02)
    for name, recipe in first_epoch.RECIPES.items()
}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    make_small(monkeypatch, tmp_path)


def small_study():
    tasks = dataclasses.replace(FEW_IMAGES, shots=None, recentre=0)
    return first_epoch.FirstEpoch("the first epoch of a few tasks", recipes=RECIPES, tasks=tasks)


def test_the_study_of_the_first_epoch(tmp_path):
    study = small_study()
    results = run(study)
    study_checks.check_first_epoch(results, study.settings, (0, 1))
    check_record(tmp_path, results, study)
    again = run(small_study(), seeds=(1,))
    assert again["runs"] == [each for each in results["runs"] if each["seed"] == 1]


def test_the_first_gradient_and_the_last_task_vector_are_those_of_a_run_by_itself():
    results = run(small_study(), seeds=(1,))
    backbone, task = tiny_backbone(seed=len("pocket")), tiny_tasks(1)["cars"]
    head = prototype_head(backbone, task)
    recipe = dataclasses.replace(RECIPES["adamw"], seed=1)
    alone = finetune(backbone, head, task, settings=recipe, progress=False)
    found = next(r for r in results["runs"] if (r["task"], r["optimizer"]) == ("cars", "adamw"))
    vector, slope = alone.task_vector().flat.double(), full_batch_gradient(backbone, head, task)
    assert found["task_vector_norms"][-1] == pytest.approx(float(vector.norm()), abs=1e-6)
    assert found["gradient_norms"][0] == pytest.approx(float(slope.norm()), abs=1e-6)
    cosine = float(-slope @ vector / slope.norm() / vector.norm())
    assert found["cosine_gradient_final"][0] == pytest.approx(cosine, abs=1e-5)
    score = counted(alone.state(), head, task, recentre=0, split="val")
    assert found["val_accuracy"][-1] == pytest.approx(score, abs=1e-5)


def test_the_rates_of_descent_from_a_good_start_are_those_that_the_searches_found_best():
    folder = ROOT / "book" / "recorded"
    found = records.read(folder / "05_efficientnet_rates.json")["results"]["studies"]
    texts = records.read(folder / "10_descent_rates.json")["results"]["studies"]["texts, gd"]
    images, minilm = STUDIES["05_efficientnet_descent"].recipes, STUDIES["05_minilm_descent"].recipes
    assert {name: recipe.learning_rate for name, recipe in images.items()} == {
        name: study["rate"] for name, study in found.items()
    }
    assert minilm["gd"].learning_rate == texts["rate"]
    texts = records.read(folder / "10_exchange_rates.json")["results"]["studies"]["texts, sgd"]
    assert minilm["sgd"].learning_rate == texts["rate"]
