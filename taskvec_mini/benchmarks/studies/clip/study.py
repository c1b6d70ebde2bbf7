"""CLIP within a budget of minutes: finetuned on vision benchmarks, merged early and late (chapter 8).

Heads are CLIP's own, from texts, and stay frozen. First every task gets one epoch, then a second one, and so
on, until the budget is spent. Checkpoints go to a folder; the same command with the same folder goes on. On a
Ray cluster the tasks of a round are trained side by side, with the same result.
"""

from __future__ import annotations

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
from taskvec_mini.benchmarks.data import DATA_VARIABLE, SUITES, Task, hub, load_tasks
from taskvec_mini.benchmarks.data.splits import VALIDATION_MOST, VALIDATION_SHARE
from taskvec_mini.benchmarks.encoders import Backbone, Encoder, clip, state_of
from taskvec_mini.benchmarks.engines import EngineOptions, opened, shared_folder
from taskvec_mini.benchmarks.evaluation import forget_prepared_images
from taskvec_mini.benchmarks.heads import (
    TEMPLATES,
    Head,
    kept_head,
    load_head,
    templates_in,
    zero_shot_head,
)
from taskvec_mini.benchmarks.studies import base
from taskvec_mini.benchmarks.studies.base import Study, StudyRequest, Suite, say
from taskvec_mini.benchmarks.studies.clip import budget, evaluation, rounds
from taskvec_mini.benchmarks.training import Experiment, Speed, memory
from taskvec_mini.errors import FileError, UserError

BACKBONE, BUDGET = "ViT-B-32-quickgelu", 60.0  # minutes
CONVERGED = {  # epochs after which the literature stops
    "sun397": 14,
    "cars": 35,
    "resisc45": 15,
    "eurosat": 12,
    "svhn": 4,
    "gtsrb": 11,
    "mnist": 5,
    "dtd": 76,
    "cifar100": 6,
}
MOST = 16  # epochs of any other task
KINDS = ("hub", "bundle", "digits")  # suites that the study takes
_OF_ENGINE = {each.name: each.metadata for each in fields(EngineOptions)}


@dataclass(frozen=True, kw_only=True)
class ClipRequest(StudyRequest):
    """What the study of CLIP is asked for; every field has its help beside it.

    None stands for the default that the help names, so that a record's command holds what was asked for.
    """

    budget_minutes: float | None = field(
        default=None, metadata={"help": "do what fits into so many (default: 60)"}
    )
    gpu: bool = field(
        default=False, metadata={"help": "on an NVIDIA GPU, one a worker; in bfloat16 where it has that"}
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
        default=None, metadata={"help": "where the images come from (default: hub)", "choices": KINDS}
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
        metadata={**_OF_ENGINE["engine"], "help": f"{_OF_ENGINE['engine']['help']} (default: local)"},
    )
    workers: int | None = field(default=None, metadata=_OF_ENGINE["workers"])
    address: str | None = field(default=None, metadata=_OF_ENGINE["address"])


