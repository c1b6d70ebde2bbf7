"""Finetuning an encoder with its head frozen: a checkpoint an epoch, and resuming to the same bits.

Only the encoder is trained (Ilharco et al., ICLR 2023). It runs in evaluation mode, so that nothing depends
on dropout or on the statistics of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskvec_mini import _checks, _files
from taskvec_mini.benchmarks.encoders.parameters import checksum, state_of
from taskvec_mini.benchmarks.heads import Head
from taskvec_mini.benchmarks.training import checkpoints
from taskvec_mini.benchmarks.training.progress import ProgressLine
from taskvec_mini.benchmarks.training.settings import Settings
from taskvec_mini.benchmarks.training.speed import PLAIN, Speed
from taskvec_mini.benchmarks.training.tally import DivergedError
from taskvec_mini.benchmarks.training.trainer import ExtraLoss, Trainer
from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.vectors import TaskVector

if TYPE_CHECKING:
    from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task

__all__ = ["DivergedError", "Run", "Settings", "Speed", "finetune", "finetune_jointly"]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished finetuning run.

    Attributes:
        settings: what it ran with.
        pretrained: the trained parameters at the start, by name, on the CPU.
        epochs: the epochs whose parameters were kept, counted from 1.
        records: one dictionary an epoch, kept or not: loss and accuracy on the training images as they were
            met during the epoch, the mean norm of the gradients before clipping, steps, seconds, and
            "images_per_second", which for texts is texts/s.
        folder: where the checkpoints are, or None where they are in memory.
    """

    settings: Settings
    pretrained: dict[str, Tensor]
    epochs: tuple[int, ...]
    records: tuple[dict[str, Any], ...]
    folder: Path | None = None
    _states: Any = field(default=None, repr=False)

    @property
    def losses(self) -> list[float]:
        """The mean training loss of each epoch."""
        return [record["loss"] for record in self.records]

    @property
    def accuracies(self) -> list[float]:
        """The share of training images that were right when they were met, for each epoch."""
        return [record["accuracy"] for record in self.records]

    @property
    def images_per_second(self) -> float:
        """The speed over all epochs; of a task of texts, texts/s."""
        seconds = sum(record["seconds"] for record in self.records)
        return float(sum(r["images_per_second"] * r["seconds"] for r in self.records) / seconds)

    def state(self, epoch: int | None = None) -> dict[str, Tensor]:
        """The trained parameters after an epoch, the last one by default; 0 is the start.

        Raises:
            ValueError: if the epoch was not kept, or its file is truncated or corrupted.
        """
        epoch = self.settings.epochs if epoch is None else epoch
        if epoch == 0:
            return dict(self.pretrained)
        if epoch not in self.epochs:
            raise UserError(
                f"epoch {epoch} was not kept; choose one of 0, {', '.join(map(str, self.epochs))}"
            )
        found = self._states[epoch] if self.folder is None else self._states.state(epoch)
        return {name: found[name] for name in self.pretrained}  # a file lists its tensors in another order

    def task_vector(self, epoch: int | None = None) -> TaskVector:
        """The task vector after an epoch, the last one by default.

        Raises:
            ValueError: if the epoch was not kept, or its file is truncated or corrupted.
        """
        return TaskVector.between(self.pretrained, self.state(epoch))


def finetune(
    backbone: Encoder,
    head: Head,
    task: Task,
    *,
    settings: Settings,
    folder: str | os.PathLike[str] | None = None,
    keep: Collection[int] | None = None,
    progress: bool = True,
    extra_loss: ExtraLoss | None = None,
    device: str | torch.device | None = None,
    speed: Speed = PLAIN,
) -> Run:
    """Finetune a copy of the encoder on one task's training images. The backbone itself is not changed.

    With a folder the run can be stopped at any moment, by kill -9 too: the same call goes on after the last
    whole epoch and ends at the same bits, on the same device with the same versions and number of threads. A
    finished run is read, not repeated. With a constant schedule a finished run can be prolonged: pass more
    epochs.

    Args:
        backbone: the encoder to start from, with its preparation of images.
        head: turns embeddings into logits; it stays frozen.
        task: its training part is used; inputs as the task holds them, prepared on the device.
        settings: optimiser, rate, epochs and so on.
        folder: where checkpoints go; None keeps them in memory.
        keep: the epochs whose parameters are kept; all by default.
        progress: show images/s (or texts/s) and the remaining time on stderr.
        extra_loss: a function of the model and a generator of the step's own that returns a scalar to add to
            the loss of every step; its `__name__` is part of what the run is.
        device: where to train; the backbone's device by default.
        speed: number format, images in memory at a time and so on; a run with another rounding is another
            run, so a folder holds one choice.

    Raises:
        DivergedError: as soon as a loss, a gradient or a parameter is not finite, with epoch and step.
        TooLittleMemoryError: if it does not fit the GPU, before the first step where that can be told; the
            message names a number of images at a time that would.
        ValueError: if the folder holds another run (the field and both values are named), a file in it is
            truncated, an epoch to keep does not exist, the head has not the task's classes, or it has no
            centre under centre="batch".
        OSError: if a checkpoint cannot be written; the earlier ones stay as they are.
    """
    return _run(
        backbone, {task.name: head}, {task.name: task}, settings, folder, keep, progress, extra_loss, device,
        speed,
    )  # fmt: skip


