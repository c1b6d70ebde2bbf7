"""CLIP within a budget of minutes: finetuned on vision benchmarks, merged early and late (chapter 8).

Heads are CLIP's own, from texts, and stay frozen. First every task gets one epoch, then a second one, and so
on, until the budget is spent. Checkpoints go to a folder; the same command with the same folder goes on. On a
Ray cluster the tasks of a round are trained side by side, with the same result.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskvec_mini import _checks
from taskvec_mini.benchmarks import engines
from taskvec_mini.benchmarks.data import hub
from taskvec_mini.benchmarks.data.splits import VALIDATION_MOST, VALIDATION_SHARE
from taskvec_mini.benchmarks.data.suites import CORE, FOLDER_VARIABLE, load_tasks
from taskvec_mini.benchmarks.data.tasks import ImageTask
from taskvec_mini.benchmarks.encoders import clip
from taskvec_mini.benchmarks.encoders.base import Backbone
from taskvec_mini.benchmarks.encoders.parameters import state_of
from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task
from taskvec_mini.benchmarks.engines import EngineOptions, shared_folder
from taskvec_mini.benchmarks.evaluation.accuracy import forget_prepared_images
from taskvec_mini.benchmarks.heads import Head, kept_head, load_head, zero_shot_head
from taskvec_mini.benchmarks.heads.templates import TEMPLATES, templates_in
from taskvec_mini.benchmarks.studies import base as study_data
from taskvec_mini.benchmarks.studies import early_or_late as study_merging
from taskvec_mini.benchmarks.studies.clip import budget as clip_plan
from taskvec_mini.benchmarks.studies.clip import evaluation as clip_judging
from taskvec_mini.benchmarks.studies.clip import rounds as clip_work
from taskvec_mini.benchmarks.studies.clip import runs as clip_files
from taskvec_mini.benchmarks.training import checkpoints, memory
from taskvec_mini.benchmarks.training.speed import Speed
from taskvec_mini.errors import FileError, UserError

BACKBONE, BUDGET = "ViT-B-32-quickgelu", 60.0  # minutes
CONVERGED = {  # epochs after which the literature stops
    "sun397": 14, "cars": 35, "resisc45": 15, "eurosat": 12, "svhn": 4, "gtsrb": 11, "mnist": 5, "dtd": 76,
    "cifar100": 6,
}  # fmt: skip
MOST = 16  # epochs of any other task
SUITES = {"hub": hub.EIGHT, "bundle": CORE, "digits": None}  # the tasks each takes by default, or all


@dataclass(frozen=True, kw_only=True)
class ClipRequest(study_data.StudyRequest):
    """What the study of CLIP is asked for; None is its default, so that a record names what was asked for.

    Attributes:
        budget_minutes: do what fits into so many; 60 by default.
        gpu: on an NVIDIA GPU, one for each worker, in bfloat16 where it has that.
        runs: the folder of the checkpoints; local/studies/BACKBONE by default.
        backbone: a CLIP model; ViT-B-32-quickgelu by default.
        suite: where the images come from: "hub" by default, "bundle" or "digits".
        tasks: their names; by default the first eight of the suite.
        joint: also train one encoder on all tasks.
        micro_batch_size: images in memory at a time; by default as many as fit the device.
        engine: "local" by default, or "ray".
        workers: of "ray", how many tasks run at a time.
        address: of "ray", the head of a running cluster.
    """

    budget_minutes: float | None = field(
        default=None, metadata={"help": "do what fits into so many (default: 60)"}
    )
    gpu: bool = field(
        default=False,
        metadata={"help": "on an NVIDIA GPU, one a worker; in bfloat16 where it has that"},
    )
    runs: Path | None = field(
        default=None,
        metadata={
            "help": "checkpoints; the same command goes on from there (default: local/studies/BACKBONE)",
            "metavar": "FOLDER",
            "recorded": False,
        },
    )
    backbone: str | None = field(
        default=None,
        metadata={"help": "a CLIP model; see `list` (default: ViT-B-32-quickgelu)", "metavar": "NAME"},
    )
    suite: str | None = field(
        default=None,
        metadata={
            "help": "where the images come from (default: hub)",
            "choices": ("hub", "bundle", "digits"),
        },
    )
    tasks: tuple[str, ...] | None = field(
        default=None,
        metadata={"help": "their names (default: the first eight of the suite)", "metavar": "TASK"},
    )
    joint: bool = field(
        default=False,
        metadata={"help": "also train one encoder on all tasks, for about as much training again"},
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "so many in memory at a time; a step is still the mean over its batch "
            "(default: as many as fit the device)",
            "metavar": "N",
        },
    )
    engine: str | None = field(
        default=None,
        metadata={
            "help": "local: one task after the other on this machine; ray: one task a worker of a Ray "
            "cluster, with the same result (default: local)",
            "choices": ("local", "ray"),
        },
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "of ray: tasks at a time (default: what there is room for)",
            "metavar": "N",
            "recorded": False,
        },
    )
    address: str | None = field(
        default=None,
        metadata={
            "help": "of ray: the cluster's head (default: a cluster on this machine while the command runs)",
            "metavar": "HOST:PORT",
            "recorded": False,
        },
    )


@dataclass(eq=False)
class Clip(study_data.Study):
    """The study behind chapter 8.

    Attributes:
        description: what it measures.
        clock: seconds, for the budget.
    """

    description: str = "CLIP finetuned and merged early and late, within a budget of minutes (chapter 8)"
    clock: Callable[[], float] = time.monotonic
    seeds = (0,)
    request = ClipRequest
    own_options = tuple(each.name for each in fields(ClipRequest) if each.name != "data")

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """All that fits into `options.budget_minutes`; loading data here is not counted.

        With the engine "ray" the epochs of a round are spread over the workers of a cluster. They load what
        they need themselves, which is counted. Everything is judged here.

        Raises:
            RuntimeError: if there is no GPU where one was asked for.
            TooLittleMemoryError: if so many images at a time as were asked for do not fit the GPU.
            JobError: if the training on a task fails, with its name.
            ValueError: if the budget is too small, a name is unknown, downloads have no folder to go to, or
                the folder of runs holds others.
            OSError: if weights or data cannot be fetched, the disk is too small, or no cluster answers.
        """
        asked = BUDGET if options.budget_minutes is None else options.budget_minutes
        begin, seconds = self.clock(), clip_plan.seconds_of(asked)
        device, speed = device_of(gpu=bool(options.gpu))
        speed = replace(speed, micro_batch_size=options.micro_batch_size)
        name, kind = options.backbone or BACKBONE, options.suite or "hub"
        images = sizes(kind, options.tasks, options.data)
        _check_folder(kind, options.data)
        ray = options.engine == "ray"
        engine = EngineOptions(
            engine=options.engine or "local",
            workers=options.workers,
            address=options.address,
            gpus_per_worker=int(options.gpu) if ray else None,
        )
        with engines.opened(engine, jobs=len(images)) as workers:
            both = clip.load_clip(name).to(device)
            backbone, folder = clip.visual_backbone(name, both), options.runs or study_merging.RUNS / name
            pace, speed = clip_plan.measure(backbone, clip_work.RECIPE, device, speed=speed)
            joint = partial(_joint_epochs, folder) if options.joint else None
            planned = clip_plan.plan(
                images, pace=pace, seconds=seconds, spent=self.clock() - begin, joint=joint,
                judged=clip_judging.judged(joint=options.joint), besides=clip_judging.judged_besides,
                most={task: CONVERGED.get(task, MOST) for task in images}, workers=workers,
                done={task: max(clip_files.kept(folder / task), default=0) for task in images},
            )  # fmt: skip
            disk = check_disk(folder, backbone.model, planned)
            study_data.say(_words(planned, pace, speed, seconds, disk))
            loading = self.clock()
            names = list(planned.images)
            suite = make_suite(both, backbone, kind, names=names, data=options.data, folder=folder)
            del both  # the text encoder has done its work
            torch.cuda.empty_cache()  # and what the measurement took is free for a worker on the same GPU
            deadline = begin + seconds * (1 - clip_plan.MARGIN) + self.clock() - loading
            self.device, self.data = str(device), suite.data
            self.settings = _settings(suite, planned, pace, speed, seconds)
            place = place_of(suite, folder, data=options.data, engine=replace(engine, address=None))
            return clip_work.Work(suite, folder, speed, planned, place, deadline, self.clock).results()


def _joint_epochs(folder: Path, names: Iterable[str]) -> int:
    """How many epochs the joint training of these tasks has already."""
    return max(clip_files.kept(clip_files.joint_folder(folder, names)), default=0)


def _settings(
    suite: clip_judging.ClipSuite, planned: clip_plan.Plan, pace: clip_plan.Pace, speed: Speed, seconds: float
) -> dict[str, Any]:
    return {
        "backbone": suite.backbone.name, "budget_minutes": seconds / 60, **suite.about,
        "speed": asdict(speed), "pace": clip_plan.rounded(pace), "workers": planned.workers,
        "recipes": {"adamw": asdict(clip_work.RECIPE)},
        "scaling_coefs": {rule: list(study_merging.RULES[rule][1]) for rule in clip_judging.RULES},
    }  # fmt: skip


def device_of(*, gpu: bool) -> tuple[torch.device, Speed]:
    """Where it runs and how fast: with a GPU in bfloat16, where its processor has that.

    Raises:
        RuntimeError: if a GPU is asked for and torch sees none.

    Example:
        >>> device_of(gpu=False)[0]
        device(type='cpu')
    """
    if not gpu:
        return torch.device("cpu"), Speed()
    if not torch.cuda.is_available():
        raise RuntimeError(
            "--gpu was asked for, but torch sees no NVIDIA GPU here; in Colab choose one under Runtime, "
            "Change runtime type; elsewhere look at `nvidia-smi`, and whether torch was installed with CUDA; "
            "or try all steps on the CPU: --backbone tiny-clip --suite digits instead of --gpu"
        )
    quick = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.device("cuda"), Speed(precision="bfloat16" if quick else "float32")


def sizes(suite: str, names: Sequence[str] | None, data: Path | None) -> dict[str, int]:
    """Training images by task; for the suite "hub" from its documentation, so that nothing is fetched.

    Raises:
        ValueError: if suite or task is unknown, a task is named twice, or there are no templates for it.

    Example:
        >>> sizes("hub", ["dtd", "svhn"], None)
        {'dtd': 3384, 'svhn': 68257}
    """
    default = _checks.named_choice("suite of images", suite, SUITES)
    chosen = default if names is None else tuple(names)
    for name in chosen or ():
        if suite != "digits":
            _checks.named_choice("task with templates,", name, TEMPLATES)
    _checks.each_once("task", chosen or ())
    if suite != "hub":
        tasks = load_tasks(chosen, suite=suite, folder=data)
        return {name: len(task.part("train")[1]) for name, task in tasks.items()}
    sources = [_checks.named_choice("task of the suite 'hub',", name, hub.SOURCES) for name in chosen or ()]
    whole = dict(zip(chosen or (), (source.sizes[0] for source in sources), strict=True))
    return {name: size - min(round(VALIDATION_SHARE * size), VALIDATION_MOST) for name, size in whole.items()}


def _check_folder(suite: str, data: Path | None) -> None:
    """A ValueError if downloads have no folder to go to, before weights are fetched and speeds measured."""
    if suite == "hub" and not (data or os.environ.get(FOLDER_VARIABLE)):
        raise UserError(
            "the images of suite 'hub' need a folder to go to, and none is named: give --data FOLDER, or set "
            f"the environment variable {FOLDER_VARIABLE}; --suite digits needs none"
        )


def make_suite(
    both: nn.Module, backbone: Backbone, kind: str, *, names: Sequence[str], data: Path | None, folder: Path
) -> clip_judging.ClipSuite:
    """The tasks with few validation images and their heads, which are kept in the folder.

    A head is made once: on another machine it would differ in the last bits, and be another run.
    """
    forget_prepared_images()
    checkpoints.RunFolder(folder, {"backbone": backbone.name, "suite": kind}, ignore=frozenset())
    clip_files.keep_pretrained(folder, state_of(backbone.model))
    loaded = load_tasks(names, suite=kind, folder=data)
    tasks = {name: _cut(task) for name, task in loaded.items()}
    heads = {
        name: kept_head(
            _head_file(folder, name), task, partial(zero_shot_head, both, templates=templates_in(kind, name))
        )
        for name, task in tasks.items()
    }
    about = {
        "suite": kind, "heads": "zero-shot", "shots": 0, "share_of_training_images": 1.0, "recentre": 0,
        "validation_images": clip_judging.VALIDATION, "test_images": clip_judging.TEST,
    }  # fmt: skip
    sums = {name: task.sha256 for name, task in tasks.items()}
    return clip_judging.ClipSuite(backbone, tasks, heads, 0, about, sums)


def _cut(task: ImageTask) -> ImageTask:
    most = clip_judging.VALIDATION
    return replace(task, val_images=task.val_images[:most], val_labels=task.val_labels[:most])


def _head_file(folder: Path, name: str) -> Path:
    return folder / name / "head.safetensors"


def place_of(
    suite: clip_judging.ClipSuite, folder: Path, *, data: Path | None, engine: EngineOptions
) -> clip_work.Place:
    """Where the epochs are trained: here with what is loaded, or on a cluster that loads it by its names."""
    if engine.engine == "local":
        loads = {name: partial(_loaded, suite.heads[name], task) for name, task in suite.tasks.items()}
        return clip_work.Place(encoder=lambda: suite.backbone, loads=loads, engine=engine)
    where = suite.about["suite"], shared_folder(data), folder.absolute()
    return clip_work.Place(
        encoder=partial(_load_encoder, suite.backbone.name, suite.backbone.device.type),
        loads={name: partial(_load, name, *where) for name in suite.tasks},
        engine=engine,
    )


def _loaded(head: Head, task: Task, _encoder: Encoder) -> tuple[Head, Task]:
    return head, task


def _load_encoder(name: str, device: str) -> Backbone:
    backbone = clip.load_visual(name)
    backbone.model.to(device)
    return backbone


def _load(name: str, kind: str, data: Path | None, folder: Path, _encoder: Encoder) -> tuple[Head, Task]:
    return load_head(_head_file(folder, name)), load_tasks([name], suite=kind, folder=data)[name]


def check_disk(folder: Path, model: nn.Module, plan: clip_plan.Plan) -> str:
    """What the runs take on the disk at most, in words.

    Raises:
        OSError: if there is less room.
    """
    size = sum(part.nbytes for part in model.parameters())
    runs = clip_files.Runs(folder=folder, most=plan.most, joined=tuple(plan.images))
    files = [path for name in plan.most for path in runs.place(name).glob("*.safetensors")]
    there = sum(path.stat().st_size for path in (*files, *folder.glob(clip_files.PRETRAINED)))
    finished = [name for name, most in plan.most.items() if most in runs.kept(name)]
    needed = size * clip_files.copies(plan.most, workers=plan.workers, finished=finished)
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    if needed - there > free:
        raise FileError(
            errno.ENOSPC,
            f"the checkpoints of {len(plan.most)} tasks may take {memory.amount(needed)}, and the disk of "
            f"{folder} has {memory.amount(free)} free: give fewer --tasks, or another folder with --runs",
        )
    return f"checkpoints: up to {memory.amount(needed)}, {memory.amount(there)} of it is there"


def _words(planned: clip_plan.Plan, pace: clip_plan.Pace, speed: Speed, seconds: float, disk: str) -> str:
    """The plan, as it is said before anything is trained."""
    how = f"{speed.precision}, {speed.micro_batch_size or clip_work.RECIPE.batch_size} images at a time"
    lines = [
        f"plan for {seconds / 60:g} minute{'s' * (seconds != 60)}; loading data is not counted",
        f"measured: {pace.training:,.0f} images/s in training ({how}), {pace.judging:,.0f} in judging",
        str(planned),
        pace.memory,
        disk,
    ]
    return "\n".join(lines)