@dataclass(eq=False)
class Clip(Study):
    """The study behind chapter 8.

    Attributes:
        clock: gives seconds, for the budget.
    """

    clock: Callable[[], float] = time.monotonic
    description = "CLIP finetuned and merged early and late, within a budget of minutes (chapter 8)"
    request = ClipRequest
    seeds = (0,)

    def run(self, request: ClipRequest) -> dict[str, Any]:
        """All that fits into `request.budget_minutes`; loading data here is not counted.

        With the engine "ray" the epochs of a round are spread over the workers of a cluster. They load what
        they need themselves, which is counted. Everything is evaluated here.

        Raises:
            TooLittleMemoryError: if so many images at a time as were asked for do not fit the GPU.
            JobError: if the training on a task fails, with its name.
            UserError: if there is no GPU where one was asked for, the budget is too small, a name is unknown,
                downloads have no folder to go to, the folder of runs holds others, weights or data cannot be
                fetched, the disk is too small, or no cluster answers.
        """
        begin = self.clock()
        minutes = BUDGET if request.budget_minutes is None else request.budget_minutes
        seconds = _checks.positive_number("--budget-minutes", minutes) * 60
        device, speed = device_and_speed(gpu=request.gpu)
        speed = replace(speed, micro_batch_size=request.micro_batch_size)
        kind = request.suite or "hub"
        images = training_images(kind, request.tasks, data=request.data)
        if kind == "hub" and not (request.data or os.environ.get(DATA_VARIABLE)):
            raise UserError(
                "the images of suite 'hub' need a folder to go to, and none is named: give --data FOLDER, or "
                f"set the environment variable {DATA_VARIABLE}; --suite digits needs none"
            )
        engine = EngineOptions(
            engine=request.engine or "local",
            workers=request.workers,
            address=request.address,
            gpus_per_worker=int(request.gpu) if request.engine == "ray" else None,
        )
        with opened(engine, jobs=len(images)) as workers:
            name = request.backbone or BACKBONE
            both = clip.load_clip(name).to(device)
            backbone = clip.visual_backbone(name, both)
            folder = request.runs or base.RUNS / name
            shared = {"suite": kind, "backbone": name, "heads": "zero-shot", "limit": None, "seed": 0}
            experiment = Experiment.prepare(folder, shared, option="--runs")
            measured, speed = budget.measure_speed(backbone, rounds.RECIPE, device=device, speed=speed)

            def joint_epochs(names: Iterable[str]) -> int:
                return max(experiment.joint(names).kept, default=0)

            plan = budget.plan(
                images,
                measured=measured,
                seconds=seconds,
                spent=self.clock() - begin,
                workers=workers,
                evaluated=evaluation.evaluated_images(joint=request.joint),
                extras=evaluation.extra_images,
                most={task: CONVERGED.get(task, MOST) for task in images},
                done={task: max(experiment.run(task).kept, default=0) for task in images},
                joint=joint_epochs if request.joint else None,
            )
            disk = check_disk(experiment, backbone.model, plan=plan)
            at_a_time = speed.micro_batch_size or rounds.RECIPE.batch_size
            say(f"plan for {minutes:g} minute{'s' * (minutes != 1)}; loading data is not counted")
            say(
                f"measured: {measured.training:,.0f} images/s in training ({speed.precision}, {at_a_time} "
                f"images at a time), {measured.evaluation:,.0f} in evaluation"
            )
            say(f"{plan}\n{measured.memory}\n{disk}")

            loading = self.clock()
            suite = make_clip_suite(both, backbone, experiment, names=list(plan.images), data=request.data)
            del both  # the text encoder has done its work
            torch.cuda.empty_cache()  # and what the measurement took is free for a worker on the same GPU
            deadline = begin + seconds * (1 - budget.MARGIN) + self.clock() - loading
            self.device, self.data = str(device), suite.data
            self.settings = {
                "backbone": name,
                "budget_minutes": seconds / 60,
                **suite.about,
                "speed": asdict(speed),
                "measured_speed": {
                    "training_images_per_second": round(measured.training, 1),
                    "evaluation_images_per_second": round(measured.evaluation, 1),
                    "memory": measured.memory,
                },
                "workers": workers,
                "recipes": {"adamw": asdict(rounds.RECIPE)},
                "scaling_coefs": {rule: list(base.SCALING_COEFS[rule]) for rule in base.TWO_RULES},
            }
            if engine.engine == "local":
                load_encoder: Callable[[], Encoder] = lambda: backbone  # noqa: E731
                loads: dict[str, rounds.Load] = {
                    task: partial(_in_memory, suite.heads[task], suite.tasks[task]) for task in suite.tasks
                }
            else:  # a worker has another working directory, and loads all by its name
                load_encoder = partial(_load_encoder, name, device.type)
                away = Experiment(folder.absolute(), experiment.shared)
                loads = {
                    task: partial(_load_task, away, shared_folder(request.data), task) for task in suite.tasks
                }
            training = rounds.PlannedTraining(
                plan=plan,
                experiment=experiment,
                speed=speed,
                engine=replace(engine, address=None),  # the cluster is joined already
                load_encoder=load_encoder,
                loads=loads,
                deadline=deadline,
                clock=self.clock,
            )
            late = training.run()
            judge = evaluation.Evaluation(
                suite=suite,
                runs=training.runs,
                most=plan.most,
                epochs=sorted({1, late}),
                images_per_second=measured.evaluation,
                deadline=deadline,
                clock=self.clock,
            )
            results = judge.results()
            left_out = {**plan.left_out, **training.left_out, **judge.left_out}
            results["left_out"] = [{"what": part, "why": reason} for part, reason in left_out.items()]
            return results


def device_and_speed(*, gpu: bool) -> tuple[torch.device, Speed]:
    """Where it runs and how fast: with a GPU in bfloat16, where its processor has that.

    Raises:
        UserError: if a GPU is asked for and torch sees none.

    Example:
        >>> device_and_speed(gpu=False)[0]
        device(type='cpu')
    """
    if not gpu:
        return torch.device("cpu"), Speed()
    if not torch.cuda.is_available():
        raise UserError(
            "--gpu was asked for, but torch sees no NVIDIA GPU here; in Colab choose one under Runtime, "
            "Change runtime type; elsewhere look at `nvidia-smi`, and whether torch was installed with CUDA; "
            "or try all steps on the CPU: --backbone tiny-clip --suite digits instead of --gpu"
        )
    quick = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.device("cuda"), Speed(precision="bfloat16" if quick else "float32")


