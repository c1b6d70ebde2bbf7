"""The study of exchanged gradients in miniature: its rows, the theorem in them, and that it is read again."""

import dataclasses

import pytest

import study_checks
from conftest import ROOT
from small_studies import FEW, FEW_IMAGES, RECIPE, check_record, load_small, make_small, run
from taskvec_mini import records
from taskvec_mini.benchmarks.studies import exchange as study_exchange
from taskvec_mini.benchmarks.studies.exchange import Exchange
from taskvec_mini.benchmarks.studies.registry import STUDIES

ADAMW = dataclasses.replace(RECIPE, centre="frozen")
GD = dataclasses.replace(ADAMW, optimizer="gd", learning_rate=2.0)


@pytest.fixture
def small(monkeypatch, tmp_path):
    make_small(monkeypatch, tmp_path)
    monkeypatch.setattr(study_exchange, "load_backbone", load_small)


def rows_of(results, **where):
    return [row for row in results["rows"] if all(row.get(key) == value for key, value in where.items())]


def test_the_study_of_exchanges(small, tmp_path, monkeypatch):
    study = Exchange("small", tasks=FEW_IMAGES, recipes={"gd": GD, "adamw": ADAMW}, budget=2, splits=(1, 2))
    results = run(study)
    check_record(tmp_path, results, study)
    study_checks.check_exchange(results, study.settings, (0, 1))
    for seed in (0, 1):
        (joint,) = rows_of(results, seed=seed, optimizer="gd", training="joint")
        (exact,) = rows_of(results, seed=seed, optimizer="gd", rounds=1, exchange=True)
        assert exact["test"] == joint["test"], "two full-batch epochs with an exchange are joint descent"
        (plain,) = rows_of(results, seed=seed, optimizer="adamw", rounds=2, exchange=False)
        (pulled,) = rows_of(results, seed=seed, optimizer="adamw", rounds=2, exchange=True)
        assert [each["round"] for each in pulled["history"]] == [0, 1, 2]
        assert plain["history"][0] == pulled["history"][0]
        assert plain["history"][1]["norms"] != pulled["history"][1]["norms"]
        last, other = pulled["history"][-1], plain["history"][-1]
        assert last["floats_communicated"] == 2 * other["floats_communicated"]
        assert last["gradient_evaluations"] == other["gradient_evaluations"] + 2 * len(FEW)

    def never(*_args, **_options):
        raise AssertionError("what is finished is read")

    monkeypatch.setattr(study_exchange, "alternate_tasks", never)
    monkeypatch.setattr(study_exchange, "finetune_jointly", never)
    again = Exchange("small", tasks=FEW_IMAGES, recipes={"gd": GD, "adamw": ADAMW}, budget=2, splits=(1, 2))
    assert run(again) == results


def test_the_registered_ones_ask_for_what_chapter_ten_says():
    texts, images = STUDIES["10_exchange_texts"], STUDIES["10_exchange_images"]
    assert (texts.backbone, len(texts.tasks.tasks), texts.tasks.suite) == ("minilm", 4, "text")
    assert set(images.recipes) == set(texts.recipes) == {"sgd", "momentum", "adamw"}
    assert images.recipes["momentum"].momentum == texts.recipes["momentum"].momentum == 0.9
    assert texts.seeds == images.seeds == (0, 1, 2)


def test_the_rates_of_sgd_are_those_that_the_search_found_best():
    folder = ROOT / "book" / "recorded"
    found = records.read(folder / "10_exchange_rates.json")["results"]["studies"]
    found |= records.read(folder / "10_descent_rates.json")["results"]["studies"]
    texts, images = STUDIES["10_exchange_texts"], STUDIES["10_exchange_images"]
    chosen = {"images, sgd": images.recipes["sgd"], "images, momentum": images.recipes["momentum"]}
    chosen |= {f"texts, {name}": texts.recipes[name] for name in ("sgd", "momentum")}
    for name, recipe in chosen.items():
        rows = found[name]["rows"]
        means = {rate: sum(row["individual"][rate] for row in rows) for rate in rows[0]["individual"]}
        assert max(means, key=means.get) == f"{recipe.learning_rate:g}" == f"{found[name]['rate']:g}"
        assert [row["task"] for row in rows] == list((texts if "texts" in name else images).tasks.tasks)
