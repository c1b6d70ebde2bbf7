"""The jobs of `finetune`: here with what is loaded already, on a cluster with the names to load it by."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from taskvec_mini.benchmarks import engines
from taskvec_mini.benchmarks.cli.throughput import speed_of
from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task
from taskvec_mini.benchmarks.engines import shared_folder
from taskvec_mini.benchmarks.training.experiment import Shelf, encoder
from taskvec_mini.benchmarks.training.finetune import Run, Settings

Load = Callable[[Encoder], tuple[Any, Task]]


def finetune_all(
    options: argparse.Namespace,
    shelf: Shelf,
    settings: Settings,
    backbone: Encoder,
    tasks: Mapping[str, Task],
) -> dict[str, Run]:
    """Finetune on each task into its folder of the shelf, by the engine that `finetune` was told."""
    ray, speed = options.engine == "ray", speed_of(options)
    start, loads = _away(options, shelf, tasks) if ray else _here(shelf, backbone, tasks)
    return engines.finetune_all(
        start,
        {name: engines.Job(load=load, settings=settings, folder=shelf.folder / name, speed=speed)
         for name, load in loads.items()},
        options=engines.EngineOptions(
            engine=options.engine,
            workers=options.workers,
            address=options.address,
            gpus_per_worker=0 if ray and options.device == "cpu" else None,
        ),
    )  # fmt: skip


def _here(
    shelf: Shelf, backbone: Encoder, tasks: Mapping[str, Task]
) -> tuple[Callable[[], Encoder], dict[str, Load]]:
    return lambda: backbone, {name: partial(_parts, shelf, task) for name, task in tasks.items()}


def _away(
    options: argparse.Namespace, shelf: Shelf, tasks: Mapping[str, Task]
) -> tuple[Callable[[], Encoder], dict[str, Load]]:
    """For workers."""
    data = shared_folder(options.data)
    there = replace(shelf, folder=shelf.folder.absolute())
    words = argparse.Namespace(**{**vars(options), "data": data})
    return partial(encoder, options.backbone, words), {
        name: partial(_loaded_parts, there, data, name) for name in tasks
    }


def _parts(shelf: Shelf, task: Task, backbone: Encoder) -> tuple[Any, Task]:
    return shelf.head(backbone, task), task


def _loaded_parts(shelf: Shelf, data: Path | None, name: str, backbone: Encoder) -> tuple[Any, Task]:
    return _parts(shelf, shelf.tasks([name], data)[name], backbone)
