"""What was recorded: every record is of a study, on the data it names, and consistent in itself."""

import re

import pytest

import study_checks
from conftest import ROOT
from small_studies import CORE
from taskvec_mini import records
from taskvec_mini.benchmarks.data import SUITES, file_checksums
from taskvec_mini.benchmarks.data.suites import bundle_files, large_files
from taskvec_mini.benchmarks.studies import STUDIES, base
from taskvec_mini.benchmarks.studies.ablations import Probes, Search, Spread
from taskvec_mini.benchmarks.studies.base import Several
from taskvec_mini.benchmarks.studies.corrected import Corrected
from taskvec_mini.benchmarks.studies.early_or_late import EarlyOrLate
from taskvec_mini.benchmarks.studies.exchange import Exchange
from taskvec_mini.benchmarks.studies.first_epoch import FirstEpoch
from taskvec_mini.benchmarks.studies.good_start import GoodStart
from taskvec_mini.benchmarks.studies.kept_specialists import Forgotten, Pairs, Paths, Readings
from taskvec_mini.benchmarks.studies.rounds import Rounds
from taskvec_mini.benchmarks.studies.subsets import Subsets, some_subsets
from taskvec_mini.benchmarks.studies.task_choice import TEXT_TASKS, TaskChoice

FOLDER = ROOT / "book" / "recorded"
RECORDED = sorted(path for path in FOLDER.glob("*.json") if path.stem in STUDIES)
each_record = pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])


@each_record
def test_a_record_says_which_study_on_which_data_it_is(path):
    record, study = records.read(path), STUDIES[path.stem]
    assert re.fullmatch(rf"python -m taskvec_mini\.benchmarks record {path.stem}( .*)?", record["command"])
    assert record["seeds"] == list(study.seeds)
    files = {}
    for chosen in suites_of(study):
        files |= files_of(chosen)
    assert record["data"] == files
    assert record["seconds"] > 1


def suites_of(study):
    """The tasks of a study, of the specialists that it reads, or of all studies in it."""
    if isinstance(study, Several):
        return [chosen for each in study.studies.values() for chosen in suites_of(each)]
    if isinstance(study, Pairs | Paths | Forgotten | Readings):
        return suites_of(study.specialists)
    return [getattr(study, "tasks", base.IMAGES)]


def files_of(chosen):
    """The SHA-256 of each file of these tasks, as the package lists them."""
    if chosen.suite == "text":
        return {file: digest for name in chosen.tasks for file, digest in file_checksums(name).items()}
    if chosen.suite == "large":
        return {name: large_files()[name].sha256 for name in chosen.tasks}
    return {f"{name}.npz": bundle_files()[name].sha256 for name in chosen.tasks}


@each_record
def test_a_record_is_consistent_in_itself(path):
    record, study = records.read(path), STUDIES[path.stem]
    results, settings, seeds = record["results"], record["settings"], tuple(record["seeds"])
    (names, *_) = (list(chosen.tasks) for chosen in suites_of(study))
    if path.stem in OF_SEVERAL:
        OF_SEVERAL[path.stem](results, settings)
    elif path.stem.endswith("_rates"):
        for name, found in results["studies"].items():
            tasks = study.studies[name].tasks.tasks
            study_checks.check_task_choice(found, settings[name], list(tasks))
    else:
        CHECKS[type(study)](results, settings, seeds, names)
        if not isinstance(study, ONE_SEED):
            assert seeds == (0, 1, 2)


ONE_SEED = (TaskChoice, Readings, Search, Probes, Spread)  # they choose, show or count, and compare no seeds
OF_SEVERAL = {
    "06_weaker_starts": lambda results, settings: study_checks.check_weaker_starts(
        results, settings, (0, 1, 2), names=TEXT_TASKS
    ),
    "06_efficientnet_search": lambda results, settings: study_checks.check_image_search(
        results, settings, SUITES["large"].tasks
    ),
}


def on_its_tasks(check):
    """The check of a record that lists its tasks, with a look at that list."""

    def checked(results, settings, seeds, names):
        assert results["tasks"] == names
        check(results, settings, seeds)

    return checked


CHECKS = {
    FirstEpoch: on_its_tasks(study_checks.check_first_epoch),
    EarlyOrLate: on_its_tasks(study_checks.check_early_or_late),
    Rounds: on_its_tasks(study_checks.check_rounds),
    Exchange: on_its_tasks(study_checks.check_exchange),
    Corrected: on_its_tasks(study_checks.check_corrected),
    GoodStart: on_its_tasks(study_checks.check_good_start),
    Forgotten: on_its_tasks(study_checks.check_forgotten),
    Pairs: on_its_tasks(lambda results, settings, seeds: study_checks.check_pairs(results, seeds)),
    Paths: on_its_tasks(
        lambda results, settings, seeds: study_checks.check_paths_between_ages(results, seeds)
    ),
    Subsets: on_its_tasks(
        lambda results, settings, seeds: study_checks.check_some_tasks(
            results, settings, seeds, some_subsets(CORE)
        )
    ),
    Readings: lambda results, settings, seeds, names: study_checks.check_readings(
        results, seeds, each=settings["each"]
    ),
    TaskChoice: lambda results, settings, seeds, names: study_checks.check_task_choice(
        results, settings, names
    ),
    Search: lambda results, settings, seeds, names: study_checks.check_search(
        results, {**settings, "grids": base.SCALING_COEFS}, names
    ),
    Probes: lambda results, settings, seeds, names: study_checks.check_probes(results, settings, names),
    Spread: lambda results, settings, seeds, names: study_checks.check_spread(results, settings, names),
}


def test_the_records_of_chapter_6_judge_the_same_encoders():
    study_checks.check_same_encoders(results_of("06_early_or_late"), results_of("06_what_a_merge_needs"))


def results_of(name):
    return records.read(FOLDER / f"{name}.json")["results"]