def finetune_jointly(
    backbone: Encoder,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    *,
    settings: Settings,
    folder: str | os.PathLike[str] | None = None,
    keep: Collection[int] | None = None,
    progress: bool = True,
    extra_loss: ExtraLoss | None = None,
    device: str | torch.device | None = None,
    speed: Speed = PLAIN,
) -> Run:
    """Joint multitask training: one encoder, every task with its own frozen head.

    An epoch shows each training image of each task once, as many images as one epoch of every single run. A
    step takes a batch of one task; the batches of all tasks are mixed in a seeded random order, so a task
    with more images takes more steps. With "gd" the one step an epoch descends the mean over tasks of their
    mean losses instead, which is multitask gradient descent.

    Arguments, result and errors are those of `finetune`, with heads and tasks by name.

    Raises:
        ValueError: if there are no tasks, or names of heads and tasks differ; also as in `finetune`.
    """
    return _run(backbone, heads, tasks, settings, folder, keep, progress, extra_loss, device, speed)


def _run(
    backbone: Encoder,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    settings: Settings,
    folder: str | os.PathLike[str] | None,
    keep: Collection[int] | None,
    progress: bool,
    extra_loss: ExtraLoss | None,
    device: str | torch.device | None,
    speed: Speed,
) -> Run:
    _check_tasks(heads, tasks)
    kept = _kept_epochs(settings, keep)
    where = backbone.device if device is None else torch.device(device)
    trainer = Trainer(backbone, heads, tasks, settings, extra_loss=extra_loss, device=where, speed=speed)
    pretrained = state_of(trainer.backbone.model)
    if folder is None:
        records, states = _in_memory(trainer, kept, progress)
        return Run(settings, pretrained, kept, records, None, states)
    identity = _identity(backbone, heads, tasks, settings, extra_loss, where, speed)
    ignore = frozenset({"settings.epochs"} if settings.schedule == "constant" else set())
    with checkpoints.locked(folder):
        store = checkpoints.RunFolder(folder, identity, ignore=ignore)
        _in_folder(trainer, store, kept, progress)
    records = tuple(checkpoints.read_json(store.record(e)) for e in range(1, settings.epochs + 1))
    return Run(settings, pretrained, kept, records, store.path, store)


def _in_memory(
    trainer: Trainer, kept: tuple[int, ...], progress: bool
) -> tuple[tuple[dict[str, Any], ...], dict[int, dict[str, Tensor]]]:
    records, states = [], {}
    line = _line(trainer, 0, progress)
    for epoch in range(1, trainer.settings.epochs + 1):
        records.append(trainer.epoch(epoch, line))
        if epoch in kept:
            states[epoch] = state_of(trainer.backbone.model)
        line.end_epoch(_words(records[-1]))
    return tuple(records), states


def _in_folder(trainer: Trainer, store: checkpoints.RunFolder, kept: tuple[int, ...], progress: bool) -> None:
    epochs = trainer.settings.epochs
    done = epochs if store.record(epochs).exists() else _load_latest(trainer, store)
    for epoch in (each for each in kept if each <= done):
        store.check_kept(epoch)
    line = _line(trainer, done, progress)
    for epoch in range(done + 1, epochs + 1):
        record = trainer.epoch(epoch, line)
        state, optimizer = state_of(trainer.backbone.model), trainer.optimizer_state()
        store.save(epoch, state=state, optimizer=optimizer, record=record, keep=epoch in kept)
        line.end_epoch(_words(record))


def _load_latest(trainer: Trainer, store: checkpoints.RunFolder) -> int:
    """Bring the trainer to the last whole epoch; which one that is."""
    found = store.resume()
    if found is None:
        return 0
    state, optimizer, epoch = found
    trainer.load(state, optimizer)
    return epoch


def _line(trainer: Trainer, done: int, progress: bool) -> ProgressLine:
    left = trainer.settings.epochs - done
    line = ProgressLine(trainer.title, sum(trainer.sizes) * left, show=progress, unit=trainer.unit)
    if left and not done:  # a run that goes on has said it
        line.note(str(trainer.memory))
    return line


def _words(record: Mapping[str, Any]) -> str:
    return f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}"


# --- what a run is ---------------------------------------------------------------------------------------


def _identity(
    backbone: Encoder,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    settings: Settings,
    extra_loss: ExtraLoss | None,
    device: torch.device,
    speed: Speed,
) -> dict[str, Any]:
    """All that decides the outcome, as JSON: names where a name says it, checksums of the rest."""
    return {
        "format": checkpoints.FILE_FORMAT,
        "backbone": {
            "name": backbone.name,
            "preparation": backbone.preparation,
            "parameters": checksum(state_of(backbone.model)),
        },
        "task_order": list(tasks),
        "tasks": {
            name: {
                "sha256": task.sha256,
                "train_images": len(task.part("train")[1]),
                "train_data": checksum(dict(zip(("images", "labels"), task.part("train"), strict=True))),
                "head": _files.checksum(heads[name].state_dict(), type(heads[name]).__name__),
            }
            for name, task in tasks.items()
        },
        "settings": asdict(settings),
        "extra_loss": None if extra_loss is None else _name(extra_loss),
        "device": device.type,
        **({"speed": changes} if (changes := speed.changes(settings)) else {}),  # absent in older runs
    }


def _name(function: ExtraLoss) -> str:
    if not hasattr(function, "__name__"):
        raise InputTypeError(
            f"extra_loss needs a __name__, which says what it is in the records; got {function!r}"
        )
    return str(function.__name__)


def _kept_epochs(settings: Settings, keep: Collection[int] | None) -> tuple[int, ...]:
    every = range(1, settings.epochs + 1)
    kept = tuple(sorted(set(every if keep is None else keep)))
    for epoch in kept:
        if epoch not in every:
            raise UserError(
                f"keep names epoch {epoch}, but the run has epochs 1 to {settings.epochs}; choose among these"
            )
    return kept


def _check_tasks(heads: Mapping[str, Head], tasks: Mapping[str, Task]) -> None:
    _checks.not_empty("tasks", tasks)
    _checks.check_keys(tasks, heads, "the tasks", "the heads")
