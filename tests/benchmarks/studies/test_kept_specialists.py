"""Pairs, paths, forgotten examples and weaker starts, in seconds, against arithmetic done here."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

import study_checks
from taskvec_mini import merging, records
from taskvec_mini.benchmarks.encoders import load_backbone, state_of
from taskvec_mini.benchmarks.evaluation import accuracies
from taskvec_mini.benchmarks.studies import StudyRequest, base
from taskvec_mini.benchmarks.studies.good_start import GoodStart
from taskvec_mini.benchmarks.studies.kept_specialists import Forgotten, Pairs, Paths, Readings, learnt_at
from taskvec_mini.benchmarks.studies.registry import STUDIES
from taskvec_mini.benchmarks.studies.task_choice import IMAGE_TASKS, TEXT_TASKS, gaining
from taskvec_mini.benchmarks.training import Settings

RECORDED = Path(__file__).parents[3] / "book" / "recorded"
TASKS = ("digits", "mirrored", "inverted")
SUITE = base.SuiteSettings(
    suite="digits", tasks=TASKS, limit=100, validation=40, test=60, shots=None, recentre=0
)
AGES = (1, 2, 4)
WHOLE = GoodStart(
    "small",
    backbone="random-pocket",
    tasks=SUITE,
    recipe=Settings(learning_rate=1e-4, epochs=4, parts=2, batch_size=20),
    ages=AGES,
    rules=("mean", "iso_c"),
)
WHOLE.seeds = (0,)


@pytest.fixture(scope="module", autouse=True)
def finetuned(tmp_path_factory):
    """The specialists and merges, once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "RUNS", tmp_path_factory.mktemp("studies"))
        results = WHOLE.run(StudyRequest())
        suite, runs = WHOLE.specialists(WHOLE.start(StudyRequest()), StudyRequest(), seed=0)
        yield results, suite, runs


def run_of(study):
    study.seeds = (0,)
    results = study.run(StudyRequest())
    assert json.loads(json.dumps(results)) == results
    assert study.settings["recipe"]["parts"] == 2
    assert study.data
    return results


def test_the_whole_is_consistent_in_itself(finetuned):
    study_checks.check_good_start(finetuned[0], WHOLE.settings, (0,))


def test_pairs_are_merged_and_tuned_by_themselves(finetuned):
    _, suite, runs = finetuned
    results = run_of(Pairs("small", specialists=WHOLE))
    study_checks.check_pairs(results, seeds=(0,))
    rows = results["rows"]
    assert [row["pair"] for row in rows] == [list(pair) for pair in itertools.combinations(TASKS, 2)]
    for row in rows:
        merged = merging.mean([runs[name].task_vector(2) for name in row["pair"]])
        at_best = merged.apply_to(state_of(suite.backbone.model), row["scaling_coef"])
        assert row["test"] == suite.scores(at_best, row["pair"])


def test_a_path_is_measured_from_age_to_age(finetuned):
    _, suite, runs = finetuned
    results = run_of(Paths("small", specialists=WHOLE))
    study_checks.check_paths_between_ages(results, seeds=(0,))
    rows = results["rows"]
    assert [row["task"] for row in rows] == list(TASKS)
    row = rows[1]
    states = {
        age: torch.cat([part.flatten() for part in runs["mirrored"].state(age).values()])
        for age in (0, *AGES)
    }
    moved = {age: (states[age] - states[0]).double() for age in AGES}
    assert row["task_vector_norms"] == pytest.approx([float(moved[age].norm()) for age in AGES], rel=1e-4)
    last = moved[4] - moved[2]
    assert row["displacement_norms"][-1] == pytest.approx(float(last.norm()), rel=1e-4)

    def cosine(one, other):
        return float(one @ other / one.norm() / other.norm())

    assert row["cosine_displacement_first"][-1] == pytest.approx(cosine(last, moved[2]), abs=1e-5)
    assert row["cosine_displacement_first"][1] != pytest.approx(1.0, abs=1e-3), (
        "it is a part of the first pass"
    )
    assert row["cosine_vector_final"][0] == pytest.approx(cosine(moved[1], moved[4]), abs=1e-5)
    # the gradient by torch alone
    task, head = suite.tasks["mirrored"], suite.heads["mirrored"]
    model = load_backbone("random-pocket").model
    images, labels = task.part("train")
    loss = torch.nn.functional.cross_entropy(head(model(suite.backbone.prepare(images))), labels)
    trained = [each for each in model.parameters() if each.requires_grad]
    downhill = -torch.cat([each.flatten() for each in torch.autograd.grad(loss, trained)]).double()
    assert row["gradient_norm"] == pytest.approx(float(downhill.norm()), rel=1e-4)
    for to, age in (("first", 2), ("final", 4)):
        assert row["cosine_downhill"][to] == pytest.approx(cosine(downhill, moved[age]), abs=1e-4)
        assert row["cosine_sign_downhill"][to] == pytest.approx(cosine(downhill.sign(), moved[age]), abs=1e-4)


def test_examples_are_sorted_by_when_they_are_learnt_for_good():
    torch.manual_seed(0)
    right = torch.rand(4, 200) < 0.6
    by_hand = []
    for column in right.T.tolist():
        place = len(column)
        while place and column[place - 1]:
            place -= 1
        by_hand.append(place)
    assert learnt_at(right).tolist() == by_hand
    assert set(by_hand) == set(range(5))


