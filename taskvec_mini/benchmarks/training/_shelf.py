"""The folder that `finetune` fills: a run for each task, and what they have in common."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import suites as datasets
from taskvec_mini.benchmarks.encoders import load as backbones
from taskvec_mini.benchmarks.encoders.parameters import checksum
from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task
from taskvec_mini.benchmarks.heads import Head, kept_head, prototype_head, zero_shot_head
from taskvec_mini.benchmarks.heads.templates import templates_in
from taskvec_mini.benchmarks.training import checkpoints
from taskvec_mini.errors import MissingFileError, UserError

_NAME = "runs.json"
_BEFORE = {"heads": "prototypes"}  # what all runs had before there was a choice to note


def encoder(name: str, options: argparse.Namespace) -> Encoder:
    """The backbone on the device that the user wants; its weights may lie in the folder --data."""
    device = device_of(getattr(options, "device", None))  # first: what follows may be a download
    data = getattr(options, "data", None)
    weights = data / "weights" / backbones.MOBILENET_WEIGHTS if name == "mobilenet" and data else None
    backbone = backbones.load_backbone(name, weights=weights)
    backbone.model.to(device)
    return backbone


def device_of(word: str | None) -> torch.device:
    """The device that --device names, by default a GPU where there is one, else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    if word is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(word)
    except RuntimeError as error:
        raise UserError(
            f"--device {word!r} is no device that torch knows; give cpu or cuda, or leave it out"
        ) from error
    kind = torch.accelerator.current_accelerator()
    there = torch.accelerator.device_count() if kind and kind.type == device.type else 0
    if device.type not in ("cpu", "meta") and (device.index or 0) >= there:
        raise UserError(f"--device {word!r}: torch sees no such GPU here; leave --device out, or give cpu")
    return device


@dataclass(frozen=True)
class Shelf:
    """A folder of runs.

    Attributes:
        folder: where it is; each task has a folder in it, by its name.
        what: suite, backbone, heads (their kind), limit and seed, which all runs share.
    """

    folder: Path
    what: dict[str, Any]

    @classmethod
    def for_runs(cls, folder: Path, what: dict[str, Any]) -> Shelf:
        """The shelf for runs of some kind; nothing is written yet.

        Raises:
            ValueError: if the folder holds runs of another kind; the message names what differs.
        """
        there = cls.open(folder).what if (folder / _NAME).is_file() else what
        for name, value in what.items():
            if there.get(name) != value:
                raise UserError(
                    f"{folder} holds runs with {name} = {there.get(name)!r}, not {value!r}; "
                    f"choose another folder with --out, or the same --{name} as there"
                )
        return cls(folder, what)

    def make(self) -> None:
        """Make the folder where there is none, and note what its runs share."""
        if not (self.folder / _NAME).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoints.write_json(self.folder / _NAME, self.what)

    @classmethod
    def open(cls, folder: Path) -> Shelf:
        """The shelf in a folder that `finetune` wrote.

        Raises:
            FileNotFoundError: if it is none.
        """
        if not (folder / _NAME).is_file():
            raise MissingFileError(
                f"{folder} holds no runs; make some with `finetune`, or name another folder"
            )
        return cls(folder, _BEFORE | checkpoints.read_json(folder / _NAME))

    def chosen(self, names: Sequence[str] | None) -> list[str]:
        """The tasks asked for, by default all that have a finished epoch, in the order of their names.

        Raises:
            ValueError: if there is no run of a task, where near names are suggested, or it is named twice.
        """
        there = sorted(path.name for path in self.folder.iterdir() if self.epochs(path.name))
        _checks.not_empty(f"the list of finished runs in {self.folder}", there)
        for name in names or ():
            _checks.named_choice(f"run in {self.folder}:", name, dict.fromkeys(there))
        _checks.each_once("task", names or ())
        return list(names or there)

    def epochs(self, task: str) -> list[int]:
        """The epochs of a task whose weights are there."""
        found = (
            re.fullmatch(r"epoch_(\d+)\.safetensors", path.name) for path in (self.folder / task).glob("*")
        )
        return sorted(int(match[1]) for match in found if match)

    def epoch(self, tasks: Sequence[str], wanted: int | None) -> int:
        """The epoch asked for, by default the last that all tasks have.

        Raises:
            ValueError: if a task lacks it; the message says what all of them have.
        """
        common = sorted(set.intersection(*(set(self.epochs(name)) for name in tasks)))
        if not common or (wanted is not None and wanted not in common):
            what = "no epoch" if wanted is None else f"not epoch {wanted}"
            raise UserError(
                f"the runs of {', '.join(tasks)} in {self.folder} have {what} in common; "
                f"there is {', '.join(map(str, common)) or 'none'}: finetune longer, or ask for another one"
            )
        return common[-1] if wanted is None else wanted

    def state(self, task: str, epoch: int, pretrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of a run after an epoch, in the order of those it began with.

        Raises:
            ValueError: if the run began with other parameters than `pretrained`, or its file is damaged.
        """
        begun = checkpoints.read_json(self.folder / task / "settings.json")["backbone"]
        if begun["parameters"] != checksum(pretrained):
            raise UserError(
                f"the run of {task} in {self.folder} began with other weights of {begun['name']} than are "
                "here now; finetune again into another folder"
            )
        path = self.folder / task / f"epoch_{epoch:03}.safetensors"
        found = checkpoints.read_tensors(path)[0]
        return {name: found[name] for name in pretrained}

    def tasks(self, names: Sequence[str], data: Path | None) -> dict[str, Task]:
        """The tasks with the split that the runs were trained on."""
        return datasets.load_tasks(
            names, suite=self.what["suite"], folder=data, limit=self.what["limit"], seed=self.what["seed"]
        )

    def head_file(self, task: str) -> Path:
        """Where the frozen head of a task is."""
        return self.folder / task / "head.safetensors"

    def head(self, backbone: Encoder, task: Task) -> Head:
        """The frozen head of a task, made and kept at the first call."""
        if self.what["heads"] == "prototypes":
            return kept_head(self.head_file(task.name), task, partial(prototype_head, backbone))
        # by name: the text encoder is in memory while the head is made, not while the encoder is finetuned
        texts = templates_in(self.what["suite"], task.name)
        make = partial(zero_shot_head, backbone.name, templates=texts, device=backbone.device)
        return kept_head(self.head_file(task.name), task, make)
