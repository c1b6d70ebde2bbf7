"""How the setting of chapter 6 was found, and how good its encoder is: one thing changed at a time, one seed.

Beside another encoder or optimiser stands a learning rate of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.heads import linear_probe
from taskvec_mini.benchmarks.studies.base import (
    IMAGES,
    TWO_RULES,
    Study,
    StudyRequest,
    Suite,
    SuiteSettings,
    data_files,
    make_suite,
    say,
    study_tasks,
)
from taskvec_mini.benchmarks.training import Settings, finetune

TASKS = SuiteSettings(share=0.15)
CHOSEN = Settings(learning_rate=3e-4, epochs=4, batch_size=64, centre="batch")
VARIANTS: dict[str, dict[str, Any]] = {  # what differs from the chosen setting
    "chosen": {},
    "centre frozen in training and judging": {"centre": "frozen", "recentre": 0},
    "centre frozen in training, moved in judging": {"centre": "frozen"},
    "heads from all training images": {"shots": None},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "SGD, learning rate 2e-3": {"optimizer": "sgd", "learning_rate": 2e-3},
    "encoder not pretrained": {"backbone": "random-pocket"},
    "encoder mobilenet at 64 pixels": {"backbone": "mobilenet", "learning_rate": 1e-4},
}
ENCODERS = ("random-pocket", "pocket")  # that are probed


class Search(Study):
    """The table behind the choice of chapter 6's setting."""

    description = "merged accuracy where one thing differs from a small chapter 6: half its images, 4 epochs"
    seeds = (0,)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All variants, one after the other."""
        rows = []
        for variant, changes in VARIANTS.items():
            suite, row = trained_and_merged(changes, folder=request.data)
            rows.append({"variant": variant, **row})
            say(f"{variant}: done")
        self.data = suite.data
        self.settings = {**_common_settings(), "variants": VARIANTS}
        return {"rows": rows}


class Spread(Study):
    """How far the numbers of the chosen setting hang on how many threads share a sum.

    The same seed, images and steps every time: what differs is the order of additions, and what training
    makes of it.
    """

    description = "the chosen setting of 06_search with one thread and with two: how far numbers differ"
    seeds = (0,)
    threads = (1, 2)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """Once for each number of threads; torch has its own number again afterwards."""
        rows = []
        before = torch.get_num_threads()
        try:
            for threads in self.threads:
                torch.set_num_threads(threads)
                suite, row = trained_and_merged({}, folder=request.data)
                rows.append({"threads": threads, **row})
                say(f"{threads} threads: done")
        finally:
            torch.set_num_threads(before)
        self.data = suite.data
        self.settings = {**_common_settings(), "threads": list(self.threads)}
        return {"rows": rows}


def trained_and_merged(changes: Mapping[str, Any], *, folder: Path | None) -> tuple[Suite, dict[str, Any]]:
    """Every task finetuned in the chosen setting, but for some changes, and their merges: test accuracies.

    Args:
        changes: fields of `SuiteSettings` and `Settings`, and the "backbone".
        folder: of the data.
    """
    backbone = load_backbone(changes.get("backbone", "pocket"), folder=folder)
    of_suite = {name: changes[name] for name in ("shots", "recentre") if name in changes}
    of_training = {name: value for name, value in changes.items() if name not in ("backbone", *of_suite)}
    suite = make_suite(backbone, replace(TASKS, **of_suite), folder=folder, seed=0)
    recipe = replace(CHOSEN, **of_training)
    individual: dict[str, float] = {}
    vectors = {}
    for name, task in suite.tasks.items():
        run = finetune(
            backbone, suite.heads[name], task, settings=recipe, keep=[recipe.epochs], progress=False
        )
        individual |= suite.scores(run.state(), [name])
        vectors[name] = run.task_vector()
    return suite, {
        "zero_shot": suite.scores(None, suite.tasks),
        "individual": individual,
        "merged": {rule: suite.merge(rule, vectors) for rule in TWO_RULES},
    }


def _common_settings() -> dict[str, Any]:
    return {
        "share_of_training_images": TASKS.share,
        "shots": TASKS.shots,
        "recentre": TASKS.recentre,
        "test_images": TASKS.test,
        "chosen": asdict(CHOSEN),
    }


class Probes(Study):
    """Test accuracy of logistic regression on what each encoder gives, before any finetuning."""

    description = "linear probes on the frozen embeddings of each encoder, on the eight tasks"
    seeds = (0,)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """Every encoder on every task."""
        tasks = study_tasks(IMAGES, folder=request.data, seed=0)
        self.settings = {"share_of_training_images": IMAGES.share, "encoders": list(ENCODERS)}
        self.data = data_files(tasks, suite=IMAGES.suite)
        results: dict[str, Any] = {}
        for name in ENCODERS:
            backbone = load_backbone(name, folder=request.data)
            results[name] = {}
            for task in tasks.values():
                accuracy = linear_probe(backbone, task).accuracy
                results[name][task.name] = round(accuracy, 5)
                say(f"{name}, {task.name}: {accuracy:.3f}")
        return results
