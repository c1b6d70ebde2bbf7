"""`list`: what there is to work with, and where the data was found or how to get at it."""

from __future__ import annotations

import argparse
import inspect
import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import merging, scores
from taskvec_mini.benchmarks.data import hub
from taskvec_mini.benchmarks.data import image_store as hub_images
from taskvec_mini.benchmarks.data import suites as datasets
from taskvec_mini.benchmarks.data import text_tables as text_sources
from taskvec_mini.benchmarks.data import torchvision_sets as downloads
from taskvec_mini.benchmarks.data.tasks import PARTS
from taskvec_mini.benchmarks.data.texts import load_text_tasks
from taskvec_mini.benchmarks.encoders import clip
from taskvec_mini.benchmarks.encoders import load as backbones
from taskvec_mini.benchmarks.encoders.protocols import Task
from taskvec_mini.benchmarks.training.experiment import encoder
from taskvec_mini.tasks import digit_tasks
from taskvec_mini.vectors import TaskVector

BACKBONES = (
    "pocket",
    "random-pocket",
    "mobilenet",
    "pocket-text",
    "random-pocket-text",
    *backbones.TORCHVISION,
    *clip.PARAMETERS,
)
_NOTES = {
    "pocket": "this project's, pretrained on Tiny ImageNet",
    "random-pocket": "the same, not pretrained",
    "mobilenet": "MobileNetV1 of ImageNet",
    "pocket-text": "this project's for texts, pretrained on English prose",
    "random-pocket-text": "the same, not pretrained",
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
    print(f"\nsuite hub: benchmarks of CLIP merging, downloaded on first use, {_where(folder, 'hub')}")
    print(_table([_benchmark(name, folder) for name in hub.SOURCES]))
    print("\nsuite digits: scikit-learn's small digits, nothing to download")
    print(_table([_loaded("digits", name, None) for name in digit_tasks()]))
    print(f"\nsuite text: short English texts in small files, {_where(folder, 'text')}")
    print(_table([_texts(name, folder) for name in text_sources.BUNDLE] if folder else _text_files()))
    print("\nsuite text-hub: the same tasks, other subsets, downloaded from Hugging Face on first use")
    print(_table([_hub(name) for name in text_sources.HUB]))
    print("\nbackbones (--backbone)")
    print(_table([{"name": name, "what it is": _backbone(name, options)} for name in BACKBONES]))
    print("\nmerging rules (--rule) and their options (--option)")
    print(_table([{"name": name, "options": _options(rule)} for name, rule in rules().items()]))
    print("\nstudies of the book (record STUDY)")
    found = [{"name": name, "what it measures": study.description} for name, study in studies.items()]
    print(_table(found) if found else "  none yet")


def _table(rows: list[dict[str, object]]) -> str:
    return textwrap.indent(scores.table(rows), "  ")


def _where(folder: Any, below: str = "") -> str:
    if folder:
        return f"in {Path(folder) / below}"
    what = f"the folder {below!r} of a folder" if below else "a folder"
    return f"in {what} that --data or the environment variable {datasets.FOLDER_VARIABLE} names (not set)"


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
    return {"task": name, "classes": str(len(task.class_names)), "pixels": pixels, **_sizes(task), "": ""}


def _sizes(task: Task) -> dict[str, str]:
    return {part: f"{len(task.part(part)[1]):,}" for part in PARTS}


class _Uncut:
    """No tokenizer: for the sizes of a task no text need be cut into tokens."""

    sha256 = ""

    def encode(self, texts: list[str]) -> Tensor:
        return torch.ones(len(texts), 1, dtype=torch.int32)


def _texts(name: str, folder: Any) -> dict[str, object]:
    """As `_loaded`, of a task of texts."""
    try:
        task = load_text_tasks([name], folder=folder, tokenizer=_Uncut())[name]
    except (OSError, ValueError) as error:
        return {**dict.fromkeys(("task", "classes", *PARTS), "-"), "task": name, "": error}
    return {"task": name, "classes": str(len(task.class_names)), **_sizes(task), "": ""}


def _text_files() -> list[dict[str, object]]:
    return [{"task": name, "files": f"{name}.train.tsv, {name}.test.tsv"} for name in text_sources.BUNDLE]


def _hub(name: str) -> dict[str, object]:
    source = text_sources.HUB[name]
    return {"task": name, "repository": source.repository, "config": source.config or "-"}


def _download(name: str, folder: Any) -> dict[str, object]:
    train, test = downloads.SOURCES[name].sizes
    there = folder and downloads.there(name, Path(folder))
    return {
        "task": name,
        "train + val": f"{train:,}",
        "test": f"{test:,}",
        "": "there" if there else "not yet there",
    }


def _benchmark(name: str, folder: Any) -> dict[str, object]:
    source = hub.SOURCES[name]
    there = folder and hub_images.there(Path(folder) / "hub" / f"{name}_{hub.IMAGE_SIZE}")
    return {
        "task": name,
        "train + val": f"{source.sizes[0]:,}",
        "test": f"{source.sizes[1]:,}",
        "classes": str(source.classes),
        "download MB": f"about {source.megabytes:,}",
        "images MB": f"{source.bytes_of(sum(source.sizes), hub.IMAGE_SIZE) / 10**6:,.0f}",
        "repository": source.repository,
        "also in suite": "torchvision" if source.torchvision else "-",
        "": "there" if there else "not yet there",
    }


def _backbone(name: str, options: argparse.Namespace) -> str:
    """What a backbone is, and what it needs where it cannot be loaded now; foreign ones are not tried."""
    if name in backbones.TORCHVISION:
        return "torchvision's, weights downloaded on first use"
    if name in clip.PARAMETERS:
        weights = "a tiny one, not pretrained" if name == clip.TINY else "weights downloaded on first use"
        return f"CLIP's through open_clip, {weights}; {clip.PARAMETERS[name]:,} parameters"
    try:
        found = encoder(name, options)
    except (OSError, ValueError) as error:
        return f"{_NOTES[name]}; NOT AVAILABLE: {error}"
    size = sum(part.numel() for part in found.model.parameters())
    takes = f"images of {found.image_size} pixels" if isinstance(found, backbones.Backbone) else "texts"
    return f"{_NOTES[name]}; {size:,} parameters, {takes}"


def _options(rule: Callable[..., TaskVector]) -> str:
    parameters = list(inspect.signature(rule).parameters.values())[1:]
    chosen = [f"{each.name}={each.default}" for each in parameters if each.name != "generator"]
    return (
        "  ".join([*chosen, *("(draws: --seed)" for each in parameters if each.name == "generator")]) or "-"
    )
