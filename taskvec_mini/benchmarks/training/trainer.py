"""One epoch of finetuning: batches in a seeded order, a loss, a step of the optimiser."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini.benchmarks.encoders.parameters import trained_parameters, write_parameters
from taskvec_mini.benchmarks.heads import Head, centre_of
from taskvec_mini.benchmarks.training import memory
from taskvec_mini.benchmarks.training.progress import ProgressLine, unit_of
from taskvec_mini.benchmarks.training.settings import Settings
from taskvec_mini.benchmarks.training.speed import PLAIN, Speed
from taskvec_mini.benchmarks.training.tally import DivergedError, Part, Tally
from taskvec_mini.errors import UserError

if TYPE_CHECKING:
    from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task

ExtraLoss = Callable[[nn.Module, torch.Generator], Tensor]


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
def check_head(backbone: Encoder, head: Head, task: Task) -> None:
    """A ValueError unless the head has one logit for each class of the task."""
    logits = head(backbone.model(backbone.prepare(task.part("train")[0][:1])))
    if logits.shape[1] != len(task.class_names):
        raise UserError(
            f"the head gives {logits.shape[1]} logits but {task.name} has {len(task.class_names)} classes; "
            "make the head from this task"
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device; to a GPU from locked pages, because else the copy waits for all the GPU has yet to do."""
    if tensor.device == device or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Trainer:
    """A copy of the encoder, its optimiser and the data on one device.

    Data that do not fit the device beside the rest stay where they are, and every batch is moved; `memory`
    says so, and what the run takes.
    """

    def __init__(
        self,
        backbone: Encoder,
        heads: Mapping[str, Head],
        tasks: Mapping[str, Task],
        settings: Settings,
        *,
        extra_loss: ExtraLoss | None,
        device: torch.device,
        speed: Speed = PLAIN,
        gauge: memory.Gauge | None = None,
    ):
        speed.check(settings, device)
        model = speed.lay_out(copy.deepcopy(backbone.model).to(device).eval())
        self.backbone, self.speed = replace(backbone, model=model), speed
        self.compiled = torch.compile(model, dynamic=False) if speed.compile else model
        self.settings, self.extra_loss, self.title = settings, extra_loss, " + ".join(tasks)
        self.unit = unit_of(tasks.values())
        self.heads = [copy.deepcopy(heads[name]).to(device) for name in tasks]
        self.data = [t.part("train") for t in tasks.values()]
        self.sizes = [len(labels) for _, labels in self.data]
        self.parameters = trained_parameters(model)
        for head, task in zip(self.heads, tasks.values(), strict=True):
            check_head(self.backbone, head, task)
            if settings.centre == "batch":
                centre_of(head)  # an error here leaves no folder behind
        self.optimizer = settings.make_optimizer(self.parameters.values())
        batches = sum(math.ceil(size / settings.batch_size) for size in self.sizes)
        self.steps_per_epoch = 1 if settings.optimizer == "gd" else batches
        self.at_a_time = speed.images_at_a_time(settings)
        self.unseen = 1 if device.type == "cuda" else 0  # steps queued before anyone looks at their numbers
        self.memory = self._place_data(device, memory.gauge_of(device) if gauge is None else gauge)

    def _place_data(self, device: torch.device, gauge: memory.Gauge | None) -> memory.Memory:
        """Estimate the memory, then move the data to the device if they fit."""
        everything = [part for pair in self.data for part in pair]
        largest = self.sizes.index(max(self.sizes))
        found = memory.estimate(
            self.backbone.model,
            everything,
            settings=self.settings,
            images=min(self.at_a_time, self.sizes[largest]),
            probe=lambda images: self._probe(largest, images),
            device=device,
            gauge=gauge,
        )
        if found.data_on_device:
            self.data = [(inputs.to(device), labels.to(device)) for inputs, labels in self.data]
        return found

    def _probe(self, task: int, images: int) -> None:
        """The first images forth and back, for the memory that it takes; no trace of it is left."""
        try:
            self._backward(task, torch.arange(images), 1.0)
        finally:
            self.optimizer.zero_grad()

    def epoch(self, epoch: int, line: ProgressLine) -> dict[str, Any]:
        """Train for one epoch; what was measured meanwhile.

        Raises:
            DivergedError: where a number is not finite.
            TooLittleMemoryError: where a GPU has no more memory.
        """
        begin, images = time.perf_counter(), sum(self.sizes)
        tally = Tally(self.title, epoch, self.unseen)
        steps = self._full_batch if self.settings.optimizer == "gd" else self._mini_batches
        try:
            with self.speed.products():
                for seen in steps(epoch, tally):
                    line.add(seen, f"epoch {epoch}/{self.settings.epochs}")
        except torch.OutOfMemoryError as error:
            why, size = f"finetuning on {self.title} ran out of memory in epoch {epoch}", self.at_a_time
            raise memory.too_little(why, size, size // 2, settings=self.settings, fits="may fit") from error
        tally.look()
        if not all(bool(torch.isfinite(part).all()) for part in self.parameters.values()):
            raise DivergedError(self.title, epoch, tally.steps, math.nan, self.settings.learning_rate)
        seconds = time.perf_counter() - begin
        return {
            "epoch": epoch,
            "loss": tally.loss / images,
            "accuracy": tally.hits / images,
            "gradient_norm": tally.norms / tally.steps,
            "steps": tally.steps,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }

    def _mini_batches(self, epoch: int, tally: Tally) -> Iterator[int]:
        for task, index in plan(self.sizes, self.settings, epoch):
            self.optimizer.zero_grad()
            parts = self._accumulate(task, index, 1.0)
            self._step(epoch, parts, tally)
            yield len(index)

    def _full_batch(self, epoch: int, tally: Tally) -> Iterator[int]:
        """One step along the mean over tasks of the mean over images, its gradient summed batch by batch."""
        self.optimizer.zero_grad()
        parts: list[Part] = []
        for task, index in plan(self.sizes, self.settings, epoch):
            weight = len(index) / (self.sizes[task] * len(self.sizes))
            parts += self._accumulate(task, index, weight)
            yield len(index)
        self._step(epoch, parts, tally)

    def _accumulate(self, task: int, index: Tensor, weight: float) -> list[Part]:
        """Add `weight` times the gradient of the mean loss over these images, by micro-batches."""
        return [
            self._backward(task, rows, weight * (len(rows) / len(index)))
            for rows in torch.split(index, self.at_a_time)
        ]

    def _backward(self, task: int, rows: Tensor, weight: float) -> Part:
        images, labels = self._batch(task, rows)
        embedded = self._embed(images)
        if self.settings.centre == "batch":
            embedded = embedded - embedded.mean(0) + centre_of(self.heads[task])
        logits = self.heads[task](embedded)
        loss = F.cross_entropy(logits, labels)
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        return Part(len(rows), loss.detach(), (logits.detach().argmax(1) == labels).sum())

    def _batch(self, task: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """These images and labels on the device, from wherever the data are."""
        images, labels = self.data[task]
        here, device = _moved(rows, images.device), self.backbone.device
        return _moved(images[here], device), _moved(labels[here], device)

    def _embed(self, images: Tensor) -> Tensor:
        encode = self.compiled if len(images) == self.at_a_time else self.backbone.model
        inputs = self.speed.lay_out(self.backbone.prepare(images))
        with self.speed.forward(self.backbone.device):
            embedded: Tensor = encode(inputs)
        return embedded.float() if embedded.dtype == torch.bfloat16 else embedded

    def _step(self, epoch: int, parts: list[Part], tally: Tally) -> None:
        number = tally.begun + 1
        step = (epoch - 1) * self.steps_per_epoch + number
        if self.extra_loss is not None:
            extra = self.extra_loss(self.backbone.model, seeded(self.settings.seed, epoch, number))
            extra.backward()  # type: ignore[no-untyped-call]
        limit = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        rate = self.settings.rate(step, self.steps_per_epoch * self.settings.epochs)
        tally.add(parts, norm, rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

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
        for values in self.optimizer.state.values():  # fused steps want them in memory as the parameters are
            values |= {name: self.speed.lay_out(value) for name, value in values.items()}
