"""Judging in the study of CLIP: what was trained, merges from files, and more where there is time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from torch import Tensor

from taskvec_mini.benchmarks.encoders.parameters import state_of
from taskvec_mini.benchmarks.evaluation.accuracy import accuracies, forget_prepared_images
from taskvec_mini.benchmarks.studies import base as study_data
from taskvec_mini.benchmarks.studies import early_or_late as study_merging
from taskvec_mini.benchmarks.studies.clip.budget import JOINT
from taskvec_mini.benchmarks.studies.clip.runs import PRETRAINED, Runs
from taskvec_mini.benchmarks.training import checkpoints
from taskvec_mini.merging import from_files as streaming
from taskvec_mini.vectors import TaskVector

RULES = study_merging.TWO_RULES
VALIDATION, TEST = 250, 2000  # images of a task that tune the coefficients, and that judge
_COEFS = sum(coef != 0 for coef in study_merging.COEFS)


def judged(*, joint: bool = False) -> int:
    """How many images of a task are judged, beside those of `judged_besides`.

    Pretrained, finetuned twice, jointly twice, and merged twice under each rule; and for the coefficients.
    """
    coefs = sum(len(study_merging.RULES[rule][1]) for rule in RULES)
    return TEST * (3 + 2 * joint + 2 * len(RULES)) + VALIDATION * 2 * coefs


def judged_besides(tasks: int) -> int:
    """How many images are judged for two grids of coefficients and for interference, with so many tasks."""
    return TEST * tasks * (2 * _COEFS + tasks)


class ClipSuite(study_merging.Suite):
    """The tasks with their zero-shot heads; prepared images are let go, because those of CLIP are large."""

    def scores(self, parameters: Any, names: Iterable[str], *, recentre: int = 0) -> dict[str, float]:
        """Test accuracy of each named task."""
        found: dict[str, float] = {}
        for name in names:
            found |= accuracies(
                self.backbone, self.heads, {name: self.tasks[name]},
                parameters=parameters, limit=TEST, recentre=recentre,
            )  # fmt: skip
            forget_prepared_images()
        return {name: round(score, 5) for name, score in found.items()}


@dataclass(eq=False, kw_only=True)
class Judging:
    """What was trained, judged; `left_out` gets what there is no time for.

    Attributes:
        suite: the tasks, their heads and the encoder.
        runs: the files.
        names: the tasks that were trained.
        epochs: the rounds to judge.
        joint: whether there is a joint run as well.
        pace: images/s of a forward pass.
        deadline: when to stop, by the `clock`.
        clock: seconds.
    """

    suite: ClipSuite
    runs: Runs
    names: Sequence[str]
    epochs: Sequence[int]
    joint: bool
    pace: float
    deadline: float
    clock: Callable[[], float]
    left_out: dict[str, str] = field(default_factory=dict)

    def results(self) -> dict[str, Any]:
        """The results of a record, in the form of chapter 6's."""
        names, epochs, late = self.names, self.epochs, self.epochs[-1]
        results: dict[str, Any] = {"epochs": list(epochs), "seeds": [0], "rules": list(RULES)}
        results["tasks"] = list(names)
        results["images"] = {name: len(self.suite.tasks[name].part("train")[1]) for name in names}
        results["trained_epochs"] = {name: self.runs.age(name, late) for name in names}
        study_data.say("judging: zero-shot and individual")
        base = self.suite.scores(None, names)
        results["zero_shot"] = {"0": base}
        results["individual"] = {"0": {str(e): self._individual(e) for e in epochs}}
        results["train_accuracy"] = {"0": {str(e): self._seen(e) for e in epochs}}
        results["training_seconds"] = {"0": {"individual": self.runs.seconds(names, late)}}
        if self.joint:
            results["trained_epochs"][JOINT] = self.runs.age(JOINT, late)
            results["joint"] = {"0": {str(e): self._judged(JOINT, e, names) for e in epochs}}
            results["training_seconds"]["0"]["joint"] = self.runs.seconds([JOINT], late)
        results["merged"] = self._merges()
        results["grid"] = [row for epoch in epochs for row in self._grid(epoch, base)]
        results["cross"] = self._cross(base)
        return results

    def _individual(self, epoch: int) -> dict[str, float]:
        return {name: self._judged(name, epoch, [name])[name] for name in self.names}

    def _judged(self, name: str, epoch: int, tasks: Iterable[str]) -> dict[str, float]:
        return self.suite.scores(checkpoints.read_tensors(self.runs.file(name, epoch))[0], tasks)

    def _seen(self, epoch: int) -> dict[str, float]:
        """The share of training images that were right when they were met in that epoch."""
        return {
            name: round(self.runs.record(name, self.runs.age(name, epoch))["accuracy"], 5)
            for name in self.names
        }

    def _merges(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        longest = 0.0
        for rule in RULES:
            for epoch in self.epochs:
                if rows and self.clock() + longest > self.deadline:
                    self.left_out[f"{rule} after epoch {epoch}"] = "the time was spent before it"
                    continue
                begin = self.clock()
                rows.append({"seed": 0, "epoch": epoch, "rule": rule, **self._merge(rule, epoch)})
                study_data.say(f"epoch {epoch}, {rule}: {mean(rows[-1]['test'].values()):.3f}")
                longest = max(longest, self.clock() - begin)
        return rows

    def _merge(self, rule: str, epoch: int) -> dict[str, Any]:
        start: Mapping[str, Tensor] = state_of(self.suite.backbone.model)
        merged, coefs = self._vector(rule, self.names, epoch), study_merging.RULES[rule][1]
        return self.suite.tuned(start, merged, coefs, names=self.names, recentre=0)

    def _vector(self, rule: str, names: Iterable[str], epoch: int) -> TaskVector:
        """Merged from the files, so that the task vectors are never in memory together."""
        files = [self.runs.file(name, epoch) for name in names]
        return streaming.merged_vector(self.runs.folder / PRETRAINED, files, rule=rule)

    # where there is time

    def _grid(self, epoch: int, base: Mapping[str, float]) -> list[dict[str, Any]]:
        if not self._in_time(f"coefficients of the mean after epoch {epoch}", _COEFS):
            return []
        return study_merging.grid(self.suite, epoch, self._vector("mean", self.names, epoch), base=base)

    def _cross(self, base: Mapping[str, float]) -> dict[str, Any]:
        if not self._in_time("interference", len(self.names)):
            return {}
        vectors = ((name, self._vector("mean", [name], self.epochs[-1])) for name in self.names)
        return {"0": study_merging.cross(self.suite, vectors, base)}

    def _in_time(self, what: str, models: int) -> bool:
        """Whether so many models can be judged on all tasks; it is said, or noted as left out."""
        seconds = models * len(self.names) * TEST / self.pace
        if self.clock() + seconds > self.deadline:
            self.left_out[what] = f"it takes {math.ceil(seconds)} s more"
            return False
        study_data.say(f"judging: {what}")
        return True
