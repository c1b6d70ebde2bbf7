"""Evaluation in the study of CLIP: what was trained, merges from files, and more where there is time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from taskvec_mini import merging
from taskvec_mini.benchmarks.encoders import state_of
from taskvec_mini.benchmarks.studies.base import (
    GRID_COEFS,
    SCALING_COEFS,
    TWO_RULES,
    Suite,
    cross,
    grid,
    say,
)
from taskvec_mini.benchmarks.training import JOINT, RunFolder
from taskvec_mini.vectors import TaskVector

VALIDATION, TEST = 250, 2000  # images of a task that tune the coefficients, and that judge


def evaluated_images(*, joint: bool = False) -> int:
    """How many images of a task are evaluated, beside those of `extra_images`.

    Pretrained, finetuned twice, jointly twice, and merged twice under each rule; and for the coefficients.
    """
    coefs = sum(len(SCALING_COEFS[rule]) for rule in TWO_RULES)
    return TEST * (3 + 2 * joint + 2 * len(TWO_RULES)) + VALIDATION * 2 * coefs


def extra_images(tasks: int) -> int:
    """How many images are evaluated for two grids of coefficients and for interference, of so many tasks."""
    models = 2 * sum(coef != 0 for coef in GRID_COEFS) + tasks
    return TEST * tasks * models


@dataclass(eq=False, kw_only=True)
class Evaluation:
    """What was trained, and merged, on all tasks.

    Attributes:
        suite: the tasks, their heads and the encoder.
        runs: what was trained, by task; joint training under `JOINT`.
        most: the most epochs of each.
        epochs: the rounds to evaluate. A run that has reached its most epochs stays there.
        images_per_second: of a forward pass.
        deadline: when to stop, by the clock.
        clock: gives seconds.
        left_out: what there was no time for, and why.
    """

    suite: Suite
    runs: Mapping[str, RunFolder]
    most: Mapping[str, int]
    epochs: Sequence[int]
    images_per_second: float
    deadline: float
    clock: Callable[[], float]
    left_out: dict[str, str] = field(default_factory=dict)

    def results(self) -> dict[str, Any]:
        """The results of a record, in the form of chapter 6's."""
        suite, runs, epochs = self.suite, self.runs, self.epochs
        late = epochs[-1]
        names = [name for name in runs if name != JOINT]
        say("evaluation: zero-shot and individual")
        base = suite.scores(None, names)
        results: dict[str, Any] = {
            "epochs": list(epochs),
            "seeds": [0],
            "rules": list(TWO_RULES),
            "tasks": names,
            "images": {name: len(suite.tasks[name].part("train")[1]) for name in names},
            "trained_epochs": {name: self._reached(name, late) for name in runs},
            "zero_shot": {"0": base},
            "individual": {"0": {}},
            "train_accuracy": {"0": {}},  # of training images, as they were met in that epoch
            "training_seconds": {"0": {"individual": self._seconds(names)}},
        }
        for epoch in epochs:
            results["individual"]["0"][str(epoch)] = {
                name: self._scores(name, epoch, [name])[name] for name in names
            }
            results["train_accuracy"]["0"][str(epoch)] = {
                name: round(runs[name].read_record(self._reached(name, epoch))["accuracy"], 5)
                for name in names
            }
        if JOINT in runs:
            results["joint"] = {"0": {str(epoch): self._scores(JOINT, epoch, names) for epoch in epochs}}
            results["training_seconds"]["0"]["joint"] = self._seconds([JOINT])

        start = state_of(suite.backbone.model)
        rows: list[dict[str, Any]] = []
        longest = 0.0  # seconds of a merge so far
        for rule in TWO_RULES:
            for epoch in epochs:
                if rows and self.clock() + longest > self.deadline:
                    self.left_out[f"{rule} after epoch {epoch}"] = "the time was spent before it"
                    continue
                begin = self.clock()
                merged = self._merged(rule, names, epoch)
                found = suite.tuned_under(rule, start, merged=merged, names=names)
                rows.append({"seed": 0, "epoch": epoch, "rule": rule, **found})
                say(f"epoch {epoch}, {rule}: {mean(found['test'].values()):.3f}")
                longest = max(longest, self.clock() - begin)

        grids: list[dict[str, Any]] = []
        coefs = sum(coef != 0 for coef in GRID_COEFS)
        for epoch in epochs:
            if self._in_time(f"coefficients of the mean after epoch {epoch}", models=coefs):
                grids += grid(suite, epoch, merged=self._merged("mean", names, epoch), base=base)
        interference = {}
        if self._in_time("interference", models=len(names)):
            vectors = ((name, self._merged("mean", [name], late)) for name in names)
            interference["0"] = cross(suite, vectors, base=base)
        return results | {"merged": rows, "grid": grids, "cross": interference}

    def _reached(self, name: str, epoch: int) -> int:
        """Its epochs after a round; joint training may be behind, and is not waited for."""
        return max(each for each in self.runs[name].kept if each <= min(epoch, self.most[name]))

    def _scores(self, name: str, epoch: int, tasks: Iterable[str]) -> dict[str, float]:
        """Test accuracies of a run after a round."""
        return self.suite.scores(self.runs[name].state(self._reached(name, epoch)), tasks)

    def _merged(self, rule: str, names: Iterable[str], epoch: int) -> TaskVector:
        """Merged from the files, so that the task vectors are never in memory together."""
        files = [self.runs[name].checkpoint(self._reached(name, epoch)) for name in names]
        return merging.merged_vector(self.suite.experiment.pretrained, files, rule=rule)

    def _seconds(self, names: Iterable[str]) -> float:
        """How long these were trained until the last round."""
        seconds = 0.0
        for name in names:
            for epoch in range(1, self._reached(name, self.epochs[-1]) + 1):
                seconds += self.runs[name].read_record(epoch)["seconds"]
        return round(seconds, 1)

    def _in_time(self, part: str, *, models: int) -> bool:
        """Whether so many models can be evaluated on all tasks; it is said, or noted as left out."""
        tasks = len(self.runs) - (JOINT in self.runs)
        seconds = models * tasks * self.suite.test / self.images_per_second
        if self.clock() + seconds > self.deadline:
            self.left_out[part] = f"it takes {math.ceil(seconds)} s more"
            return False
        say(f"evaluation: {part}")
        return True
