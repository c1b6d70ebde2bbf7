"""What studies share: tasks cut alike, models judged alike, what a record says."""

import dataclasses
import itertools
import re
import sys

import pytest
import torch

from small_studies import CORE, IMAGES, RECIPE, load_small, load_tiny, make_small
from taskvec_mini.benchmarks.encoders import load_backbone, state_of
from taskvec_mini.benchmarks.evaluation import accuracies
from taskvec_mini.benchmarks.heads import fit_sentence_tower
from taskvec_mini.benchmarks.heads.templates import templates_for, words_for
from taskvec_mini.benchmarks.studies import STUDIES, base, good_start
from taskvec_mini.benchmarks.studies.subsets import some_subsets


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    make_small(monkeypatch, tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75, 1.0])
def test_a_suite_keeps_the_proportions_of_its_tasks(share):
    whole = load_tiny(CORE, suite="bundle", folder=None, limit=None, seed=3)
    chosen = base.SuiteSettings(share=share, validation=7)
    cut = base.study_tasks(chosen, folder=None, seed=3)
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


@pytest.mark.parametrize(("test", "recentre"), [(20, 0), (30, 9)])
def test_every_way_to_judge_asks_the_suite_how(monkeypatch, test, recentre):
    """The suite's own number of test images and its own way with centres, also where λ is tuned."""
    calls = []

    def watched(function):
        def call(*given, **options):
            calls.append((options.get("limit"), options["recentre"]))
            return function(*given, **options)

        return call

    monkeypatch.setattr(base, "accuracies", watched(accuracies))
    monkeypatch.setattr(base, "sweep", watched(base.sweep))
    chosen = dataclasses.replace(IMAGES, tasks=("cars", "mnist"), test=test, recentre=recentre)
    suite = base.make_suite(load_small("pocket"), chosen, folder=None, seed=0)
    runs = base.individual_runs(suite, recipe=RECIPE, epochs=[1])
    vectors = {name: run.task_vector() for name, run in runs.items()}
    zero = suite.scores(None, suite.tasks)
    suite.merge("mean", vectors)
    base.grid(suite, 1, merged=vectors["cars"], base=zero)
    base.cross(suite, vectors.items(), base=zero)
    assert set(calls) == {(test, recentre), (None, recentre)}
    assert calls.count((None, recentre)) == 1, "one search for λ, on all validation images"


def test_rules_that_draw_draw_the_same_for_every_study():
    suite = base.make_suite(load_small("pocket"), IMAGES, folder=None, seed=0)
    start = state_of(suite.backbone.model)
    runs = base.individual_runs(suite, recipe=RECIPE, epochs=[1])
    vectors = [run.task_vector() for run in runs.values()]
    once, again = base.merge_vectors("dare", vectors), base.merge_vectors("dare", vectors)
    assert torch.equal(once.flat, again.flat)
    share = float((once.flat != 0).double().mean())
    assert abs(share - (1 - 0.9 ** len(vectors))) < 0.1, "nine tenths of each vector are dropped"
    assert once.apply_to(start, 0.0).keys() == start.keys()


def test_sets_of_tasks_are_drawn_once_and_kin_come_first():
    chosen = some_subsets(CORE)
    assert chosen == some_subsets(list(CORE))
    assert [len(names) for names in chosen] == [2] * 3 + [3] * 3 + [5] * 3
    assert len(set(map(frozenset, chosen))) == 9
    assert all(set(names) <= set(CORE) and len(set(names)) == len(names) for names in chosen)
    assert chosen[0] == ("mnist", "streetchars")
    assert chosen[3] == ("mnist", "streetchars", "gtsrb")
    assert set(itertools.chain(*chosen)) == set(CORE), "every task takes part somewhere"


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_listed_and_asked_for(name):
    study = STUDIES[name]
    assert re.fullmatch(r"(\d\d_)?[a-z]\w+", name)
    assert len(study.description.split()) >= 5
    assert study.seeds
    assert all(type(seed) is int for seed in study.seeds)
    for option in dataclasses.fields(study.request):
        assert option.metadata["help"]
        assert option.default in (None, False), "only what was asked for stands in the record's command"


def test_descriptions_tell_studies_apart():
    assert len({study.description for study in STUDIES.values()}) == len(STUDIES)


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "clip"])
def test_encoders_may_lie_in_the_folder_that_is_asked_for(monkeypatch, tmp_path, name):
    class FoundError(Exception):
        pass

    def load_backbone(_name, *, folder, **_):
        assert folder == tmp_path
        raise FoundError

    study = STUDIES[name]
    monkeypatch.setattr(base, "load_tasks", lambda *_, **__: {})
    kinds = {type(each) for each in (study, *getattr(study, "studies", {}).values())}
    for module in (*(sys.modules[kind.__module__] for kind in kinds), good_start):  # some begin with its own
        monkeypatch.setattr(module, "load_backbone", load_backbone, raising=False)
    with pytest.raises(FoundError):
        study.run(base.StudyRequest(data=tmp_path))


def test_studies_that_train_otherwise_keep_their_runs_apart(tmp_path):
    chosen = dataclasses.replace(IMAGES, tasks=("cars",))
    places = {
        word: base.make_suite(
            load_small("pocket"), dataclasses.replace(chosen, runs=word), folder=None, seed=1
        ).experiment
        for word in ("", "rounds")
    }
    assert places[""].run("cars").path == tmp_path / "pocket" / "seed1" / "cars"
    assert places["rounds"].run("cars").path == tmp_path / "pocket-rounds" / "seed1" / "cars"


def test_heads_made_of_sentences_see_no_training_image(monkeypatch):
    backbone = load_small("pocket")
    texts = load_backbone("random-pocket-text")
    tower = fit_sentence_tower(texts, ["a cat", "a dog", "a car"], torch.eye(3, backbone.features))
    asked = []
    monkeypatch.setattr(base, "sentence_tower", lambda name: asked.append(name) or tower)
    chosen = dataclasses.replace(IMAGES, tasks=("cars", "rsscn7"), heads="zero-shot", recentre=0)
    suites = [base.make_suite(backbone, chosen, folder=None, seed=seed) for seed in (0, 1)]
    assert asked == ["pocket", "pocket"], "one tower for all tasks"
    for name, head in suites[0].heads.items():
        assert torch.equal(head.prototypes, suites[1].heads[name].prototypes)
        words = words_for(suites[0].tasks[name])
        wanted = tower.directions(words, templates=templates_for(suites[0].tasks[name]))
        torch.testing.assert_close(head.prototypes, wanted)
    assert suites[0].about["heads"] == "zero-shot"
    assert "shots" not in suites[0].about
