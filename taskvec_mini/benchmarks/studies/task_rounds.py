"""Rounds of tuning and merging on benchmark tasks, through `alternating.alternate`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec_mini.benchmarks.encoders.parameters import (
    holding,
    state_of,
    trained_parameters,
    write_parameters,
)
from taskvec_mini.benchmarks.heads import Head, centre_of
from taskvec_mini.benchmarks.training.finetune import Settings, finetune
from taskvec_mini.vectors import Layout

if TYPE_CHECKING:
    from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task

_SEEDS_APART = 1000  # between the rounds of a run


@dataclass(frozen=True, eq=False)
class TaskRounds:
    """Benchmark tasks in the form that `alternating.alternate` takes.

    Attributes:
        backbone: the encoder, with the parameters before the first round.
        heads, tasks: the tasks by name, each with its frozen head.
        settings: of the finetuning in every round; `settings.epochs` is the number of epochs a round, and the
            optimiser starts afresh in each. Round n takes the seed `settings.seed + 1000 (n - 1)`.
        folder: where the finetuned encoders go, by round and task. A run that was stopped is called again and
            reads what is there. None keeps nothing.
        first_round: another folder for round 1, where its encoders may lie already: they are those of plain
            finetuning with these settings.

    Example:
        >>> from taskvec_mini.alternating import alternate
        >>> from taskvec_mini.benchmarks.encoders.load import load_backbone
        >>> from taskvec_mini.benchmarks.data.suites import load_tasks
        >>> from taskvec_mini.benchmarks.heads import prototype_head
        >>> backbone = load_backbone("random-pocket")
        >>> tasks = load_tasks(["digits"], suite="digits", limit=32)
        >>> heads = {name: prototype_head(backbone, task) for name, task in tasks.items()}
        >>> each = TaskRounds(backbone, heads, tasks, Settings(learning_rate=1e-3, epochs=1))
        >>> run = alternate(each.losses, each.start, rounds=2, epochs=1, finetune=each.finetune)
        >>> [(here.number, here.gradient_evaluations) for here in run]
        [(0, 0), (1, 1), (2, 2)]
    """

    backbone: Encoder
    heads: Mapping[str, Head]
    tasks: Mapping[str, Task]
    settings: Settings
    folder: Path | None = None
    first_round: Path | None = None

    @property
    def start(self) -> Tensor:
        """The parameters before the first round, flat (D,), on the CPU."""
        return _flat(state_of(self.backbone.model))

    @property
    def layout(self) -> Layout:
        """Name and shape of each tensor in a flat vector, for `alternating.matrix_rule`."""
        return tuple((name, tuple(p.shape)) for name, p in trained_parameters(self.backbone.model).items())

    @property
    def losses(self) -> list[Callable[[Tensor], Tensor]]:
        """The mean loss of each task on its validation images, as functions of theta, without gradients."""
        return [partial(self._loss, name) for name in self.tasks]

    @torch.no_grad()
    def _loss(self, name: str, theta: Tensor) -> Tensor:
        inputs, labels = self.tasks[name].part("val")
        head = copy.deepcopy(self.heads[name]).to(self.backbone.device)
        with holding(self.backbone.model, theta):
            batches = [self.backbone.prepare(each) for each in torch.split(inputs, self.settings.batch_size)]
            embedded = torch.cat([self.backbone.model(batch) for batch in batches])
        if self.settings.centre == "batch":
            embedded = embedded - embedded.mean(0) + centre_of(head)
        return F.cross_entropy(head(embedded), labels.to(embedded.device)).cpu()

    def finetune(self, losses: Sequence[Any], theta: Tensor, number: int) -> Tensor:
        """Every task finetuned from theta for a round: (T, D), in the order of the tasks.

        `losses` are not used: what is descended is the loss on the training images.

        Raises:
            DivergedError, ValueError, OSError: as `finetuning.finetune` does.
        """
        own = self.start
        settings = replace(self.settings, seed=self.settings.seed + _SEEDS_APART * (number - 1))
        write_parameters(self.backbone.model, theta)
        try:
            runs = [
                finetune(
                    self.backbone, self.heads[name], task, settings=settings, keep=[settings.epochs],
                    folder=self._place(number, name), progress=False,
                )
                for name, task in self.tasks.items()
            ]  # fmt: skip
        finally:
            write_parameters(self.backbone.model, own)
        return torch.stack([_flat(run.state()) for run in runs])

    def _place(self, number: int, name: str) -> Path | None:
        if number == 1 and self.first_round is not None:
            return self.first_round / name
        return None if self.folder is None else self.folder / f"round_{number:02d}" / name


def _flat(state: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in state.values()])
