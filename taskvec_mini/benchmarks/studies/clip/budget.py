"""How much of the study of CLIP fits into a budget: planned from measured speeds, before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from taskvec_mini import scores
from taskvec_mini.benchmarks.encoders import Backbone, embed
from taskvec_mini.benchmarks.evaluation.throughput import CLASSES, noise_task, random_head
from taskvec_mini.benchmarks.training import JOINT, Settings, Speed, Trainer, memory
from taskvec_mini.errors import UserError

STEPS = 4  # of the measurement; as many before them do not count
MARGIN = 0.05  # of the budget, for what no plan foresees
EXTRAS = 0.1  # of the budget: what is evaluated besides is planned for if it takes no more


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """What was measured on this machine.

    Attributes:
        training: images/s of finetuning.
        evaluation: images/s of a forward pass in float32, as accuracies are measured.
        memory: what finetuning takes, as a sentence.
    """

    training: float
    evaluation: float
    memory: str


def measure_speed(
    backbone: Backbone, settings: Settings, *, device: torch.device, speed: Speed
) -> tuple[MeasuredSpeed, Speed]:
    """The speed of an encoder, which is on the device already, on images of noise.

    Where a batch does not fit the device, it is split into micro-batches, and the `Speed` that is returned
    says so; one that asks for micro-batches already is left as it is.

    Raises:
        TooLittleMemoryError: if not even one image fits, or not as many at a time as were asked for.

    Example:
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> encoder = load_backbone("random-pocket")
        >>> recipe = Settings(learning_rate=1e-4, epochs=1, batch_size=2)
        >>> measured, _ = measure_speed(encoder, recipe, device=torch.device("cpu"), speed=Speed())
        >>> measured.evaluation > 0 and measured.training > 0
        True
    """
    task = noise_task(STEPS * settings.batch_size, backbone.image_size)
    head = random_head(backbone, CLASSES)

    def trainer_at(speed: Speed) -> Trainer:
        return Trainer(
            backbone,
            {task.name: head},
            {task.name: task},
            settings=replace(settings, epochs=2),
            device=device,
            speed=speed,
        )

    try:
        trainer = trainer_at(speed)
    except memory.TooLittleMemoryError as error:
        if not error.fits or speed.micro_batch_size:
            raise
        speed = replace(speed, micro_batch_size=error.fits)
        trainer = trainer_at(speed)
    for epoch in (1, 2):  # the first one warms up
        training = trainer.epoch(epoch)["images_per_second"]
    for _ in range(2):  # the first one warms up
        begin = time.perf_counter()
        embed(backbone, task.train_images).cpu()
        seconds = time.perf_counter() - begin
    measured = MeasuredSpeed(
        training=training,
        evaluation=len(task.train_images) / seconds,
        memory=str(trainer.memory),
    )
    return measured, speed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        images: training images by task, in the order of work: the shortest epochs first.
        seconds: of an epoch, by task; with joint training also under `JOINT`.
        epochs: how many every task shall have, or its own most where that is less.
        most: the most that each of these is trained for.
        evaluation: seconds for accuracies and coefficients.
        measured: the speed of this machine.
        left_out: the tasks that do not fit, and why.
        later: the epochs that do not fit, and why; empty where all do.
        workers: how many tasks are trained at a time.
    """

    images: dict[str, int]
    seconds: dict[str, float]
    epochs: int
    most: dict[str, int]
    evaluation: float
    measured: MeasuredSpeed
    left_out: dict[str, str]
    later: str = ""
    workers: int = 1

    def __str__(self) -> str:
        joint = {JOINT: sum(self.images.values())} if JOINT in self.seconds else {}
        rows = [
            {
                "task": name,
                "images": f"{count:,}",
                "minutes an epoch": f"{self.seconds[name] / 60:.1f}",
                "epochs": f"{min(self.epochs, self.most[name])}",
            }
            for name, count in (self.images | joint).items()
        ]
        lines = [scores.table(rows)]
        if self.workers > 1:
            minutes = makespan(self.seconds.values(), self.workers) / 60
            lines.append(
                f"{self.workers} workers, each taken to be as fast as this machine, the longest epochs "
                f"first: an epoch of every task takes {minutes:.1f} minutes; evaluation is here, one task "
                "after the other"
            )
        lines.append(f"evaluation: {self.evaluation / 60:.1f} minutes")
        lines += [f"left out: {name} ({why})" for name, why in self.left_out.items()]
        if self.later:
            lines.append(f"left out: {self.later}")
        return "\n".join(lines)


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
    measured: MeasuredSpeed,
    seconds: float,
    evaluated: int,
    most: Mapping[str, int],
    done: Mapping[str, int],
    spent: float = 0.0,
    workers: int = 1,
    joint: Callable[[Collection[str]], int] | None = None,
    extras: Callable[[int], int] = lambda _tasks: 0,
) -> Plan:
    """What fits: one epoch of as many tasks as possible, then a further epoch of all of them, and so on.

    Args:
        images: training images by task.
        measured: the speed of this machine.
        seconds: the budget; a small part of it is kept back.
        evaluated: how many images of each task are evaluated, over all models and coefficients.
        most: the most epochs of each task.
        done: the epochs that each task has already.
        spent: seconds of the budget that are gone.
        workers: how many tasks are trained at a time; all at the speed that was measured here.
        joint: with joint training of all that fit, as one more task of each round: how many epochs that of
            the named tasks has already. It shows no more images than all epochs of the single tasks together.
        extras: how many images are evaluated besides, for so many tasks. If that takes more than a tenth of
            the budget, it has to wait whether time is left in the end.

    Raises:
        UserError: if there are fewer than two tasks, or not even two fit; the message says how many minutes
            do.

    Example:
        >>> measured = MeasuredSpeed(training=100.0, evaluation=1000.0, memory="")
        >>> found = plan(
        ...     {"large": 60_000, "small": 3_000, "middle": 6_000},
        ...     measured=measured, seconds=400.0, evaluated=20_000,
        ...     most=dict.fromkeys(("large", "small", "middle"), 9), done={},
        ... )
        >>> list(found.images), found.epochs, list(found.left_out)
        (['small', 'middle'], 3, ['large'])
    """
    order = sorted(images, key=lambda name: images[name])
    if len(order) < 2:
        raise UserError(f"a merge needs at least two tasks, got {', '.join(order) or 'none'}")
    epoch = {name: images[name] / measured.training for name in order}  # seconds
    evaluation = evaluated / measured.evaluation
    room = seconds * (1 - MARGIN) - spent

    def first_round(names: Collection[str]) -> float:
        """Seconds of the first epochs of some tasks and of evaluating them."""
        missing = [0.0 if done.get(name) else epoch[name] for name in names]
        return evaluation * len(names) + makespan(missing, workers)

    # one epoch of as many tasks as possible, the shortest first
    chosen: list[str] = []
    left_out = {}
    for name in order:
        more = first_round([*chosen, name])
        if more <= room:
            chosen.append(name)
        else:
            minutes = (more - first_round(chosen)) / 60
            left_out[name] = f"one epoch and its evaluation take {minutes:.1f} minutes more"
    if len(chosen) < 2:
        two = sorted(order, key=lambda name: first_round([name]))[:2]
        minutes = (spent + first_round(two)) / (1 - MARGIN) / 60
        raise UserError(
            f"a budget of {seconds / 60:g} minutes is too small: one epoch of the two shortest tasks, "
            f"{two[0]} and {two[1]}, and evaluating them take {minutes:.1f} minutes on this machine; give "
            f"--budget-minutes {int(minutes) + 1} or more, or a faster device"
        )
    room -= first_round(chosen)
    costs = {name: epoch[name] for name in chosen}
    limits = {name: most[name] for name in chosen}
    finished = {name: done.get(name, 0) for name in chosen}

    # joint training is one more task of every round, if its first epoch fits
    if joint is not None:
        whole = sum(costs.values())
        trained = joint(chosen)
        more = 0.0 if trained else whole
        if more > room:
            left_out[JOINT] = f"one epoch of all these tasks takes {more / 60:.1f} minutes more"
        else:
            limits[JOINT] = int(sum(costs[name] * limits[name] for name in chosen) / whole)
            costs[JOINT] = whole
            finished[JOINT] = trained
            room -= more

    # what is evaluated besides
    extra = extras(len(chosen)) / measured.evaluation
    if extra > min(room, EXTRAS * seconds):
        extra = 0.0
    room -= extra

    # further epochs of all
    epochs, last, later = 1, max(limits.values()), ""
    while epochs < last:
        missing = [name for name in costs if limits[name] > epochs >= finished[name]]
        more = makespan((costs[name] for name in missing), workers)
        if more > room:
            later = f"epochs {epochs + 1} to {last} (the next takes {more / 60:.1f} minutes more)"
            break
        epochs += 1
        room -= more
    return Plan(
        images={name: images[name] for name in chosen},
        seconds=costs,
        epochs=epochs,
        most=limits,
        evaluation=evaluation * len(chosen) + extra,
        measured=measured,
        left_out=left_out,
        later=later,
        workers=workers,
    )


