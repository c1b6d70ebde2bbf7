"""What an engine is given to do: one task to finetune on, or several jointly; and what can go wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec_mini.benchmarks.data.suites import FOLDER_VARIABLE
from taskvec_mini.benchmarks.encoders.parameters import FrozenHead
from taskvec_mini.benchmarks.training.finetune import Run, finetune, finetune_jointly
from taskvec_mini.benchmarks.training.settings import Settings
from taskvec_mini.benchmarks.training.speed import PLAIN, Speed

if TYPE_CHECKING:
    from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What every job has."""

    settings: Settings
    folder: str | os.PathLike[str] | None = None
    keep: Collection[int] | None = None
    speed: Speed = PLAIN

    def _options(self, *, progress: bool) -> dict[str, Any]:
        names = ("settings", "folder", "keep", "speed")
        return {"progress": progress, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, kw_only=True)
class Job(_Training):
    """One task to finetune on.

    Attributes:
        load: from the encoder as it is before finetuning to the frozen head and the task. It is called where
            the training runs.
        settings: optimiser, rate, epochs and so on.
        folder: where checkpoints go; with Ray a folder that every machine sees under this path.
        keep: the epochs whose parameters are kept; all by default.
        speed: as in `finetuning.finetune`.
    """

    load: Callable[[Encoder], tuple[FrozenHead, Task]]

    def run(self, encoder: Encoder, *, progress: bool) -> Run:
        """Finetune a copy of the encoder here and now; errors are those of `load` and of `finetune`."""
        head, task = self.load(encoder)
        return finetune(encoder, head, task, **self._options(progress=progress))


@dataclass(frozen=True, kw_only=True)
class JointJob(_Training):
    """Several tasks for one encoder to learn jointly: a `Job` whose `load` gives heads and tasks by name."""

    load: Callable[[Encoder], tuple[Mapping[str, FrozenHead], Mapping[str, Task]]]

    def run(self, encoder: Encoder, *, progress: bool) -> Run:
        """Finetune a copy here and now; errors are those of `load` and of `finetune_jointly`."""
        heads, tasks = self.load(encoder)
        return finetune_jointly(encoder, heads, tasks, **self._options(progress=progress))


def shared_folder(given: str | os.PathLike[str] | None) -> Path | None:
    """The folder of the data as workers can look for it, who have another working directory and environment.

    By default the one that the environment variable TASKVEC_MINI_DATA names here; None where there is none.

    Example:
        >>> shared_folder("data").is_absolute()
        True
    """
    found = given or os.environ.get(FOLDER_VARIABLE)
    return Path(found).expanduser().absolute() if found else None


class JobError(RuntimeError):
    """A task whose finetuning failed. `name` says which, `why` holds the words of the error."""

    def __init__(self, name: str, why: str):
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"task {self.name!r}: {self.why}"


def error_words(error: Exception) -> str:
    """The message of an error, behind its kind unless that is one whose messages are whole sentences.

    Example:
        >>> error_words(KeyError("digits")), error_words(ValueError("epochs must be at least 1"))
        ("KeyError: 'digits'", 'epochs must be at least 1')
    """
    plain = isinstance(error, ValueError | TypeError | OSError) and str(error)
    return str(error) if plain else f"{type(error).__name__}: {error}"
