"""What was recorded: every record is of a study, on the data it names, and consistent in itself."""

import re
from functools import partial

import pytest

import study_checks
from conftest import ROOT
from small_studies import CORE
from taskvec_mini import records
from taskvec_mini.benchmarks.data import SUITES, file_checksums
from taskvec_mini.benchmarks.data.suites import bundle_files, large_files
from taskvec_mini.benchmarks.studies import STUDIES, base
from taskvec_mini.benchmarks.studies.subsets import some_subsets
from taskvec_mini.benchmarks.studies.task_choice import IMAGE_TASKS, TEXT_TASKS

FOLDER = ROOT / "book" / "recorded"
RECORDED = sorted(path for path in FOLDER.glob("*.json") if path.stem in STUDIES)
each_record = pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])


@each_record
def test_a_record_says_which_study_on_which_data_it_is(path):
    record = records.read(path)
    assert re.fullmatch(rf"python -m taskvec_mini\.benchmarks record {path.stem}( .*)?", record["command"])
    assert record["seeds"] == list(STUDIES[path.stem].seeds)
    if path.stem.startswith("10_descent"):
        study_checks.check_corrected(results, settings, seeds)
        return
    if path.stem.endswith("_descent"):
        study_checks.check_first_epoch(results, settings, seeds)
        return
    if path.stem.startswith("07_minilm"):
        study_checks.check_rounds(results, settings, seeds)
        return
    if path.stem.startswith("10_exchange"):
        files = files_of_the_exchange(path.stem)
    elif "efficientnet" in path.stem:
        files = {name: large_files()[name].sha256 for name in images_of(path.stem)}
    elif "text" in path.stem or "minilm" in path.stem or path.stem == "06_weaker_starts":
        files = {}
        for name in texts_of(path.stem):
            files |= file_checksums(name)
    else:
        files = {f"{name}.npz": bundle_files()[name].sha256 for name in CORE}
    assert record["data"] == files
    assert record["seconds"] > 1


def files_of_the_exchange(study):
    """The files of its four tasks of images, of its four of texts, or of both."""
    texts, images = STUDIES["10_exchange_texts"].tasks.tasks, STUDIES["10_exchange_images"].tasks.tasks
    files = {}
    if study != "10_exchange_texts":
        files |= {f"{name}.npz": bundle_files()[name].sha256 for name in images}
    if study != "10_exchange_images":
        for name in texts:
            files |= file_checksums(name)
    return files


def texts_of(study):
    """The tasks of a study of texts."""
    chosen = {"06_minilm_tasks": SUITES["text"].tasks, "07_text": base.TEXTS.tasks}
    return chosen.get(study, base.TEXTS.tasks if study == "07_text_rounds" else TEXT_TASKS)


def images_of(study):
    """The tasks of a study of large images."""
    before_the_choice = ("06_efficientnet_search", "06_efficientnet_tasks")
    return SUITES["large"].tasks if study in before_the_choice else IMAGE_TASKS


@each_record
def test_a_record_is_consistent_in_itself(path):
    record = records.read(path)
    results, settings, seeds = record["results"], record["settings"], tuple(record["seeds"])
    if path.stem == "06_search":
        study_checks.check_search(results, {**settings, "grids": base.SCALING_COEFS}, CORE)
        return
    if path.stem.endswith("_rates"):
        for name, found in results["studies"].items():
            study_checks.check_task_choice(found, settings[name], [row["task"] for row in found["rows"]])
        return
    if path.stem.startswith("10_descent"):
        study_checks.check_corrected(results, settings, seeds)
        return
    if path.stem.endswith("_descent"):
        study_checks.check_first_epoch(results, settings, seeds)
        return
    if path.stem.startswith("07_minilm"):
        study_checks.check_rounds(results, settings, seeds)
        return
    if path.stem.startswith("10_exchange"):
        study_checks.check_exchange(results, settings, seeds)
        return
    if path.stem == "encoder_probes":
        study_checks.check_probes(results, settings, CORE)
        return
    if path.stem == "spread":
        study_checks.check_spread(results, settings, CORE)
        return
    if path.stem.endswith("_tasks"):
        names = SUITES["text" if "minilm" in path.stem else "large"].tasks
        study_checks.check_task_choice(results, settings, names)
        return
    if path.stem == "06_efficientnet_search":
        study_checks.check_image_search(results, settings, SUITES["large"].tasks)
        return
    if path.stem.endswith("_readings"):
        study_checks.check_readings(results, seeds, each=settings["each"])
        return
    assert seeds == (0, 1, 2)
    if path.stem == "06_weaker_starts":
        study_checks.check_weaker_starts(results, settings, seeds, names=TEXT_TASKS)
        return
    if "minilm" in path.stem or "efficientnet" in path.stem:
        assert results["tasks"] == list(TEXT_TASKS if "minilm" in path.stem else IMAGE_TASKS)
        check = {
            "": partial(study_checks.check_good_start, settings=settings),
            "pairs": study_checks.check_pairs,
            "forgotten": partial(study_checks.check_forgotten, settings=settings),
            "paths": study_checks.check_paths_between_ages,
        }[path.stem.partition("minilm")[2][1:] or path.stem.partition("efficientnet")[2][1:]]
        check(results, seeds=seeds)
        return
    assert results["tasks"] == list(base.TEXTS.tasks if path.stem.startswith("07_text") else CORE)
    check = {
        "05_first_epoch": study_checks.check_first_epoch,
        "05_full_batch": study_checks.check_first_epoch,
        "06_early_or_late": study_checks.check_early_or_late,
        "06_another_encoder": study_checks.check_early_or_late,
        "07_rounds": study_checks.check_rounds,
        "07_text": study_checks.check_early_or_late,
        "07_text_rounds": study_checks.check_rounds,
        "07_rounds_regmean": study_checks.check_rounds,
        "06_what_a_merge_needs": partial(study_checks.check_some_tasks, subsets=some_subsets(CORE)),
    }[path.stem]
    check(results, settings, seeds)


def test_the_records_of_chapter_6_judge_the_same_encoders():
    study_checks.check_same_encoders(results_of("06_early_or_late"), results_of("06_what_a_merge_needs"))


def results_of(name):
    return records.read(FOLDER / f"{name}.json")["results"]
