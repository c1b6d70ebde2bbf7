"""What the recorded studies share: the tasks, cut to what two cores can train, and how they are told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from taskvec_mini.benchmarks.data.suites import CORE, load_tasks
from taskvec_mini.benchmarks.data.tasks import ImageTask
from taskvec_mini.benchmarks.encoders.load import Backbone
from taskvec_mini.benchmarks.training.settings import Settings

SEEDS = (0, 1, 2)
VALIDATION = 200  # images a task to tune on


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What a study is asked for. Every field is an option of `record`, with its metadata as help.

    A field whose metadata say `recorded: False` is about one machine, and not part of the record's command.

    Attributes:
        data: the folder of the data; None for the one that the environment variable TASKVEC_MINI_DATA names.
    """

    data: Path | None = field(
        default=None,
        metadata={
            "help": "folder of the data (default: the environment variable TASKVEC_MINI_DATA)",
            "metavar": "FOLDER",
            "recorded": False,
        },
    )


class Study:
    """A long experiment. `run` gives its results as plain JSON; what else the record says are attributes.

    Attributes:
        description: what it measures, for `list`.
        request: what it takes; another class than `StudyRequest` where it has options of its own.
        seeds: one repetition for each.
        settings: all that decides the outcome, as plain JSON; complete after the run.
        data: the SHA-256 of each file, by name; complete after the run.
        device: where it ran.
    """

    description: str = ""
    request: type[StudyRequest] = StudyRequest
    seeds: tuple[int, ...] = SEEDS
    settings: Mapping[str, Any] = MappingProxyType({})
    data: Mapping[str, str] = MappingProxyType({})
    device: str = "cpu"

    def run(self, request: Any) -> dict[str, Any]:
        """Do all of it, one seed after the other.

        Args:
            request: of the class that `self.request` names.
        """
        raise NotImplementedError


def suite(folder: Path | None, seed: int, share: float) -> dict[str, ImageTask]:
    """The eight tasks of the bundle, each with a share of its training images; `seed` decides the splits.

    Sets keep their proportions, and so do the steps of an epoch.
    """
    return {name: _cut(task, share) for name, task in load_tasks(CORE, folder=folder, seed=seed).items()}


def _cut(task: ImageTask, share: float) -> ImageTask:
    count = round(share * len(task.train_labels))
    return replace(
        task,
        train_images=task.train_images[:count],
        train_labels=task.train_labels[:count],
        val_images=task.val_images[:VALIDATION],
        val_labels=task.val_labels[:VALIDATION],
    )


def describe(
    recipes: Mapping[str, Settings], backbone: Backbone, tasks: Mapping[str, ImageTask], *, share: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and data of a study, as its record holds them."""
    told = {name: asdict(recipe) for name, recipe in recipes.items()}
    shared = {"backbone": backbone.name, "share_of_training_images": share, "validation_images": VALIDATION}
    return {**shared, "recipes": told}, checksums(tasks)


def checksums(tasks: Mapping[str, ImageTask]) -> dict[str, str]:
    """The SHA-256 of each file of the bundle."""
    return {f"{task.name}.npz": task.sha256 for task in tasks.values()}


def rounded(values: Tensor, digits: int = 6) -> Any:
    """Numbers as lists, rounded to what a record needs."""
    return values.double().mul(10**digits).round().div(10**digits).tolist()


def say(words: str) -> None:
    """A line of progress on stderr."""
    print(words, file=sys.stderr, flush=True)