@pytest.mark.parametrize("recentre", [0, 30])
def test_what_a_merge_forgets_adds_up_to_its_accuracy_in_training(recentre):
    chosen = dataclasses.replace(SUITE, recentre=recentre)
    whole = dataclasses.replace(WHOLE, tasks=chosen)
    study = Forgotten("small", specialists=whole, rules=("mean",), examples=80)
    results = run_of(study)
    study_checks.check_forgotten(results, study.settings, (0,))
    rows = results["rows"]
    assert {row["learnt"] for row in rows} <= {"0", "0.5", "1", "2", "never"}
    suite, runs = whole.specialists(whole.start(StudyRequest()), StudyRequest(), seed=0)
    merges = {age: found for age, rule, found in whole.merges(suite, runs) if rule == "mean"}
    models = {"start": None}
    for age in (2, 4):
        merged = merging.mean([run.task_vector(age) for run in runs.values()])
        coef = merges[age]["scaling_coef"]
        models[f"mean, {age // 2}"] = merged.apply_to(state_of(suite.backbone.model), coef)
    for name in TASKS:
        groups = [row for row in rows if row["task"] == name]
        assert sum(row["examples"] for row in groups) == 80
        for which, parameters in models.items():
            scored = accuracies(
                suite.backbone,
                suite.heads,
                {name: suite.tasks[name]},
                parameters=parameters,
                split="train",
                limit=80,
                recentre=recentre,
            )[name]
            assert sum(row["right"][which] for row in groups) / 80 == pytest.approx(scored)
        for row in groups:
            assert row["right"]["individual, 2"] == (0 if row["learnt"] == "never" else row["examples"])
            if row["learnt"] == "0":
                assert row["right"]["start"] == row["examples"]
            if row["learnt"] not in ("0", "never"):
                assert row["loss"]["individual, 2"] < row["loss"]["start"]


def test_examples_that_are_shown_are_the_first_that_specialists_learnt(finetuned):
    _, suite, runs = finetuned
    study = Readings("small", specialists=WHOLE, tasks=("mirrored", "inverted"), rule="mean")
    results = run_of(study)
    study_checks.check_readings(results, (0,), each=2)
    coef = WHOLE.merged(suite, runs, age=2, rule="mean")["scaling_coef"]
    merged = merging.mean([run.task_vector(2) for run in runs.values()])
    merge = merged.apply_to(state_of(suite.backbone.model), coef)
    for name in study.tasks:
        images, labels = (part[:60] for part in suite.tasks[name].part("test"))
        read = {}
        for which, state in (("start", None), ("specialist", runs[name].state(2)), ("merge", merge)):
            backbone = load_backbone("random-pocket")
            if state is not None:
                backbone.model.load_state_dict(state, strict=False)
            read[which] = suite.heads[name](backbone.model(backbone.prepare(images))).argmax(1)
        learnt = (read["start"] != labels) & (read["specialist"] == labels)
        by_hand = []
        for kept in (True, False):
            by_hand += [i for i in range(60) if learnt[i] and (read["merge"] == labels)[i] == kept][:2]
        rows = [row for row in results["rows"] if row["task"] == name]
        assert [row["place"] for row in rows] == by_hand
        for row in rows:
            assert torch.tensor(row["example"]).equal(images[row["place"]].int())
            for which, answers in read.items():
                assert row[which] == suite.tasks[name].class_names[answers[row["place"]]]


def test_weaker_starts_have_the_same_seeds_and_their_own_encoders(finetuned):
    study = base.Several(
        "small", {"as it is": WHOLE, "doubled": dataclasses.replace(WHOLE, ages=(1,))}, seeds=(0,)
    )
    results = study.run(StudyRequest())
    assert results["studies"]["as it is"]["merged"] == finetuned[0]["merged"]
    assert results["studies"]["doubled"]["epochs"] == [0.5]
    assert set(study.settings) == {"as it is", "doubled"}
    assert STUDIES["06_weaker_starts"].seeds == (0, 1, 2)


@pytest.mark.parametrize(("name", "tasks"), [("06_minilm", TEXT_TASKS), ("06_efficientnet", IMAGE_TASKS)])
def test_the_tasks_of_the_study_are_those_that_the_record_of_the_choice_names(name, tasks):
    results = records.read(RECORDED / f"{name}_tasks.json")["results"]
    assert STUDIES[name].tasks.tasks == tasks == tuple(gaining(results["rows"], rate=results["rate"]))
    assert STUDIES[name].recipe.learning_rate == results["rate"]


def test_the_size_and_the_centre_are_those_with_the_best_specialists():
    studies = records.read(RECORDED / "06_efficientnet_search.json")["results"]["studies"]

    def reached(name):
        return sum(accuracy for row in studies[name]["rows"] for accuracy in row["individual"].values())

    assert max(studies, key=reached) == "96 pixels, centre moved"
    chosen = STUDIES["06_efficientnet"]
    assert load_backbone(chosen.backbone).image_size == 96
    assert (chosen.recipe.centre, chosen.tasks.recentre > 0) == ("batch", True)
