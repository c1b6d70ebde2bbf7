"""One epoch of finetuning: batches in a seeded order, a loss, a step of the optimiser."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import descent
from taskvec_mini.benchmarks.parameters import (
    FrozenHead,
    centre_of,
    on_device,
    trained_parameters,
    write_parameters,
)
from taskvec_mini.benchmarks.progress import ProgressLine
from taskvec_mini.benchmarks.settings import Settings

if TYPE_CHECKING:
    from taskvec_mini.benchmarks.protocols import Encoder, Task

ExtraLoss = Callable[[nn.Module, torch.Generator], Tensor]


class DivergedError(descent.DivergedError):
    """Finetuning left the finite numbers. `epoch`, `step` (both counted from 1) and `loss` say where."""

    def __init__(self, title: str, epoch: int, step: int, loss: float, learning_rate: float):
        super().__init__(epoch, loss, learning_rate)
        self.step, self.learning_rate = step, learning_rate
        self.args = (
            f"finetuning on {title} diverged in epoch {epoch}, step {step} of it (loss {loss}) at "
            f"learning_rate {learning_rate:g}; lower the learning rate, or clip the gradients (the "
            "checkpoints of the epochs before are untouched)",
        )


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose seed is made from several numbers; near numbers give unrelated orders."""
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def plan(sizes: list[int], settings: Settings, epoch: int) -> list[tuple[int, Tensor]]:
    """The steps of an epoch: which task, and which of its images.

    Every image of every task is seen once. With several tasks the batches of all of them are mixed at random.

    Example:
        >>> steps = plan([3, 2], Settings(learning_rate=0.1, epochs=1, batch_size=2), 1)
        >>> sorted((task, len(index)) for task, index in steps)
        [(0, 1), (0, 2), (1, 2)]
    """
    generator = seeded(settings.seed, epoch)
    orders = [torch.randperm(size, generator=generator) for size in sizes]
    steps = [
        (task, index)
        for task, order in enumerate(orders)
        for index in torch.split(order, settings.batch_size)
    ]
    if len(sizes) == 1:
        return steps
    return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]


@torch.no_grad()
def check_head(backbone: Encoder, head: FrozenHead, task: Task) -> None:
    """A ValueError unless the head has one logit for each class of the task."""
    logits = head(backbone.model(backbone.prepare(task.part("train")[0][:1])))
    if logits.shape[1] != len(task.class_names):
        raise ValueError(
            f"the head gives {logits.shape[1]} logits but {task.name} has {len(task.class_names)} classes; "
            "make the head from this task"
        )


@dataclass
class _Totals:
    """What is summed over the steps of an epoch."""

    loss: float = 0.0
    hits: int = 0
    norms: float = 0.0
    steps: int = 0


class Trainer:
    """A copy of the encoder, its optimiser and the data on one device."""

    def __init__(
        self,
        backbone: Encoder,
        heads: Mapping[str, FrozenHead],
        tasks: Mapping[str, Task],
        settings: Settings,
        *,
        extra_loss: ExtraLoss | None,
        device: torch.device,
    ):
        self.backbone = replace(backbone, model=copy.deepcopy(backbone.model).to(device).eval())
        self.settings, self.extra_loss, self.title = settings, extra_loss, " + ".join(tasks)
        self.heads = [on_device(heads[name], device) for name in tasks]
        self.data = [tuple(each.to(device) for each in t.part("train")) for t in tasks.values()]
        self.sizes = [len(labels) for _, labels in self.data]
        self.parameters = trained_parameters(self.backbone.model)
        for head, task in zip(self.heads, tasks.values(), strict=True):
            check_head(self.backbone, head, task)
            if settings.centre == "batch":
                centre_of(head)  # an error here leaves no folder behind
        self.optimizer = settings.make_optimizer(self.parameters.values())
        batches = sum(math.ceil(size / settings.batch_size) for size in self.sizes)
        self.steps_per_epoch = 1 if settings.optimizer == "gd" else batches

    def epoch(self, epoch: int, line: ProgressLine) -> dict[str, Any]:
        """Train for one epoch; what was measured meanwhile. A DivergedError where a number is not finite."""
        begin, images, totals = time.perf_counter(), sum(self.sizes), _Totals()
        steps = self._full_batch if self.settings.optimizer == "gd" else self._mini_batches
        for seen in steps(epoch, totals):
            line.add(seen, f"epoch {epoch}/{self.settings.epochs}")
        if not all(bool(torch.isfinite(part).all()) for part in self.parameters.values()):
            raise DivergedError(self.title, epoch, totals.steps, math.nan, self.settings.learning_rate)
        seconds = time.perf_counter() - begin
        return {
            "epoch": epoch,
            "loss": totals.loss / images,
            "accuracy": totals.hits / images,
            "gradient_norm": totals.norms / totals.steps,
            "steps": totals.steps,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }

    def _mini_batches(self, epoch: int, totals: _Totals) -> Iterator[int]:
        for task, index in plan(self.sizes, self.settings, epoch):
            self.optimizer.zero_grad()
            loss = self._backward(task, index, 1.0, totals)
            self._step(epoch, loss, totals)
            yield len(index)

    def _full_batch(self, epoch: int, totals: _Totals) -> Iterator[int]:
        """One step along the mean over tasks of the mean over images, its gradient summed batch by batch."""
        self.optimizer.zero_grad()
        for task, index in plan(self.sizes, self.settings, epoch):
            weight = len(index) / (self.sizes[task] * len(self.sizes))
            self._backward(task, index, weight, totals)
            yield len(index)
        self._step(epoch, totals.loss, totals)

    def _backward(self, task: int, index: Tensor, weight: float, totals: _Totals) -> float:
        images, labels = self.data[task]
        rows = index.to(images.device)
        embedded = self.backbone.model(self.backbone.prepare(images[rows]))
        if self.settings.centre == "batch":
            embedded = embedded - embedded.mean(0) + centre_of(self.heads[task])
        logits = self.heads[task](embedded)
        loss = F.cross_entropy(logits, labels[rows])
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        totals.loss += value * len(index)
        totals.hits += int((logits.detach().argmax(1) == labels[rows]).sum())
        return value

    def _step(self, epoch: int, loss: float, totals: _Totals) -> None:
        totals.steps += 1
        step = (epoch - 1) * self.steps_per_epoch + totals.steps
        if self.extra_loss is not None:
            extra = self.extra_loss(self.backbone.model, seeded(self.settings.seed, epoch, totals.steps))
            extra.backward()  # type: ignore[no-untyped-call]
        limit = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        rate = self.settings.rate(step, self.steps_per_epoch * self.settings.epochs)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(self.title, epoch, totals.steps, loss, rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        totals.norms += norm

    # what `latest.safetensors` holds of the optimiser

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimiser's tensors on the CPU, named `<number of the parameter>.<name>`."""
        stored: dict[int, dict[str, Any]] = self.optimizer.state_dict()["state"]
        return {
            f"{number}.{name}": value.detach().to("cpu", copy=True).contiguous()
            for number, values in stored.items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }

    def load(self, state: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Go on from parameters and the tensors of `optimizer_state`."""
        write_parameters(self.backbone.model, state)
        stored: dict[int, dict[str, Tensor]] = {}
        for name, value in optimizer.items():
            number, _, key = name.partition(".")
            stored.setdefault(int(number), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": stored, "param_groups": groups})
