"""`list`: what there is to work with, and where the data was found or how to get at it."""

from __future__ import annotations

import argparse
import inspect
import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from taskvec_mini import merging, scores
from taskvec_mini.benchmarks import backbones, datasets, downloads
from taskvec_mini.benchmarks._cli_shelf import encoder
from taskvec_mini.benchmarks.image_tasks import PARTS
from taskvec_mini.tasks import digit_tasks
from taskvec_mini.vectors import TaskVector

BACKBONES = ("pocket", "random-pocket", "mobilenet", *backbones.TORCHVISION)
_NOTES = {
    "pocket": "this project's, pretrained on Tiny ImageNet",
    "random-pocket": "the same, not pretrained",
    "mobilenet": "MobileNetV1 of ImageNet",
}


def rules() -> dict[str, Callable[..., TaskVector]]:
    """The merging rules by name: the public functions of `taskvec_mini.merging`."""
    return {
        name: function
        for name, function in vars(merging).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and next(iter(inspect.signature(function).parameters), "") == "task_vectors"
    }


def show(options: argparse.Namespace, studies: Mapping[str, Any]) -> None:
    """Print suites with their tasks, backbones, rules and studies."""
    folder = options.data or os.environ.get(datasets.FOLDER_VARIABLE)
    print(f"suite bundle: real images in small files, {_where(folder)}")
    print(_table([_loaded("bundle", name, folder) for name in datasets.BUNDLE] if folder else _files()))
    print(f"\nsuite torchvision: public data sets, downloaded on first use, {_where(folder)}")
    print(_table([_download(name, folder) for name in downloads.SOURCES]))
    print("\nsuite digits: scikit-learn's small digits, nothing to download")
    print(_table([_loaded("digits", name, None) for name in digit_tasks()]))
    print("\nbackbones (--backbone)")
    print(_table([{"name": name, "what it is": _backbone(name, options)} for name in BACKBONES]))
    print("\nmerging rules (--rule) and their options (--option)")
    print(_table([{"name": name, "options": _options(rule)} for name, rule in rules().items()]))
    print("\nstudies of the book (record STUDY)")
    found = [{"name": name, "what it measures": study.description} for name, study in studies.items()]
    print(_table(found) if found else "  none yet")


def _table(rows: list[dict[str, object]]) -> str:
    return textwrap.indent(scores.table(rows), "  ")


def _where(folder: object) -> str:
    if folder:
        return f"in {folder}"
    return f"in a folder that --data or the environment variable {datasets.FOLDER_VARIABLE} names (not set)"


def _files() -> list[dict[str, object]]:
    return [{"task": name, "file": file} for name, (file, _) in datasets.BUNDLE.items()]


def _loaded(suite: str, name: str, folder: Any) -> dict[str, object]:
    """A row with the sizes of a task, or with what is wrong with its data."""
    try:
        task = datasets.load_tasks([name], suite=suite, folder=folder)[name]
    except (OSError, ValueError) as error:
        return {**dict.fromkeys(("task", "classes", "pixels", *PARTS), "-"), "task": name, "": error}
    shape = task.train_images.shape
    pixels = f"{shape[1]}x{shape[2]} {'grey' if len(shape) == 3 else 'colour'}"
    sizes = {part: f"{len(getattr(task, f'{part}_labels')):,}" for part in PARTS}
    return {"task": name, "classes": str(len(task.class_names)), "pixels": pixels, **sizes, "": ""}


def _download(name: str, folder: Any) -> dict[str, object]:
    train, test = downloads.SOURCES[name].sizes
    there = folder and (Path(folder) / "torchvision" / f"{name}.npz").exists()
    return {
        "task": name,
        "train + val": f"{train:,}",
        "test": f"{test:,}",
        "": "there" if there else "not yet there",
    }


def _backbone(name: str, options: argparse.Namespace) -> str:
    """What a backbone is, and what it needs where it cannot be loaded now; torchvision's are not tried."""
    if name in backbones.TORCHVISION:
        return "torchvision's, weights downloaded on first use"
    try:
        found = encoder(name, options)
    except (OSError, ValueError) as error:
        return f"{_NOTES[name]}; NOT AVAILABLE: {error}"
    size = sum(part.numel() for part in found.model.parameters())
    return f"{_NOTES[name]}; {size:,} parameters, images of {found.image_size} pixels"


def _options(rule: Callable[..., TaskVector]) -> str:
    parameters = list(inspect.signature(rule).parameters.values())[1:]
    chosen = [f"{each.name}={each.default}" for each in parameters if each.name != "generator"]
    return (
        "  ".join([*chosen, *("(draws: --seed)" for each in parameters if each.name == "generator")]) or "-"
    )
