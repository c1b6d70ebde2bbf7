"""The rounds of the study of CLIP: an epoch of every task, as often as there is time, then the judging."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from taskvec_mini.benchmarks import engines
from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task
from taskvec_mini.benchmarks.engines import EngineOptions, Job, JointJob
from taskvec_mini.benchmarks.heads import Head
from taskvec_mini.benchmarks.studies.clip import budget as clip_plan
from taskvec_mini.benchmarks.studies.clip.budget import JOINT
from taskvec_mini.benchmarks.studies.clip.evaluation import ClipSuite, Judging
from taskvec_mini.benchmarks.studies.clip.runs import Runs
from taskvec_mini.benchmarks.training.settings import Settings
from taskvec_mini.benchmarks.training.speed import Speed
from taskvec_mini.errors import UserError

RECIPE = Settings(learning_rate=1e-5, epochs=1, weight_decay=0.1, batch_size=128, clip_norm=10.0)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the epochs are trained, and how encoder, heads and tasks come there.

    Attributes:
        encoder: loads the encoder, and `loads` each task with its head, as in `engines.finetune_all`.
        engine: which engine trains; without the address of a cluster, which is joined already.
    """

    encoder: Callable[[], Encoder]
    loads: Mapping[str, Callable[[Encoder], tuple[Head, Task]]]
    engine: EngineOptions = field(default_factory=EngineOptions)


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
        self.runs = Runs(folder=self.folder, most=self.plan.most)

    def results(self) -> dict[str, Any]:
        """Judged and merged after the first epoch and after the last that all tasks have."""
        names = self._first_epochs()
        late = self._later_epochs(names)
        judging = Judging(
            suite=self.suite, runs=self.runs, names=names, epochs=sorted({1, late}),
            joint=JOINT in self.seconds, pace=self.plan.pace.judging, deadline=self.deadline,
            clock=self.clock, left_out=self.left_out,
        )  # fmt: skip
        results = judging.results()
        left_out = {**self.plan.left_out, **self.left_out}
        results["left_out"] = [{"what": what, "why": why} for what, why in left_out.items()]
        return results

    def _first_epochs(self) -> list[str]:
        names: list[str] = []
        for batch in self._batches(self.plan.images):
            new = [name for name in batch if not self.runs.kept(name)]
            while new and not self._in_time(new):
                why = self._no_time(new)
                self.left_out[new.pop()] = why
            chosen = [name for name in batch if name not in self.left_out]
            self._train(chosen, 1)
            names += chosen
        if len(names) < 2:
            raise UserError(
                f"the budget was spent before two tasks had an epoch; what is finished is kept in "
                f"{self.folder.name}: give more --budget-minutes, the same command goes on from there"
            )
        if JOINT in self.seconds:
            self._first_joint_epoch(names)
        return names

    def _first_joint_epoch(self, names: Sequence[str]) -> None:
        self.runs = replace(self.runs, joined=tuple(names))
        self.seconds[JOINT] = sum(self.seconds[name] for name in names)
        if self.runs.kept(JOINT) or self._in_time([JOINT]):
            self._train([JOINT], 1)
        else:
            self.left_out[JOINT] = self._no_time([JOINT])
            del self.seconds[JOINT]

    def _later_epochs(self, names: Sequence[str]) -> int:
        """Round by round, as long as a whole one fits; the last one that all tasks have finished."""
        names = [*names, JOINT] if JOINT in self.seconds else names
        most = {name: self.plan.most[name] for name in names}
        for epoch in range(2, max(most.values()) + 1):
            wanting = [n for n in names if most[n] >= epoch > max(self.runs.kept(n))]
            for batch in self._batches(wanting):
                if not self._in_time(wanting):
                    break
                self._train(batch, epoch)
                wanting = wanting[len(batch) :]
            if wanting:
                self.left_out[f"epochs {epoch} to {max(most.values())}"] = (
                    f"there was no time for epoch {epoch} of {', '.join(wanting)}: {self._no_time(wanting)}"
                )
                break
            if epoch > 2:
                self._forget(epoch - 1, [name for name in names if most[name] >= epoch])
        return self._last_round(most)

    def _last_round(self, most: Mapping[str, int]) -> int:
        """The last of which all tasks have kept the parameters; joint training may be behind."""
        there = {name: self.runs.kept(name) for name in most if name != JOINT}
        rounds = range(2, max(most[name] for name in there) + 1)
        last = max((e for e in rounds if all(min(e, most[n]) in there[n] for n in there)), default=1)
        latest = max(map(max, there.values()))
        behind = [name for name in there if max(there[name]) < latest - 1]
        if behind and last == 1:
            self.left_out["a late merge"] = (
                f"{', '.join(behind)} began later than the others, who keep their first and last epochs "
                "alone, and must reach these: give more --budget-minutes"
            )
        return last

    def _forget(self, epoch: int, names: Sequence[str]) -> None:
        """The checkpoints of a round, once the next one is complete."""
        for name in names:
            self.runs.checkpoint(name, epoch).unlink(missing_ok=True)

    def _batches(self, names: Iterable[str]) -> list[list[str]]:
        """The tasks of a round that are begun together: all, where there are several workers, or each."""
        return [list(names)] if self.plan.workers > 1 else [[name] for name in names]

    def _in_time(self, names: Iterable[str]) -> bool:
        """Whether an epoch of each fits, and judging after it."""
        return self.clock() + self._planned(names) + self.plan.judging <= self.deadline

    def _no_time(self, names: Iterable[str]) -> str:
        left = max(0.0, self.deadline - self.clock() - self.plan.judging)
        return f"it was expected to take {self._planned(names):.0f} s, and {left:.0f} s were left"

    def _planned(self, names: Iterable[str]) -> float:
        return clip_plan.makespan((self.seconds[name] for name in names), self.plan.workers)

    def _train(self, names: Sequence[str], epoch: int) -> None:
        """Bring each task to an epoch; how long that took is what the next epoch is taken to last."""
        new = [name for name in names if epoch not in self.runs.kept(name)]
        begin = self.clock()
        if names:
            longest_first = sorted(names, key=self.seconds.__getitem__, reverse=True)
            jobs = {name: self._job(name, epoch) for name in longest_first}
            engines.finetune_all(
                self.place.encoder, jobs, options=self.place.engine, progress=bool(new)
            )
        if new:
            slower = (self.clock() - begin) / self._planned(new)
            self.seconds |= {name: slower * self.seconds[name] for name in new}
        for name in names:
            if max(self.runs.kept(name)) >= self.plan.most[name]:  # it never goes on
                (self.runs.place(name) / "latest.safetensors").unlink(missing_ok=True)

    def _job(self, name: str, epoch: int) -> Job | JointJob:
        told: dict[str, Any] = {"settings": replace(RECIPE, epochs=epoch), "speed": self.speed}
        told |= {"folder": self.runs.place(name), "keep": {1, epoch}}
        if name != JOINT:
            return Job(load=self.place.loads[name], **told)
        loads = {each: self.place.loads[each] for each in self.runs.joined}
        return JointJob(load=partial(_load_all, loads), **told)


def _load_all(
    loads: Mapping[str, Callable[[Encoder], tuple[Head, Task]]], encoder: Encoder
) -> tuple[dict[str, Head], dict[str, Task]]:
    heads, tasks = {}, {}
    for name, load in loads.items():
        heads[name], tasks[name] = load(encoder)
    return heads, tasks
