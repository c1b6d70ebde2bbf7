"""Finetuning an encoder with its head frozen: a checkpoint an epoch, and resuming to the same bits.

Only the encoder is trained (Ilharco et al., ICLR 2023). It runs in evaluation mode, so that nothing depends
on dropout or on the statistics of a batch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import _checks, _files
from taskvec_mini._progress import progress_bar
from taskvec_mini.benchmarks.data import Task, unit_of
from taskvec_mini.benchmarks.encoders import Encoder, state_of
from taskvec_mini.benchmarks.heads import Head
from taskvec_mini.benchmarks.training.experiment import FORMAT, RunFolder, head_checksum
from taskvec_mini.benchmarks.training.progress import epoch_line
from taskvec_mini.benchmarks.training.settings import Settings, Speed
from taskvec_mini.benchmarks.training.trainer import ExtraLoss, Trainer
from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.vectors import TaskVector


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
        states: the parameters after each kept epoch, where there is no folder.
    """

    settings: Settings
    pretrained: dict[str, Tensor]
    epochs: tuple[int, ...]
    records: tuple[dict[str, Any], ...]
    folder: Path | None = None
    states: Mapping[int, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(
        cls,
        folder: str | os.PathLike[str],
        *,
        settings: Settings,
        pretrained: dict[str, Tensor],
        keep: Collection[int] | None = None,
    ) -> Run:
        """The finished run that `finetune` left in a folder, with the arguments that it was given.

        Raises:
            UserError: if an epoch is not finished, or a file is damaged.
        """
        run = RunFolder(Path(folder))
        records = tuple(run.read_record(epoch) for epoch in range(1, settings.epochs + 1))
        return cls(settings, pretrained, _kept_epochs(settings, keep), records, run.path)

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
            UserError: if the epoch was not kept, or its file is truncated, corrupted or of another run.
        """
        epoch = self.settings.epochs if epoch is None else epoch
        if epoch == 0:
            return dict(self.pretrained)
        if epoch not in self.epochs:
            raise UserError(
                f"epoch {epoch} was not kept; choose one of 0, {', '.join(map(str, self.epochs))}"
            )
        found = self.states[epoch] if self.folder is None else RunFolder(self.folder).state(epoch)
        return {name: found[name] for name in self.pretrained}  # a file lists its tensors in another order

    def task_vector(self, epoch: int | None = None) -> TaskVector:
        """The task vector after an epoch, the last one by default.

        Raises:
            UserError: if the epoch was not kept, or its file is truncated, corrupted or of another run.
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
    speed: Speed | None = None,
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
        progress: show how far the run is, on stderr; see `_progress.progress_bar`.
        extra_loss: a function of the model and a generator of the step's own that returns a scalar to add to
            the loss of every step; its `__name__` is part of what the run is.
        device: where to train; the backbone's device by default.
        speed: number format, images in memory at a time and so on; a run with another rounding is another
            run, so a folder holds one choice.

    Raises:
        DivergedError: as soon as a loss, a gradient or a parameter is not finite, with epoch and step.
        TooLittleMemoryError: if it does not fit the GPU, before the first step where that can be told; the
            message names a number of images at a time that would.
        UserError: if the folder holds another run (the field and both values are named), a file in it is
            damaged (the message says which to delete), an epoch to keep does not exist, the head has not the
            task's classes, or it has no centre under centre="batch".
        FileError: if a checkpoint cannot be written (the earlier ones stay as they are), or another process
            is finetuning in the folder.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> from taskvec_mini.benchmarks.heads import prototype_head
        >>> backbone = load_backbone("random-pocket")
        >>> task = load_tasks(["digits"], suite="digits", limit=60)["digits"]
        >>> run = finetune(
        ...     backbone, prototype_head(backbone, task), task, settings=Settings(epochs=2), progress=False
        ... )
        >>> run.epochs, len(run.losses)
        ((1, 2), 2)
    """
    return finetune_jointly(
        backbone,
        {task.name: head},
        {task.name: task},
        settings=settings,
        folder=folder,
        keep=keep,
        progress=progress,
        extra_loss=extra_loss,
        device=device,
        speed=speed,
    )


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
    speed: Speed | None = None,
) -> Run:
    """Joint multitask training: one encoder, every task with its own frozen head.

    An epoch shows each training image of each task once, as many images as one epoch of every single run. A
    step takes a batch of one task; the batches of all tasks are mixed in a seeded random order, so a task
    with more images takes more steps. With "gd" the one step an epoch descends the mean over tasks of their
    mean losses instead, which is multitask gradient descent.

    Arguments, result and errors are those of `finetune`, with heads and tasks by name.

    Raises:
        UserError: if there are no tasks, or names of heads and tasks differ; also as in `finetune`.
    """
    _checks.not_empty("tasks", tasks)
    _checks.check_keys(tasks, heads, name="the tasks", other="the heads")
    kept = _kept_epochs(settings, keep)
    trainer = Trainer(
        backbone,
        heads,
        tasks,
        settings=settings,
        device=None if device is None else torch.device(device),
        speed=speed,
        extra_loss=extra_loss,
    )
    pretrained = state_of(trainer.backbone.model)
    run = None if folder is None else RunFolder(Path(folder))
    records: list[dict[str, Any]] = []
    states: dict[int, dict[str, Tensor]] = {}
    with contextlib.ExitStack() as stack:
        if run is not None:
            identity = _identity(backbone, heads, tasks, trainer=trainer)
            stack.enter_context(run.lock())
            run.begin(identity)
            if run.finished >= settings.epochs:
                records = [run.read_record(epoch) for epoch in range(1, settings.epochs + 1)]
            else:
                state, optimizer, records = run.resume()
                if records:
                    trainer.load(state, optimizer)
            for epoch in kept:
                if epoch <= len(records):
                    run.check_kept(epoch)
        left = range(len(records) + 1, settings.epochs + 1)
        unit = unit_of(tasks.values())
        images = sum(trainer.sizes) * len(left) // settings.parts
        bar = stack.enter_context(progress_bar(trainer.title, total=images, unit=unit, show=progress))
        if left and not records:  # a run that goes on has said it
            bar.say(f"{trainer.title}  {trainer.memory}")
        for epoch in left:
            record = trainer.epoch(epoch, progress=bar.update)
            records.append(record)
            if run is not None:
                run.save(
                    records,
                    state=state_of(trainer.backbone.model),
                    optimizer=trainer.optimizer_state(),
                    keep=epoch in kept,
                )
            elif epoch in kept:
                states[epoch] = state_of(trainer.backbone.model)
            bar.say(f"{trainer.title}  {epoch_line(record, epochs=settings.epochs, unit=unit)}")
    where = None if run is None else run.path
    return Run(settings, pretrained, kept, tuple(records[: settings.epochs]), where, states)


def _kept_epochs(settings: Settings, keep: Collection[int] | None) -> tuple[int, ...]:
    every = range(1, settings.epochs + 1)
    kept = tuple(sorted(set(every if keep is None else keep)))
    for epoch in kept:
        if epoch not in every:
            raise UserError(
                f"keep names epoch {epoch}, but the run has epochs 1 to {settings.epochs}; choose among these"
            )
    return kept


def _identity(
    backbone: Encoder, heads: Mapping[str, Head], tasks: Mapping[str, Task], *, trainer: Trainer
) -> dict[str, Any]:
    """All that decides the outcome, as JSON: names where a name says it, checksums of the rest."""
    extra_loss = trainer.extra_loss
    if extra_loss is not None and not hasattr(extra_loss, "__name__"):
        raise InputTypeError(
            f"extra_loss needs a __name__, which says what it is in the records; got {extra_loss!r}"
        )
    return {
        "format": FORMAT,
        "backbone": {
            "name": backbone.name,
            "preparation": backbone.preparation,
            "parameters": _files.checksum(state_of(backbone.model)),
        },
        "task_order": list(tasks),
        "tasks": {
            name: {
                "sha256": task.sha256,
                "train_images": len(task.part("train")[1]),
                "train_data": _files.checksum(
                    dict(zip(("images", "labels"), task.part("train"), strict=True))
                ),
                "head": head_checksum(heads[name]),
            }
            for name, task in tasks.items()
        },
        "settings": asdict(trainer.settings),
        "extra_loss": None if extra_loss is None else extra_loss.__name__,
        "device": trainer.device.type,
        "speed": trainer.speed.changes(trainer.settings),
    }
