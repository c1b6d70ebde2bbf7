"""The work behind the study of CLIP: epochs as long as there is time, then merges and accuracies.

A folder holds `pretrained.safetensors` and, of each task, a folder of a run as in `checkpoints`, in which the
parameters after the first epoch are kept and those of the last round, or two, that were finished.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from taskvec_mini import streaming
from taskvec_mini.benchmarks import checkpoints, clip_plan, engines, study_data, study_merging
from taskvec_mini.benchmarks.engines import Job
from taskvec_mini.benchmarks.evaluation import accuracies, forget_prepared_images
from taskvec_mini.benchmarks.parameters import FrozenHead, state_of
from taskvec_mini.benchmarks.protocols import Encoder, Task
from taskvec_mini.benchmarks.settings import Settings
from taskvec_mini.benchmarks.speed import Speed

RULES = study_merging.TWO_RULES
VALIDATION, TEST = 250, 2000  # images of a task that tune the coefficients, and that judge
RECIPE = Settings(learning_rate=1e-5, epochs=1, weight_decay=0.1, batch_size=128, clip_norm=10.0)
PRETRAINED = "pretrained.safetensors"


def kept(folder: Path) -> set[int]:
    """The epochs of a run whose parameters are there.

    Example:
        >>> kept(Path("no such folder"))
        set()
    """
    found = (re.fullmatch(r"epoch_(\d+)\.safetensors", path.name) for path in folder.glob("epoch_*"))
    epochs = {int(match[1]) for match in found if match}
    return {epoch for epoch in epochs if (folder / f"epoch_{epoch:03}.json").exists()}


def copies(most: Collection[int], *, workers: int = 1) -> int:
    """How many copies of the parameters are on the disk at most, for tasks with so many epochs each.

    Pretrained, once. Of each task the first epoch, and of a round that is not complete yet this and the one
    before. Until it has reached its most epochs, also `latest.safetensors`, from which it goes on: parameters
    and both moments of AdamW. A worker writes that file anew beside the old one.

    Example:
        >>> copies([2, 2]), copies([9, 9]), copies([9] * 8), copies([9] * 8, workers=8)
        (14, 16, 52, 73)
    """
    latest = 3
    rounds = (
        sum(len({1, e - 1, e} - {0}) + latest if e <= each else len({1, each}) for each in most)
        for e in range(1, max(most) + 1)
    )
    return 1 + max(rounds) + latest * min(workers, len(most))


def judged() -> int:
    """How many images of a task are judged: pretrained, finetuned twice, merged twice under each rule."""
    coefs = sum(len(study_merging.RULES[rule][1]) for rule in RULES)
    return TEST * (3 + 2 * len(RULES)) + VALIDATION * 2 * coefs


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


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the epochs are trained, and how encoder, heads and tasks come there.

    Attributes:
        encoder: loads the encoder, and `loads` each task with its head, as in `engines.finetune_all`.
        engine: the words for that function about the engine.
    """

    encoder: Callable[[], Encoder]
    loads: Mapping[str, Callable[[Encoder], tuple[FrozenHead, Task]]]
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Work:
    """A planned run: finetuning, then judging. `left_out` grows where time runs shorter than planned."""

    suite: ClipSuite
    folder: Path
    speed: Speed
    plan: clip_plan.Plan
    place: Place
    deadline: float
    clock: Callable[[], float]
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seconds = dict(self.plan.seconds)  # of an epoch of each task: planned, then as last measured

    def results(self) -> dict[str, Any]:
        """Judged and merged after the first epoch and after the last that all tasks have."""
        names = self._first_epochs()
        late = self._later_epochs(names)
        epochs = sorted({1, late})
        tasks = {name: self.suite.tasks[name] for name in names}
        results: dict[str, Any] = {"epochs": epochs, "seeds": [0], "rules": list(RULES), "tasks": names}
        results["trained_epochs"] = {name: self._age(name, late) for name in names}
        results["images"] = {name: len(task.part("train")[1]) for name, task in tasks.items()}
        study_data.say("judging: zero-shot and individual")
        results["zero_shot"] = {"0": self.suite.scores(None, names)}
        results["individual"] = {"0": {str(e): self._individual(names, e) for e in epochs}}
        results["train_accuracy"] = {"0": {str(e): self._seen(names, e) for e in epochs}}
        results["merged"] = self._merges(names, epochs)
        spent = sum(
            self._record(name, e)["seconds"] for name in names for e in range(1, self._age(name, late) + 1)
        )
        results["training_seconds"] = {"0": {"individual": round(spent, 1)}}
        left_out = {**self.plan.left_out, **self.left_out}
        results["left_out"] = [{"what": what, "why": why} for what, why in left_out.items()]
        return results

    # finetuning

    def _first_epochs(self) -> list[str]:
        names: list[str] = []
        for batch in self._batches(self.plan.images):
            new = [name for name in batch if not kept(self.folder / name)]
            while new and not self._in_time(new):
                self.left_out[new.pop()] = "the time was spent before its first epoch"
            chosen = [name for name in batch if name not in self.left_out]
            self._train(chosen, 1)
            names += chosen
        if len(names) < 2:
            raise ValueError(
                f"the budget was spent before two tasks had an epoch; what is finished is kept in "
                f"{self.folder.name}: give more --budget-minutes, the same command goes on from there"
            )
        return names

    def _later_epochs(self, names: Sequence[str]) -> int:
        """Round by round, as long as a whole one fits; the last one that all tasks have finished."""
        most = {name: self.plan.most[name] for name in names}
        for epoch in range(2, max(most.values()) + 1):
            wanting = [n for n in names if most[n] >= epoch > max(kept(self.folder / n))]
            for batch in self._batches(wanting):
                if not self._in_time(wanting):
                    break
                self._train(batch, epoch)
                wanting = wanting[len(batch) :]
            if wanting:
                self.left_out[f"epochs {epoch} to {max(most.values())}"] = (
                    f"there was no time for epoch {epoch} of {', '.join(wanting)}"
                )
                break
            if epoch > 2:
                self._forget(epoch - 1, [name for name in names if most[name] >= epoch])
        return self._last_round(most)

    def _last_round(self, most: Mapping[str, int]) -> int:
        there = {name: kept(self.folder / name) for name in most}
        rounds = range(2, max(most.values()) + 1)
        return max((e for e in rounds if all(min(e, most[n]) in there[n] for n in most)), default=1)

    def _forget(self, epoch: int, names: Sequence[str]) -> None:
        """The checkpoints of a round, once the next one is complete."""
        for name in names:
            (self.folder / name / f"epoch_{epoch:03}.safetensors").unlink(missing_ok=True)

    def _batches(self, names: Iterable[str]) -> list[list[str]]:
        """The tasks of a round that are begun together: all, where there are several workers, or each."""
        return [list(names)] if self.plan.workers > 1 else [[name] for name in names]

    def _in_time(self, names: Iterable[str]) -> bool:
        """Whether an epoch of each fits, and judging after it."""
        return self.clock() + self._planned(names) + self.plan.judging <= self.deadline

    def _planned(self, names: Iterable[str]) -> float:
        return clip_plan.makespan((self.seconds[name] for name in names), self.plan.workers)

    def _train(self, names: Sequence[str], epoch: int) -> None:
        """Bring each task to an epoch; how long that took is what the next epoch is taken to last."""
        new = [name for name in names if epoch not in kept(self.folder / name)]
        begin, settings = self.clock(), replace(RECIPE, epochs=epoch)
        if names:
            jobs = {
                name: Job(
                    load=self.place.loads[name], settings=settings, folder=self.folder / name,
                    keep={1, epoch}, speed=self.speed,
                )
                for name in sorted(names, key=self.seconds.__getitem__, reverse=True)
            }  # fmt: skip
            engines.finetune_all(self.place.encoder, jobs, progress=bool(new), **self.place.engine)
        if new:
            slower = (self.clock() - begin) / self._planned(new)
            self.seconds |= {name: slower * self.seconds[name] for name in new}
        for name in names:
            if max(kept(self.folder / name)) >= self.plan.most[name]:  # it never goes on
                (self.folder / name / "latest.safetensors").unlink(missing_ok=True)

    # judging

    def _age(self, name: str, epoch: int) -> int:
        """A task that has reached its most epochs stays there."""
        return min(epoch, self.plan.most[name])

    def _file(self, name: str, epoch: int) -> Path:
        return self.folder / name / f"epoch_{self._age(name, epoch):03}.safetensors"

    def _record(self, name: str, epoch: int) -> dict[str, Any]:
        return checkpoints.read_json(self._file(name, epoch).with_suffix(".json"))

    def _individual(self, names: Sequence[str], epoch: int) -> dict[str, float]:
        states = ((name, checkpoints.read_tensors(self._file(name, epoch))[0]) for name in names)
        return {name: self.suite.scores(state, [name])[name] for name, state in states}

    def _seen(self, names: Sequence[str], epoch: int) -> dict[str, float]:
        """The share of training images that were right when they were met in that epoch."""
        return {name: round(self._record(name, epoch)["accuracy"], 5) for name in names}

    def _merges(self, names: Sequence[str], epochs: Sequence[int]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        longest = 0.0
        for rule in RULES:
            for epoch in epochs:
                if rows and self.clock() + longest > self.deadline:
                    self.left_out[f"{rule} after epoch {epoch}"] = "the time was spent before it"
                    continue
                begin = self.clock()
                rows.append({"seed": 0, "epoch": epoch, "rule": rule, **self._merge(rule, names, epoch)})
                study_data.say(f"epoch {epoch}, {rule}: {mean(rows[-1]['test'].values()):.3f}")
                longest = max(longest, self.clock() - begin)
        return rows

    def _merge(self, rule: str, names: Sequence[str], epoch: int) -> dict[str, Any]:
        """From the files, so that the task vectors are never in memory together."""
        files = [self._file(name, epoch) for name in names]
        merged = streaming.merged_vector(self.folder / PRETRAINED, files, rule=rule)
        start: Mapping[str, Tensor] = state_of(self.suite.backbone.model)
        return self.suite.tuned(start, merged, study_merging.RULES[rule][1], names=names, recentre=0)
