"""How much of the study of CLIP fits into a budget: planned from measured speeds, before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from taskvec_mini import _checks, scores
from taskvec_mini.benchmarks.encoders.base import Backbone
from taskvec_mini.benchmarks.encoders.load import embed
from taskvec_mini.benchmarks.evaluation.throughput import CLASSES, noise_task, random_head
from taskvec_mini.benchmarks.training import memory
from taskvec_mini.benchmarks.training.progress import ProgressLine
from taskvec_mini.benchmarks.training.settings import Settings
from taskvec_mini.benchmarks.training.speed import Speed
from taskvec_mini.benchmarks.training.trainer import Trainer
from taskvec_mini.errors import UserError

JOINT = "joint"  # among the tasks of a round: the encoder that learns all of them
STEPS = 4  # of the measurement; as many before them do not count
MARGIN = 0.05  # of the budget, for what no plan foresees
BESIDES = 0.1  # of the budget: what is judged besides is planned for if it takes no more
_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What was measured on this machine.

    Attributes:
        training: images/s of finetuning.
        judging: images/s of a forward pass in float32, as accuracies are measured.
        memory: what finetuning takes, in words.
    """

    training: float
    judging: float
    memory: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        images: training images by task, in the order of work: the shortest epochs first.
        seconds: of an epoch, by task; with joint training also under `JOINT`.
        epochs: how many every task shall have, or its own most where that is less.
        most: the most that each of these is trained for.
        judging: seconds for accuracies and coefficients.
        pace: what was measured.
        left_out: the tasks that do not fit, and why.
        later: the epochs that do not fit, in words; empty where all do.
        workers: how many tasks are trained at a time.
    """

    images: dict[str, int]
    seconds: dict[str, float]
    epochs: int
    most: dict[str, int]
    judging: float
    pace: Pace
    left_out: dict[str, str]
    later: str = ""
    workers: int = 1

    def __str__(self) -> str:
        together = {JOINT: sum(self.images.values())} if JOINT in self.seconds else {}
        rows = [
            {
                "task": name,
                "images": f"{count:,}",
                "minutes an epoch": f"{self.seconds[name] / _SECONDS:.1f}",
                "epochs": f"{min(self.epochs, self.most[name])}",
            }
            for name, count in (self.images | together).items()
        ]
        left_out = [f"left out: {what} ({why})" for what, why in self.left_out.items()]
        later = [f"left out: {self.later}"] if self.later else []
        judging = f"judging: {self.judging / _SECONDS:.1f} minutes"
        return "\n".join([scores.table(rows), *self._side_by_side(), judging, *left_out, *later])

    def _side_by_side(self) -> list[str]:
        if self.workers == 1:
            return []
        minutes = makespan(self.seconds.values(), self.workers) / _SECONDS
        return [
            f"{self.workers} workers, each taken to be as fast as this machine, the longest epochs first: an "
            f"epoch of every task takes {minutes:.1f} minutes; all is judged here, one task after the other"
        ]


def measure(
    backbone: Backbone, settings: Settings, device: torch.device, *, speed: Speed
) -> tuple[Pace, Speed]:
    """The pace of an encoder, which is on the device already, on images of noise.

    Where a batch does not fit the device, it is split into micro-batches, and the speed that is returned says
    so; one that asks for micro-batches already is left as it is.

    Raises:
        TooLittleMemoryError: if not even one image fits, or not as many at a time as were asked for.

    Example:
        >>> from taskvec_mini.benchmarks.encoders.load import load_backbone
        >>> encoder = load_backbone("random-pocket")
        >>> recipe = Settings(learning_rate=1e-4, epochs=1, batch_size=2)
        >>> pace, _ = measure(encoder, recipe, torch.device("cpu"), speed=Speed())
        >>> pace.judging > 0 and pace.training > 0
        True
    """
    task = noise_task(STEPS * settings.batch_size, backbone.image_size)
    head, line = random_head(backbone, CLASSES), ProgressLine("", 0, show=False)

    def trainer_at(speed: Speed) -> Trainer:
        return Trainer(
            backbone, {task.name: head}, {task.name: task}, replace(settings, epochs=2),
            extra_loss=None, device=device, speed=speed,
        )  # fmt: skip

    try:
        trainer = trainer_at(speed)
    except memory.TooLittleMemoryError as error:
        if not error.fits or speed.micro_batch_size:
            raise
        speed = replace(speed, micro_batch_size=error.fits)
        trainer = trainer_at(speed)
    pace = [trainer.epoch(epoch, line)["images_per_second"] for epoch in (1, 2)]  # the first one warms up
    judging = _judging(backbone, task.train_images)
    return Pace(training=pace[-1], judging=judging, memory=str(trainer.memory)), speed


def _judging(backbone: Backbone, images: torch.Tensor) -> float:
    for _ in range(2):  # the first one warms up
        begin = time.perf_counter()
        embed(backbone, images).cpu()
        seconds = time.perf_counter() - begin
    return len(images) / seconds


def makespan(seconds: Iterable[float], workers: int) -> float:
    """How long jobs take, each given to the first worker that is free, the longest first (Graham, 1969).

    Example:
        >>> makespan([2.0, 3.0, 4.0, 2.0], 2), makespan([2.0, 3.0, 4.0, 2.0], 1), makespan([], 2)
        (6.0, 11.0, 0.0)
    """
    busy = [0.0] * workers
    for each in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += each
    return max(busy)


def plan(
    images: Mapping[str, int],
    *,
    pace: Pace,
    seconds: float,
    judged: int,
    most: Mapping[str, int],
    done: Mapping[str, int],
    spent: float = 0.0,
    workers: int = 1,
    joint: Callable[[Collection[str]], int] | None = None,
    besides: Callable[[int], int] = lambda _tasks: 0,
) -> Plan:
    """What fits: one epoch of as many tasks as possible, then a further epoch of all of them, and so on.

    Args:
        images: training images by task.
        pace: what was measured.
        seconds: the budget; a small part of it is kept back.
        judged: how many images of each task are judged, over all models and coefficients.
        most: the most epochs of each task.
        done: the epochs that each task has already.
        spent: seconds of the budget that are gone.
        workers: how many tasks are trained at a time; all at the pace that was measured here.
        joint: with joint training of all that fit, as one more task of each round: how many epochs that of
            the named tasks has already. It shows no more images than all epochs of the single tasks together.
        besides: how many images are judged besides, for so many tasks. If that takes more than a tenth of the
            budget, it has to wait whether time is left in the end.

    Raises:
        ValueError: if there are fewer than two tasks, or not even two fit; the message says how many minutes
            do.

    Example:
        >>> pace = Pace(training=100.0, judging=1000.0, memory="")
        >>> found = plan(
        ...     {"large": 60_000, "small": 3_000, "middle": 6_000},
        ...     pace=pace, seconds=400.0, judged=20_000, most=dict.fromkeys(("large", "small", "middle"), 9),
        ...     done={},
        ... )
        >>> list(found.images), found.epochs, list(found.left_out)
        (['small', 'middle'], 3, ['large'])
    """
    order = sorted(images, key=lambda name: images[name])
    if len(order) < 2:
        raise UserError(f"a merge needs at least two tasks, got {', '.join(order) or 'none'}")
    epoch = {name: images[name] / pace.training for name in order}
    judging, room = judged / pace.judging, seconds * (1 - MARGIN) - spent

    def first(names: Iterable[str]) -> float:
        """Seconds of the first round of some tasks and of judging them."""
        wanting = {name: 0.0 if done.get(name) else epoch[name] for name in names}
        return judging * len(wanting) + makespan(wanting.values(), workers)

    chosen, left_out = _fitting(order, first, room)
    if len(chosen) < 2:
        _refuse(seconds, spent + first(sorted(order, key=lambda name: first([name]))[:2]), order)
    costs, room = {name: epoch[name] for name in chosen}, room - first(chosen)
    most, done = {name: most[name] for name in chosen}, dict(done)
    room -= _joint_seconds(joint, costs, most, done=done, left_out=left_out, room=room)
    more = besides(len(chosen)) / pace.judging
    more = more if more <= min(room, BESIDES * seconds) else 0.0
    epochs, later = _rounds(costs, most, done, room=room - more, workers=workers)
    return Plan(
        images={name: images[name] for name in chosen}, seconds=costs, epochs=epochs, most=most,
        judging=judging * len(chosen) + more, pace=pace, left_out=left_out, later=later, workers=workers,
    )  # fmt: skip


def _fitting(
    order: Iterable[str], seconds: Callable[[Iterable[str]], float], room: float
) -> tuple[list[str], dict[str, str]]:
    """The tasks whose first round fits, the shortest first; and why the others do not."""
    chosen: list[str] = []
    left_out = {}
    for name in order:
        needed = seconds([*chosen, name])
        if needed <= room:
            chosen.append(name)
        else:
            more = (needed - seconds(chosen)) / _SECONDS
            left_out[name] = f"one epoch and its judging take {more:.1f} minutes more"
    return chosen, left_out


def _joint_seconds(
    joint: Callable[[Collection[str]], int] | None,
    costs: dict[str, float],
    most: dict[str, int],
    *,
    done: dict[str, int],
    left_out: dict[str, str],
    room: float,
) -> float:
    """Joint training among the tasks if its first epoch fits, else among what is left out; its seconds."""
    if joint is None:
        return 0.0
    there, whole = joint(list(costs)), sum(costs.values())
    together = int(sum(costs[name] * most[name] for name in costs) / whole)
    needed = 0.0 if there else whole
    if needed > room:
        left_out[JOINT] = f"one epoch of all these tasks takes {needed / _SECONDS:.1f} minutes more"
        return 0.0
    costs[JOINT], most[JOINT], done[JOINT] = whole, together, there
    return needed


def _rounds(
    costs: Mapping[str, float],
    most: Mapping[str, int],
    done: Mapping[str, int],
    *,
    room: float,
    workers: int,
) -> tuple[int, str]:
    """How many epochs of every task fit, of which the first is paid; and what the next would take."""
    epochs, last = 1, max(most[name] for name in costs)
    while epochs < last:
        wanting = [name for name in costs if most[name] > epochs >= done.get(name, 0)]
        more = makespan((costs[name] for name in wanting), workers)
        if more > room:
            words = f"the next takes {more / _SECONDS:.1f} minutes more"
            return epochs, f"epochs {epochs + 1} to {last} ({words})"
        epochs, room = epochs + 1, room - more
    return epochs, ""


def _refuse(seconds: float, shortest: float, order: list[str]) -> None:
    needed = shortest / (1 - MARGIN) / _SECONDS
    raise UserError(
        f"a budget of {seconds / _SECONDS:g} minutes is too small: one epoch of the two shortest tasks, "
        f"{order[0]} and {order[1]}, and judging them take {needed:.1f} minutes on this machine; give "
        f"--budget-minutes {int(needed) + 1} or more, or a faster device"
    )


def rounded(pace: Pace) -> dict[str, Any]:
    """The pace for a record, rounded."""
    return {
        "training_images_per_second": round(pace.training, 1),
        "judging_images_per_second": round(pace.judging, 1),
        "memory": pace.memory,
    }


def seconds_of(value: float) -> float:
    """A budget in seconds.

    Raises:
        ValueError: if it is not above 0.

    Example:
        >>> seconds_of(1.5)
        90.0
    """
    return _checks.positive_number("--budget-minutes", value) * _SECONDS
