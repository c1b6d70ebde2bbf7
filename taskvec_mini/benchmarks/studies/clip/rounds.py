"""Training in the study of CLIP: an epoch of every task, then another, as often as there is time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from taskvec_mini.benchmarks.data import Task
from taskvec_mini.benchmarks.encoders import Encoder
from taskvec_mini.benchmarks.engines import EngineOptions, Job, JointJob, finetune_all
from taskvec_mini.benchmarks.heads import Head
from taskvec_mini.benchmarks.studies.clip.budget import Plan, makespan
from taskvec_mini.benchmarks.training import JOINT, Experiment, RunFolder, Settings, Speed
from taskvec_mini.errors import UserError

RECIPE = Settings(learning_rate=1e-5, epochs=1, weight_decay=0.1, batch_size=128, clip_norm=10.0)

Load = Callable[[Encoder], tuple[Head, Task]]


@dataclass(eq=False, kw_only=True)
class PlannedTraining:
    """Round after round of a plan, each as soon as it is known to fit into the time that is left.

    The parameters after the first epoch are kept and those of the last round, or two, that were finished.

    Attributes:
        plan: what is to be done.
        experiment: where the runs are.
        speed: number format, images in memory at a time.
        engine: where the epochs are trained.
        load_encoder: loads the encoder, as in `finetune_all`.
        loads: each task with its head, likewise.
        deadline: when everything has to be done, evaluation too, by the clock.
        clock: gives seconds.
        runs: what was trained, by task; joint training under `JOINT`.
        seconds: of an epoch of each: planned, then as last measured.
        left_out: what there was no time for, and why.
    """

    plan: Plan
    experiment: Experiment
    speed: Speed
    engine: EngineOptions
    load_encoder: Callable[[], Encoder]
    loads: Mapping[str, Load]
    deadline: float
    clock: Callable[[], float]
    runs: dict[str, RunFolder] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def run(self) -> int:
        """All rounds for which there is time; the last one that all tasks have finished.

        Raises:
            UserError: if there is no time for two tasks.
            JobError: if training fails, with the name of the task.
        """
        self.seconds = dict(self.plan.seconds)
        names = self._first_round()
        self._later_rounds()
        return self._last_round(names)

    def _first_round(self) -> list[str]:
        """An epoch of every task, and then of all jointly; the tasks that have one."""
        for batch in self._batches(self.plan.images):
            new = [name for name in batch if not self.experiment.run(name).kept]
            while new and not self._in_time(new):
                reason = self._no_time(new)
                self.left_out[new.pop()] = reason
            chosen = [name for name in batch if name not in self.left_out]
            self.runs |= {name: self.experiment.run(name) for name in chosen}
            self._train(chosen, 1)
        names = list(self.runs)
        if len(names) < 2:
            raise UserError(
                f"the budget was spent before two tasks had an epoch; what is finished is kept in "
                f"{self.experiment.folder.name}: give more --budget-minutes, the same command goes on from "
                "there"
            )
        if JOINT in self.seconds:
            self.seconds[JOINT] = sum(self.seconds[name] for name in names)
            joint = self.experiment.joint(names)
            if joint.kept or self._in_time([JOINT]):
                self.runs[JOINT] = joint
                self._train([JOINT], 1)
            else:
                self.left_out[JOINT] = self._no_time([JOINT])
        return names

    def _later_rounds(self) -> None:
        """Round by round, as long as a whole one fits."""
        most = {name: self.plan.most[name] for name in self.runs}
        for epoch in range(2, max(most.values()) + 1):
            waiting = [name for name in most if most[name] >= epoch > max(self.runs[name].kept)]
            for batch in self._batches(waiting):
                if not self._in_time(waiting):
                    break
                self._train(batch, epoch)
                waiting = waiting[len(batch) :]
            if waiting:
                self.left_out[f"epochs {epoch} to {max(most.values())}"] = (
                    f"there was no time for epoch {epoch} of {', '.join(waiting)}: {self._no_time(waiting)}"
                )
                break
            if epoch > 2:  # the round before is complete, and nobody needs it any more
                for name in most:
                    if most[name] >= epoch:
                        self.runs[name].checkpoint(epoch - 1).unlink(missing_ok=True)

    def _last_round(self, names: Sequence[str]) -> int:
        """The last of which all tasks have kept the parameters; joint training may be behind."""
        most = self.plan.most
        kept = {name: self.runs[name].kept for name in names}
        last = 1
        for epoch in range(2, max(most[name] for name in names) + 1):
            if all(min(epoch, most[name]) in kept[name] for name in names):
                last = epoch
        latest = max(max(epochs) for epochs in kept.values())
        behind = [name for name in names if max(kept[name]) < latest - 1]
        if behind and last == 1:
            self.left_out["a late merge"] = (
                f"{', '.join(behind)} began later than the others, who keep their first and last epochs "
                "alone, and must reach these: give more --budget-minutes"
            )
        return last

    def _train(self, names: Sequence[str], epoch: int) -> None:
        """Bring each to an epoch; how long that took is what the next epoch is taken to last."""
        new = [name for name in names if epoch not in self.runs[name].kept]
        begin = self.clock()
        jobs: dict[str, Job | JointJob] = {}
        for name in sorted(names, key=self.seconds.__getitem__, reverse=True):  # the longest first
            training: dict[str, Any] = {
                "settings": replace(RECIPE, epochs=epoch),
                "speed": self.speed,
                "folder": self.runs[name].path,
                "keep": {1, epoch},
            }
            if name == JOINT:
                loads = {task: self.loads[task] for task in self.runs if task != JOINT}
                jobs[name] = JointJob(load=partial(_load_all, loads), **training)
            else:
                jobs[name] = Job(load=self.loads[name], **training)
        if jobs:
            finetune_all(self.load_encoder, jobs, options=self.engine, progress=bool(new))
        if new:
            slower = (self.clock() - begin) / self._planned(new)
            self.seconds |= {name: slower * self.seconds[name] for name in new}
        for name in names:
            if max(self.runs[name].kept) >= self.plan.most[name]:  # it never goes on
                self.runs[name].latest.unlink(missing_ok=True)

    def _batches(self, names: Iterable[str]) -> list[list[str]]:
        """The tasks of a round that are begun together: all, where there are several workers, or each."""
        return [list(names)] if self.plan.workers > 1 else [[name] for name in names]

    def _planned(self, names: Iterable[str]) -> float:
        """Seconds that an epoch of each is expected to take."""
        return makespan((self.seconds[name] for name in names), self.plan.workers)

    def _in_time(self, names: Iterable[str]) -> bool:
        """Whether an epoch of each fits, and the evaluation after it."""
        return self.clock() + self._planned(names) + self.plan.evaluation <= self.deadline

    def _no_time(self, names: Iterable[str]) -> str:
        """Why it does not."""
        left = max(0.0, self.deadline - self.clock() - self.plan.evaluation)
        return f"it was expected to take {self._planned(names):.0f} s, and {left:.0f} s were left"


def _load_all(loads: Mapping[str, Load], encoder: Encoder) -> tuple[dict[str, Head], dict[str, Task]]:
    heads, tasks = {}, {}
    for name, load in loads.items():
        heads[name], tasks[name] = load(encoder)
    return heads, tasks