def training_images(suite: str, names: Sequence[str] | None, *, data: Path | None) -> dict[str, int]:
    """Training images by task; for the suite "hub" from its documentation, so that nothing is fetched.

    Raises:
        UserError: if suite or task is unknown, a task is named twice, or there are no templates for it.

    Example:
        >>> training_images("hub", ["dtd", "svhn"], data=None)
        {'dtd': 3384, 'svhn': 68257}
    """
    _checks.named_choice("suite of images", suite, dict.fromkeys(KINDS))
    chosen = SUITES[suite].default_tasks if names is None else tuple(names)
    _checks.each_once("task", chosen)
    if suite != "digits":
        for name in chosen:
            _checks.named_choice("task with templates,", name, TEMPLATES)
    if suite != "hub":
        tasks = load_tasks(chosen, suite=suite, folder=data)
        return {name: len(task.part("train")[1]) for name, task in tasks.items()}
    counts = {}
    for name in chosen:
        source = _checks.named_choice("task of the suite 'hub',", name, hub.sources())
        whole = source.sizes[0]
        counts[name] = whole - min(round(VALIDATION_SHARE * whole), VALIDATION_MOST)
    return counts


def check_disk(experiment: Experiment, model: nn.Module, *, plan: budget.Plan) -> str:
    """A sentence about what the runs take on the disk at most.

    Raises:
        FileError: if there is less room.
    """
    size = sum(part.nbytes for part in model.parameters())
    names = [name for name in plan.most if name in plan.images]
    runs = {
        name: experiment.run(name) if name in plan.images else experiment.joint(names) for name in plan.most
    }
    files = [path for run in runs.values() for path in run.path.glob("*.safetensors")]
    files += [experiment.pretrained] if experiment.pretrained.exists() else []
    there = sum(path.stat().st_size for path in files)
    finished = [name for name, most in plan.most.items() if most in runs[name].kept]
    needed = size * budget.parameter_copies(plan.most, workers=plan.workers, finished=finished)
    folder = experiment.folder.absolute()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if needed - there > free:
        raise FileError(
            errno.ENOSPC,
            f"the checkpoints of {len(plan.most)} tasks may take {memory.amount(needed)}, and the disk of "
            f"{experiment.folder} has {memory.amount(free)} free: give fewer --tasks, or another folder with "
            "--runs",
        )
    return f"checkpoints: up to {memory.amount(needed)}, {memory.amount(there)} of it is there"


def make_clip_suite(
    both: nn.Module, backbone: Backbone, experiment: Experiment, *, names: Sequence[str], data: Path | None
) -> Suite:
    """The tasks with few validation images and their zero-shot heads, which are kept with the runs.

    A head is made once: on another machine it would differ in the last bits, and be another run. Prepared
    images are let go after each task, because those of CLIP are large.
    """
    forget_prepared_images()
    experiment.create()
    experiment.keep_pretrained(state_of(backbone.model))
    kind = experiment.shared["suite"]
    tasks = {
        name: base.first_examples(task, val=evaluation.VALIDATION)
        for name, task in load_tasks(names, suite=kind, folder=data).items()
    }
    heads = {}
    for name, task in tasks.items():
        make = partial(zero_shot_head, both, templates=templates_in(kind, name))
        heads[name] = kept_head(experiment.run(name).head, task, make)
    return Suite(
        backbone=backbone,
        tasks=tasks,
        heads=heads,
        seed=0,
        experiment=experiment,
        about={
            "suite": kind,
            "heads": "zero-shot",
            "shots": 0,
            "share_of_training_images": 1.0,
            "recentre": 0,
            "validation_images": evaluation.VALIDATION,
            "test_images": evaluation.TEST,
        },
        data={name: task.sha256 for name, task in tasks.items()},
        test=evaluation.TEST,
        recentre=0,
        keep_prepared=False,
    )


# What follows is sent to the workers of a cluster by its name.


def _in_memory(head: Head, task: Task, _encoder: Encoder) -> tuple[Head, Task]:
    return head, task


def _load_encoder(name: str, device: str) -> Backbone:
    backbone = clip.load_visual(name)
    backbone.model.to(device)
    return backbone


def _load_task(experiment: Experiment, data: Path | None, name: str, _encoder: Encoder) -> tuple[Head, Task]:
    task = load_tasks([name], suite=experiment.shared["suite"], folder=data)[name]
    return load_head(experiment.run(name).head), task