def parameter_copies(most: Mapping[str, int], *, workers: int = 1, finished: Collection[str] = ()) -> int:
    """How many copies of the parameters are on the disk at most, for runs with so many epochs each.

    Pretrained, once. Of each run the first epoch, and of a round that is not complete yet this and the one
    before. Until it has reached its most epochs, also its latest state, from which it goes on: parameters
    and both moments of AdamW. A worker writes that file anew beside the old one. Runs that are finished
    already have their first and their last epoch.

    Example:
        >>> eight = dict.fromkeys("abcdefgh", 9)
        >>> parameter_copies({"a": 2, "b": 2}), parameter_copies({"a": 9, "b": 9})
        (14, 16)
        >>> parameter_copies(eight), parameter_copies(eight, workers=8)
        (52, 73)
        >>> parameter_copies(eight, finished="abcdefgh"), parameter_copies(eight, finished="abcdefg")
        (17, 24)
    """
    latest = 3
    going = most.keys() - set(finished)
    largest = 0
    for epoch in range(1, max(most.values()) + 1):
        copies = 0
        for name, last in most.items():
            if name in going and epoch <= last:
                copies += len({1, epoch - 1, epoch} - {0}) + latest
            else:
                copies += len({1, last})
        largest = max(largest, copies)
    return 1 + largest + latest * min(workers, len(going))
