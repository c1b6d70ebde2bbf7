"""The files of the study of CLIP: which checkpoints are there, where they are, and how many there can be.

A folder holds `pretrained.safetensors` and, of each task, a folder of a run as in `checkpoints`, in which the
parameters after the first epoch are kept and those of the last round, or two, that were finished. So has the
joint training of these tasks, where it was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from taskvec_mini.benchmarks.encoders.parameters import checksum
from taskvec_mini.benchmarks.studies.clip.budget import JOINT
from taskvec_mini.benchmarks.training import checkpoints
from taskvec_mini.errors import UserError

PRETRAINED = "pretrained.safetensors"


def kept(folder: Path) -> set[int]:
    """The epochs of a run whose parameters are there.

    Example:
        >>> kept(Path("no such folder"))
        set()
    """
    found = (re.fullmatch(r"epoch_(\d+)\.safetensors", path.name) for path in folder.glob("epoch_*"))
    epochs = {int(match[1]) for match in found if match}
    return {epoch for epoch in epochs if (folder / f"epoch_{epoch:03}.json").exists()}


def copies(most: Mapping[str, int], *, workers: int = 1, finished: Collection[str] = ()) -> int:
    """How many copies of the parameters are on the disk at most, for runs with so many epochs each.

    Pretrained, once. Of each run the first epoch, and of a round that is not complete yet this and the one
    before. Until it has reached its most epochs, also `latest.safetensors`, from which it goes on: parameters
    and both moments of AdamW. A worker writes that file anew beside the old one. Runs that are finished
    already have their first and their last epoch.

    Example:
        >>> eight = dict.fromkeys("abcdefgh", 9)
        >>> copies({"a": 2, "b": 2}), copies({"a": 9, "b": 9}), copies(eight), copies(eight, workers=8)
        (14, 16, 52, 73)
        >>> copies(eight, finished="abcdefgh"), copies(eight, finished="abcdefg")
        (17, 24)
    """
    latest, going = 3, most.keys() - set(finished)
    rounds = (
        sum(
            len({1, e - 1, e} - {0}) + latest if name in going and e <= each else len({1, each})
            for name, each in most.items()
        )
        for e in range(1, max(most.values()) + 1)
    )
    return 1 + max(rounds) + latest * min(workers, len(going))


def joint_folder(folder: Path, names: Iterable[str]) -> Path:
    """Where the joint training of these tasks is; that of others is another run.

    Example:
        >>> joint_folder(Path("runs"), ["mnist", "dtd"]).name
        'joint_dtd_mnist'
    """
    return folder / "_".join([JOINT, *sorted(names)])


def keep_pretrained(folder: Path, state: dict[str, Tensor]) -> None:
    """Write the parameters from which task vectors are taken, unless they are there.

    Raises:
        ValueError: if other ones are there.
        OSError: if they cannot be written.
    """
    path = folder / PRETRAINED
    if not path.exists():
        checkpoints.write_tensors(path, state, {})
    elif checksum(checkpoints.read_tensors(path)[0]) != checksum(state):
        raise UserError(
            f"{path} holds other parameters than the encoder has now, so the runs there had another start; "
            "give another folder with --runs"
        )


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of a study, by the name of the task or `JOINT`.

    Attributes:
        folder: where all of them are.
        most: the most epochs of each.
        joined: the tasks that are learnt jointly.
    """

    folder: Path
    most: Mapping[str, int]
    joined: tuple[str, ...] = ()

    def place(self, name: str) -> Path:
        """The folder of a run."""
        return joint_folder(self.folder, self.joined) if name == JOINT else self.folder / name

    def kept(self, name: str) -> set[int]:
        """The epochs whose parameters are there."""
        return kept(self.place(name))

    def age(self, name: str, epoch: int) -> int:
        """Its epochs after a round: a run that has reached its most stays there.

        Joint training may be behind, and is not waited for.
        """
        reached = min(epoch, self.most[name])
        return max((e for e in self.kept(name) if e <= reached), default=0) if name == JOINT else reached

    def checkpoint(self, name: str, epoch: int) -> Path:
        """Its parameters after an epoch of its own."""
        return self.place(name) / f"epoch_{epoch:03}.safetensors"

    def record(self, name: str, epoch: int) -> dict[str, Any]:
        """What `finetuning` wrote down about an epoch of its own; records stay where parameters do not."""
        return checkpoints.read_json(self.checkpoint(name, epoch).with_suffix(".json"))

    def file(self, name: str, epoch: int) -> Path:
        """Its parameters after a round."""
        return self.checkpoint(name, self.age(name, epoch))

    def seconds(self, names: Iterable[str], epoch: int) -> float:
        """How long these were trained until that round."""
        ages = ((name, age) for name in names for age in range(1, self.age(name, epoch) + 1))
        return round(sum(float(self.record(*each)["seconds"]) for each in ages), 1)
