"""Merges of full-batch descent on encoders: the theorem in the rows, and gradients counted by another way."""

import dataclasses

import pytest
import torch

import study_checks
from conftest import ROOT
from small_encoder import tiny_backbone
from small_studies import FEW, FEW_IMAGES, RECIPE, check_record, load_small, make_small, run, tiny_tasks
from taskvec_mini import records, theory
from taskvec_mini.benchmarks.encoders import trained_parameters
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies import corrected
from taskvec_mini.benchmarks.studies.corrected import Corrected, task_losses
from taskvec_mini.benchmarks.studies.registry import STUDIES
from taskvec_mini.benchmarks.training import finetune, full_batch_gradient
from taskvec_mini.errors import UserError

GD = dataclasses.replace(RECIPE, optimizer="gd", centre="frozen", epochs=4)
RATES = (1e-4, 1e-2)


@pytest.fixture
def small(monkeypatch, tmp_path):
    make_small(monkeypatch, tmp_path)
    monkeypatch.setattr(corrected, "load_backbone", load_small)


def small_study():
    return Corrected("small", tasks=FEW_IMAGES, recipe=GD, rates=RATES)


def test_the_study_of_corrected_merges(small, tmp_path, monkeypatch):
    study = small_study()
    results = run(study)
    check_record(tmp_path, results, study)
    study_checks.check_corrected(results, study.settings, (0, 1))
    away = {
        row["training"]: row["distance_to_joint"]
        for row in results["rows"]
        if (row["seed"], row["learning_rate"]) == (0, RATES[0])
    }
    assert away["corrected at the start"] < 0.5 * away["one merge"], "small steps"
    assert away["one merge after an exchange"] < 0.5 * away["one merge"]

    def never(*_args, **_options):
        raise AssertionError("what is finished is read")

    monkeypatch.setattr(corrected, "task_losses", never)
    assert run(small_study()) == results


def test_the_losses_of_tasks_descend_as_finetuning_does():
    backbone, tasks = tiny_backbone(), {name: tiny_tasks(0)[name] for name in FEW}
    heads = {name: prototype_head(backbone, task) for name, task in tasks.items()}
    losses, start = task_losses(backbone, heads, tasks)
    vectors = theory.task_vectors(losses, start, learning_rate=0.5, epochs=2)
    recipe = dataclasses.replace(GD, learning_rate=0.5, epochs=2)
    for (name, task), loss, vector in zip(tasks.items(), losses, vectors, strict=True):
        slope = full_batch_gradient(backbone, heads[name], task)
        point = start.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(point), point)
        torch.testing.assert_close(found.double(), slope, rtol=1e-4, atol=1e-6)
        own = finetune(backbone, heads[name], task, settings=recipe, progress=False).task_vector().flat
        torch.testing.assert_close(vector, own, rtol=1e-3, atol=1e-6)


def test_a_frozen_parameter_is_refused():
    backbone, tasks = tiny_backbone(), {"cars": tiny_tasks(0)["cars"]}
    heads = {name: prototype_head(backbone, task) for name, task in tasks.items()}
    name, first = next(iter(trained_parameters(backbone.model).items()))
    first.requires_grad_(False)
    with pytest.raises(UserError, match=rf"1 parameters of .* are frozen, such as {name}"):
        task_losses(backbone, heads, tasks)


def test_the_rates_are_those_that_the_search_found_best_and_smaller_ones():
    found = records.read(ROOT / "book" / "recorded" / "10_descent_rates.json")["results"]["studies"]
    studies = {"images, gd": "10_descent_images", "texts, gd": "10_descent_texts"}
    for name, study in studies.items():
        rows = found[name]["rows"]
        means = {rate: sum(row["individual"][rate] for row in rows) for rate in rows[0]["individual"]}
        best = float(max(means, key=means.get))
        assert best in STUDIES[study].rates
        assert STUDIES[study].rates[0] < best / 2
        assert STUDIES[study].recipe == corrected.DESCENT_RATES[name].recipe
