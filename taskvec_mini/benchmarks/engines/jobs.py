"""What an engine is given: one task to finetune on, or several jointly, and the options of the engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import DATA_VARIABLE, Task
from taskvec_mini.benchmarks.encoders import Encoder
from taskvec_mini.benchmarks.heads import Head
from taskvec_mini.benchmarks.training import Run, Settings, Speed, finetune, finetune_jointly
from taskvec_mini.errors import UserError

ENGINES = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engine runs the jobs, and how; all but `engine` are for Ray alone.

    Attributes:
        engine: "local", one task after the other in this process; or "ray", one task a worker.
        workers: how many tasks run at a time; by default as many as there is room for.
        address: the head of a running cluster as HOST:PORT, or "auto" for the one that runs on this machine.
            By default what the environment variable RAY_ADDRESS names, else a cluster is started on this
            machine and ended again. Where `ray.init` was called before, that connection is used.
        gpus_per_worker: by default one where the cluster has any, else none. A worker without a GPU takes as
            many CPUs as it has threads, one with a GPU takes one CPU.
        retries: how often a task may lose its worker and be started again.

    Raises:
        UserError: if the engine is unknown, a number is out of range, or an option is not for the engine.

    Example:
        >>> EngineOptions(engine="ray", workers=2).retries
        3
    """

    engine: str = field(
        default="local",
        metadata={
            "choices": ENGINES,
            "help": "local: one task after the other on this machine; ray: one task a worker of a Ray "
            "cluster, with the same result",
        },
    )
    workers: int | None = field(
        default=None,
        metadata={"help": "of ray: tasks at a time (default: what there is room for)", "recorded": False},
    )
    address: str | None = field(
        default=None,
        metadata={
            "metavar": "HOST:PORT",
            "help": "of ray: the cluster's head (default: a cluster on this machine while the command runs)",
            "recorded": False,
        },
    )
    gpus_per_worker: float | None = field(
        default=None,
        metadata={
            "help": "of ray: GPUs that a worker takes (default: one where the cluster has any)",
            "recorded": False,
        },
    )
    retries: int = field(
        default=3,
        metadata={"help": "of ray: how often a task whose worker died is started again", "recorded": False},
    )

    def __post_init__(self) -> None:
        _checks.named_choice("engine", self.engine, dict.fromkeys(ENGINES))
        if self.workers is not None:
            _checks.whole_number("workers", self.workers)
        if self.gpus_per_worker is not None:
            gpus = _checks.finite_number("gpus_per_worker", self.gpus_per_worker)
            if gpus < 0:
                raise UserError(f"gpus_per_worker must be at least 0, got {self.gpus_per_worker}")
        _checks.whole_number("retries", self.retries, minimum=0)
        for name in ("workers", "address", "gpus_per_worker"):
            value = getattr(self, name)
            if self.engine == "local" and value is not None:
                raise UserError(f"{name}={value!r} is for engine='ray', not for 'local'; leave it out")


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What every job has."""

    settings: Settings
    folder: str | os.PathLike[str] | None = None
    keep: Collection[int] | None = None
    speed: Speed = field(default_factory=Speed)

    def _arguments(self) -> dict[str, Any]:
        return {"settings": self.settings, "folder": self.folder, "keep": self.keep, "speed": self.speed}


@dataclass(frozen=True, kw_only=True)
class Job(_Training):
    """One task to finetune on.

    Attributes:
        load: from the encoder as it is before finetuning to the frozen head and the task. It is called where
            the training runs.
        settings: optimiser, rate, epochs and so on.
        folder: where checkpoints go; with Ray a folder that every machine sees under this path.
        keep: the epochs whose parameters are kept; all by default.
        speed: as in `training.finetune`.
    """

    load: Callable[[Encoder], tuple[Head, Task]]

    def run(self, encoder: Encoder, *, progress: bool) -> Run:
        """Finetune a copy of the encoder in this process; errors are those of `load` and of `finetune`."""
        head, task = self.load(encoder)
        return finetune(encoder, head, task, progress=progress, **self._arguments())


@dataclass(frozen=True, kw_only=True)
class JointJob(_Training):
    """Several tasks for one encoder to learn jointly: a `Job` whose `load` gives heads and tasks by name."""

    load: Callable[[Encoder], tuple[Mapping[str, Head], Mapping[str, Task]]]

    def run(self, encoder: Encoder, *, progress: bool) -> Run:
        """Finetune a copy in this process; errors are those of `load` and of `finetune_jointly`."""
        heads, tasks = self.load(encoder)
        return finetune_jointly(encoder, heads, tasks, progress=progress, **self._arguments())


def shared_folder(given: str | os.PathLike[str] | None) -> Path | None:
    """The folder of the data as workers can look for it, who have another working directory and environment.

    By default the one that the environment variable TASKVEC_MINI_DATA names here; None where there is none.

    Example:
        >>> shared_folder("data").is_absolute()
        True
    """
    found = given or os.environ.get(DATA_VARIABLE)
    return Path(found).expanduser().absolute() if found else None


class JobError(UserError):
    """A task whose finetuning failed for a reason that a user can put right.

    Attributes:
        name: the task.
        reason: the message of the error.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"task {self.name!r}: {self.reason}"
