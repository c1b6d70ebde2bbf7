"""One epoch of finetuning: batches in a seeded order, a loss, a step of the optimiser."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import descent
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.benchmarks.encoders import Encoder, trained_parameters, write_parameters
from taskvec_mini.benchmarks.heads import Head, centre_of
from taskvec_mini.benchmarks.training import memory
from taskvec_mini.benchmarks.training.settings import Settings, Speed
from taskvec_mini.errors import UserError

ExtraLoss = Callable[[nn.Module, torch.Generator], Tensor]


class DivergedError(descent.DivergedError, UserError):
    """Finetuning left the finite numbers. `epoch`, `step` (both counted from 1) and `loss` say where."""

    def __init__(self, title: str, *, epoch: int, step: int, loss: float, learning_rate: float):
        super().__init__(epoch, loss=loss, learning_rate=learning_rate)
        self.step = step
        self.learning_rate = learning_rate
        self.args = (
            f"finetuning on {title} diverged in epoch {epoch}, step {step} of it (loss {loss}) at "
            f"learning_rate {learning_rate:g}; lower the learning rate, or clip the gradients (the "
            "checkpoints of the epochs before are untouched)",
        )


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose seed is made from several numbers; near numbers give unrelated orders."""
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def plan(sizes: list[int], settings: Settings, *, epoch: int) -> list[tuple[int, Tensor]]:
    """The batches of an epoch, counted from 1: which task, and which of its images.

    Every image of every task is seen once. With several tasks the batches of all of them are mixed at random.
    Where a pass is cut into parts (`settings.parts`), an epoch has one part of such a list.

    Example:
        >>> batches = plan([3, 2], Settings(batch_size=2), epoch=1)
        >>> sorted((task, len(rows)) for task, rows in batches)
        [(0, 1), (0, 2), (1, 2)]
    """
    passes, part = divmod(epoch - 1, settings.parts)
    generator = seeded(settings.seed, passes + 1)
    orders = [torch.randperm(size, generator=generator) for size in sizes]
    batches = [
        (task, rows) for task, order in enumerate(orders) for rows in torch.split(order, settings.batch_size)
    ]
    if len(sizes) > 1:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    first, end = (number * len(batches) // settings.parts for number in (part, part + 1))
    return batches[first:end]


def steps_until(epoch: int, *, sizes: list[int], settings: Settings) -> int:
    """How many steps the epochs up to this one take together.

    Example:
        >>> [steps_until(epoch, sizes=[10], settings=Settings(batch_size=2, parts=2)) for epoch in range(5)]
        [0, 2, 5, 7, 10]
    """
    if settings.optimizer == "gd":
        return epoch
    steps = sum(math.ceil(size / settings.batch_size) for size in sizes)
    passes, parts = divmod(epoch, settings.parts)
    return passes * steps + parts * steps // settings.parts


@dataclass(frozen=True)
class _Step:
    """A step whose numbers are still on the device: of each micro-batch its number of images, their mean loss
    and how many were right; and the norm of the gradient."""

    images: list[int]
    losses: list[Tensor]
    hits: list[Tensor]
    norm: Tensor
    learning_rate: float


class Trainer:
    """A copy of the encoder, its optimiser and the data on one device.

    Data that do not fit the device beside the rest stay where they are, and every batch is moved; `memory`
    says so, and what the run takes.

    Args:
        backbone: the encoder; it is not changed.
        heads: the frozen head of each task, by name.
        tasks: by name; their training parts are used.
        settings: optimiser, rate, epochs and so on.
        device: where to train; the backbone's device by default.
        speed: number format, images in memory at a time and so on.
        extra_loss: a function of the model and a generator of the step's own, added to every step's loss.
        measured: the memory of the device; by default what can be asked of it.

    Raises:
        UserError: if settings and speed do not go together, a head has not the classes of its task, or it has
            no centre under centre="batch".
        TooLittleMemoryError: if it does not fit the device.
    """

    def __init__(
        self,
        backbone: Encoder,
        heads: Mapping[str, Head],
        tasks: Mapping[str, Task],
        *,
        settings: Settings,
        device: torch.device | None = None,
        speed: Speed | None = None,
        extra_loss: ExtraLoss | None = None,
        measured: memory.DeviceMemory | None = None,
    ):
        device = backbone.device if device is None else device
        self.device = device
        self.settings = settings
        self.speed = Speed() if speed is None else speed
        self.extra_loss = extra_loss
        self.speed.check(settings, device)
        model = self.speed.lay_out(copy.deepcopy(backbone.model).to(device).eval())
        self.backbone = replace(backbone, model=model)
        self.compiled = torch.compile(model, dynamic=False) if self.speed.compile else model
        self.parameters = trained_parameters(model)
        self.optimizer = settings.make_optimizer(self.parameters.values())
        self.title = " + ".join(tasks)
        self.heads = [copy.deepcopy(heads[name]).to(device) for name in tasks]
        self.data = [task.part("train") for task in tasks.values()]
        self.sizes = [len(labels) for _, labels in self.data]
        steps = steps_until(settings.parts, sizes=self.sizes, settings=settings)
        if steps < settings.parts:
            raise UserError(
                f"a pass over {self.title} has {steps} steps, which make no {settings.parts} parts; lower "
                "parts or batch_size"
            )
        self.images_at_a_time = self.speed.images_at_a_time(settings)
        self.unread = 1 if device.type == "cuda" else 0  # steps queued before anyone looks at their numbers
        for head, (inputs, _), task in zip(self.heads, self.data, tasks.values(), strict=True):
            with torch.no_grad():
                logits = head(model(self.backbone.prepare(inputs[:1])))
            if logits.shape[1] != len(task.class_names):
                raise UserError(
                    f"the head gives {logits.shape[1]} logits but {task.name} has {len(task.class_names)} "
                    "classes; make the head from this task"
                )
            if settings.centre == "batch":
                centre_of(head)  # an error here leaves no folder behind
        largest = self.sizes.index(max(self.sizes))

        def probe(images: int) -> None:
            """The first images forth and back, for the memory that it takes; no trace of it is left."""
            try:
                self.backward(largest, torch.arange(images), weight=1.0)
            finally:
                self.optimizer.zero_grad()

        self.memory = memory.estimate(
            model,
            [part for pair in self.data for part in pair],
            settings=settings,
            images=min(self.images_at_a_time, self.sizes[largest]),
            probe=probe,
            device=device,
            measured=memory.device_memory(device) if measured is None else measured,
        )
        if self.memory.data_on_device:
            self.data = [(inputs.to(device), labels.to(device)) for inputs, labels in self.data]

    def epoch(self, epoch: int, *, progress: Callable[[int], object] | None = None) -> dict[str, Any]:
        """Train for one epoch, counted from 1.

        A step is one batch or, with "gd", all of them: the gradient of the mean over tasks of the mean over
        images, summed batch by batch.

        Args:
            epoch: which one; it decides the order of the images and the learning rates.
            progress: is told after every batch how many images it had.

        Returns:
            What was measured meanwhile: "loss" and "accuracy" over images as they were met, the mean
            "gradient_norm" before clipping, "steps", "seconds", "images_per_second".

        Raises:
            DivergedError: where a number is not finite.
            TooLittleMemoryError: where a GPU has no more memory.
        """
        begin = time.perf_counter()
        settings = self.settings
        full_batch = settings.optimizer == "gd"
        batches = plan(self.sizes, settings, epoch=epoch)
        steps = 1 if full_batch else len(batches)
        before = steps_until(epoch - 1, sizes=self.sizes, settings=settings)
        in_all = steps_until(settings.epochs, sizes=self.sizes, settings=settings)
        clip_norm = math.inf if settings.clip_norm is None else settings.clip_norm
        loss, hits, norms, read = 0.0, 0, 0.0, 0
        waiting: deque[_Step] = deque()  # to look at a GPU's number is to wait until it has been computed
        images: list[int] = []
        losses: list[Tensor] = []
        right: list[Tensor] = []
        try:
            with self.speed.products():
                for number, (task, batch) in enumerate(batches, 1):
                    if not images:
                        self.optimizer.zero_grad()
                    share = len(batch) / (self.sizes[task] * len(self.sizes)) if full_batch else 1.0
                    for rows in torch.split(batch, self.images_at_a_time):
                        found = self.backward(task, rows, weight=share * (len(rows) / len(batch)))
                        images.append(len(rows))
                        losses.append(found[0])
                        right.append(found[1])
                    if progress is not None:
                        progress(len(batch))
                    last = number == len(batches)
                    if full_batch and not last:
                        continue
                    step = 1 if full_batch else number
                    if self.extra_loss is not None:
                        extra = self.extra_loss(self.backbone.model, seeded(settings.seed, epoch, step))
                        extra.backward()  # type: ignore[no-untyped-call]
                    norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), clip_norm)
                    rate = settings.rate(before + step, in_all)
                    waiting.append(_Step(images, losses, right, norm, rate))
                    images, losses, right = [], [], []
                    while len(waiting) > (0 if last else self.unread):
                        read += 1
                        step_loss, step_hits, step_norm = self._read(waiting.popleft(), epoch, step=read)
                        loss += step_loss
                        hits += step_hits
                        norms += step_norm
                    for group in self.optimizer.param_groups:
                        group["lr"] = rate
                    self.optimizer.step()
        except torch.OutOfMemoryError as error:
            why = f"finetuning on {self.title} ran out of memory in epoch {epoch}"
            size = self.images_at_a_time
            raise memory.too_little(
                why, size, smaller=size // 2, settings=settings, fits="may fit"
            ) from error
        if not all(bool(torch.isfinite(part).all()) for part in self.parameters.values()):
            raise DivergedError(
                self.title, epoch=epoch, step=steps, loss=math.nan, learning_rate=settings.learning_rate
            )
        seconds = time.perf_counter() - begin
        total = sum(len(rows) for _, rows in batches)
        return {
            "epoch": epoch,
            "loss": loss / total,
            "accuracy": hits / total,
            "gradient_norm": norms / steps,
            "steps": steps,
            "seconds": seconds,
            "images_per_second": total / seconds,
        }

    def backward(self, task: int, rows: Tensor, *, weight: float) -> tuple[Tensor, Tensor]:
        """Add `weight` times the gradient of the mean loss over these rows of a task's images.

        Returns:
            The mean loss and the number of images that are right, both still on the device.
        """
        images, labels = self.data[task]
        rows = _moved(rows, images.device)
        images = _moved(images[rows], self.device)
        labels = _moved(labels[rows], self.device)
        encode = self.compiled if len(images) == self.images_at_a_time else self.backbone.model
        inputs = self.speed.lay_out(self.backbone.prepare(images))
        embedded = self.speed.encode(encode, inputs)
        head = self.heads[task]
        if self.settings.centre == "batch":
            embedded = embedded - embedded.mean(0) + centre_of(head)
        logits = head(embedded)
        loss = F.cross_entropy(logits, labels)
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def _read(self, taken: _Step, epoch: int, *, step: int) -> tuple[float, int, float]:
        """The loss summed over images, how many were right, and the norm: one look, not one for each."""
        hits = [each.to(taken.norm.dtype) for each in taken.hits]
        numbers = torch.stack([*taken.losses, *hits, taken.norm]).tolist()
        count = len(taken.images)
        loss = sum(mean * images for mean, images in zip(numbers[:count], taken.images, strict=True))
        if not all(map(math.isfinite, numbers)):
            raise DivergedError(
                self.title,
                epoch=epoch,
                step=step,
                loss=loss / sum(taken.images),
                learning_rate=taken.learning_rate,
            )
        return loss, round(sum(numbers[count:-1])), numbers[-1]

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


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device; to a GPU from locked pages, because else the copy waits for all the GPU has yet to do."""
    if tensor.device == device or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
