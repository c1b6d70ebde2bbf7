"""The files of an experiment: a folder for each run, and what its runs share.

    experiment.json                 suite, backbone, heads, limit and seed of all runs
    pretrained.safetensors          the parameters all began with, where task vectors are made from files
    mnist/                          the run of a task
    joint/                          all tasks jointly; joint_dtd_mnist/ these two
    seed1/                          the experiment with another seed
    rounds/ties_4/round_02/mnist/   a task in round 2 of 4, where each round begins at a merge under a rule

A run's folder holds a checkpoint an epoch, and enough to go on after a kill at any moment:

    settings.json            what the run is; another run is refused
    head.safetensors         the frozen head
    epoch_003.safetensors    the parameters after epoch 3
    epoch_003.json           its loss, accuracy, seconds; written last, so that epoch 3 counts from here on
    latest.safetensors       parameters, optimiser and all records so far; only a run that goes on needs it
    .lock                    empty; held while a process works here, so that no second one does

Checkpoints and records carry the checksum of their run's settings, so that those of another run are noticed.
No other module knows these names.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor

from taskvec_mini import _checks, _files
from taskvec_mini.benchmarks.data import Task, load_tasks
from taskvec_mini.benchmarks.encoders import Encoder, tokenizer_of
from taskvec_mini.benchmarks.heads import (
    Head,
    kept_head,
    prototype_head,
    stored_head,
    templates_in,
    zero_shot_head,
)
from taskvec_mini.errors import FileError, MissingFileError, UserError

FORMAT = "taskvec_mini.run/2"  # of settings.json
_CHECKPOINT = "taskvec_mini.checkpoint/2"
_LATEST = "taskvec_mini.latest/2"
JOINT = "joint"  # the name of joint training among the runs

_NUMBERS = ("loss", "accuracy", "gradient_norm", "steps", "seconds", "images_per_second")  # of a record
_SHARED: dict[str, Any] = {"suite": str, "backbone": str, "heads": str, "limit": int | None, "seed": int}
_FULL = (
    "is there space on the disk? Earlier checkpoints are untouched: free some space and start the same run "
    "again, it goes on after the last whole epoch"
)
_AGAIN = "the same settings give the same bytes"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. To make one touches no file.

    Attributes:
        path: the folder.

    Example:
        >>> run = RunFolder(Path("experiment/mnist"))
        >>> run.checkpoint(3).name, run.record(3).name, run.kept, run.finished
        ('epoch_003.safetensors', 'epoch_003.json', [], 0)
    """

    path: Path

    def checkpoint(self, epoch: int) -> Path:
        """The file with the parameters after an epoch."""
        return self.path / f"epoch_{epoch:03}.safetensors"

    def record(self, epoch: int) -> Path:
        """The file with what was measured in an epoch; it is there once the epoch is complete."""
        return self.path / f"epoch_{epoch:03}.json"

    @property
    def settings(self) -> Path:
        """The file that says what the run is."""
        return self.path / "settings.json"

    @property
    def latest(self) -> Path:
        """The file from which a run goes on."""
        return self.path / "latest.safetensors"

    @property
    def head(self) -> Path:
        """The file with the frozen head."""
        return self.path / "head.safetensors"

    @property
    def kept(self) -> list[int]:
        """The finished epochs whose parameters are there, in their order."""
        found = (re.fullmatch(r"epoch_(\d+)\.safetensors", path.name) for path in self.path.glob("epoch_*"))
        epochs = sorted(int(match[1]) for match in found if match)
        return [epoch for epoch in epochs if self.record(epoch).exists()]

    @property
    def finished(self) -> int:
        """How many epochs are finished, from the first one on without a gap."""
        there = set(os.listdir(self.path)) if self.path.is_dir() else set()  # asks a network folder anew
        epoch = 0
        while self.record(epoch + 1).name in there:
            epoch += 1
        return epoch

    # --- what the run is ---

    def identity(self) -> dict[str, Any]:
        """What `settings.json` says the run is, as nested dictionaries of JSON values.

        Raises:
            MissingFileError: if it is not there.
            UserError: if it is damaged; the message says what to do.
        """
        remedy = (
            "delete this file and give the command that made the run again: it writes the file anew, and "
            "the checkpoints of another run are refused"
        )
        identity = _files.read_json(self.settings, what="run's settings", remedy=remedy)
        try:
            known = isinstance(identity["format"], str) and isinstance(identity["settings"], dict)
            known = known and isinstance(identity["backbone"]["name"], str)
            known = known and isinstance(identity["backbone"]["parameters"], str)
            known = known and all(isinstance(task["head"], str) for task in identity["tasks"].values())
        except (KeyError, TypeError, AttributeError):
            known = False
        if not known:
            raise UserError(f"{self.settings} is damaged, it does not say what the run is; {remedy}")
        if identity["format"] != FORMAT:
            raise UserError(
                f"{self.path} holds a run in the format {identity['format']!r}, and this version reads "
                f"{FORMAT!r}; finetune again into another folder"
            )
        return identity

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Make the folder the one of this run; sweep what killed processes left. For who holds the lock.

        Raises:
            UserError: if the folder holds another run (the message names the first field that differs and
                both values), or its settings are damaged.
            FileError: if it cannot be written to.
        """
        for left in self.path.glob(f"{_files._MAKING}*"):  # also of machines that are no more
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        if not self.settings.exists():
            _files.write_json(self.settings, identity, remedy=_FULL)
            return
        old = _fields(self.identity())
        new = _fields(identity)
        ignored = _may_differ(new)
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name) and name not in ignored:
                raise UserError(
                    f"{self.path} holds a run with {name} = {old.get(name)!r}, but this run has "
                    f"{new.get(name)!r}; use another folder for it"
                )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out; the system ends this with the process, however that ends.

        A storage that knows no locks, such as some network folders, is used without.

        Raises:
            FileError: if another process is in the folder, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"the folder {self.path} could not be made ({error}); choose another") from error
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise FileError(
                errno.EBUSY,
                f"another process is finetuning in {self.path}; wait for it, or give another folder",
            ) from error
        except NotImplementedError:
            yield
            return
        except OSError as error:
            raise FileError(f"{self.path} could not be locked ({error}); {_files.SPACE}") from error
        try:
            yield
        finally:
            lock.release()

    # --- epochs ---

    def save(
        self,
        records: Sequence[Mapping[str, Any]],
        *,
        state: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        keep: bool,
    ) -> None:
        """Write what belongs to the epoch of the last record; half an epoch never counts.

        Args:
            records: of all epochs so far.
            state: the parameters after the last one.
            optimizer: its tensors.
            keep: whether the parameters stay when the next epoch is done.

        Raises:
            FileError: if a file cannot be written; the epochs before stay as they are.
        """
        run = self.checksum()
        epoch = len(records)
        if keep:
            about = {"run": run, "epoch": epoch}
            _files.write_tensors(self.checkpoint(epoch), state, about, kind=_CHECKPOINT, remedy=_FULL)
        everything = {f"model.{name}": tensor for name, tensor in state.items()}
        everything |= {f"optimizer.{name}": tensor for name, tensor in optimizer.items()}
        about = {"run": run, "records": [dict(each) for each in records]}
        _files.write_tensors(self.latest, everything, about, kind=_LATEST, remedy=_FULL)
        _files.write_json(self.record(epoch), {"run": run, **records[-1]}, remedy=_FULL)

    def resume(self) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Any]]]:
        """Parameters, optimiser and records after the last epoch that was finished; empty where none was.

        A record that is not there is written anew: the run was killed before, or somebody deleted it.

        Raises:
            UserError: if a file is damaged or of another run; the message says what to do.
        """
        if not self.latest.exists():
            return {}, {}, []
        remedy = (
            f"delete this file and finetune again: the run then begins anew, and {_AGAIN} (the checkpoints "
            "that are there stay until then)"
        )
        tensors, about = _files.read_tensors(
            self.latest, kind=_LATEST, what="state of a run to go on from", remedy=remedy
        )
        if about.get("run") != self.checksum():
            raise UserError(f"{self.latest} is of another run than {self.settings}; {remedy}")
        records = list(about["records"])
        for epoch, each in enumerate(records, 1):
            if self.record(epoch).exists():
                self.read_record(epoch)  # an error before anything is trained
            else:
                _files.write_json(self.record(epoch), {"run": about["run"], **each}, remedy=_FULL)
        state = {n.removeprefix("model."): part for n, part in tensors.items() if n.startswith("model.")}
        start = "optimizer."
        optimizer = {n.removeprefix(start): part for n, part in tensors.items() if n.startswith(start)}
        return state, optimizer, records

    def read_record(self, epoch: int) -> dict[str, Any]:
        """What was measured in an epoch.

        Raises:
            MissingFileError: if the epoch is not finished.
            UserError: if the file is damaged or of another run; the message says what to do.
        """
        path = self.record(epoch)
        remedy = "delete this file and finetune again: " + (
            "the same command writes it anew from latest.safetensors, and nothing is trained again"
            if self.latest.exists()
            else f"the run begins anew, and {_AGAIN}"
        )
        record = _files.read_json(path, what="record of an epoch", remedy=remedy)
        run = record.pop("run", None)
        numbers = all(type(record.get(name)) in (int, float) for name in _NUMBERS)
        if record.get("epoch") != epoch or not numbers or run is None:
            raise UserError(f"{path} is damaged, it is no record of epoch {epoch}; {remedy}")
        if run != self.checksum():
            raise UserError(f"{path} is the record of another run than {self.settings}; {remedy}")
        return record

    def check_kept(self, epoch: int) -> None:
        """A UserError where the file with the parameters after an epoch is not there."""
        if not self.checkpoint(epoch).exists():
            raise MissingFileError(
                f"the checkpoint of epoch {epoch} is not in {self.path}; ask for an epoch that was kept, or "
                f"finetune again into another folder ({_AGAIN})"
            )

    def state(self, epoch: int) -> dict[str, Tensor]:
        """The parameters after an epoch, by name.

        Raises:
            UserError: if this epoch was not kept, or its file is damaged or of another epoch or run.
        """
        self.check_kept(epoch)
        path = self.checkpoint(epoch)
        remedy = f"finetune again into another folder and copy this file from there: {_AGAIN}"
        state, about = _files.read_tensors(path, kind=_CHECKPOINT, what="checkpoint", remedy=remedy)
        if about.get("run") != self.checksum():
            raise UserError(f"{path} is the checkpoint of another run than {self.settings}; {remedy}")
        if about.get("epoch") != epoch:
            raise UserError(f"{path} holds the parameters after epoch {about.get('epoch')}; {remedy}")
        return state

    def checksum(self) -> str:
        """The checksum of what the run is, which its checkpoints and records carry."""
        fields = _fields(self.identity())
        own = {name: value for name, value in fields.items() if name not in _may_differ(fields)}
        return f"{zlib.crc32(json.dumps(own, sort_keys=True).encode()):08x}"


def _fields(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, flat, with names such as `settings.seed`."""
    flat: dict[str, Any] = {}
    waiting = list(identity.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{inner}", each) for inner, each in value.items()]
        else:
            flat[name] = value
    return flat


def _may_differ(fields: Mapping[str, Any]) -> set[str]:
    """With a constant schedule a longer run is the same one: the shorter is its beginning."""
    return {"settings.epochs"} if fields.get("settings.schedule") == "constant" else set()


@dataclass(frozen=True)
class Experiment:
    """A folder of runs. To make one touches no file.

    Attributes:
        folder: where it is.
        shared: suite, backbone, heads (their kind), limit and seed, which all runs share; empty where whoever
            uses the folder knows them.

    Example:
        >>> experiment = Experiment(Path("local/studies/pocket")).with_seed(1)
        >>> experiment.run("dtd").path.as_posix()
        'local/studies/pocket/seed1/dtd'
        >>> experiment.round(2, rule="ties", rounds=4).run("dtd").path.as_posix()
        'local/studies/pocket/seed1/rounds/ties_4/round_02/dtd'
        >>> experiment.joint(["mnist", "dtd"]).path.name
        'joint_dtd_mnist'
    """

    folder: Path
    shared: Mapping[str, Any] = field(default_factory=dict)

    # --- where the runs are ---

    def run(self, task: str) -> RunFolder:
        """The run of a task."""
        return RunFolder(self.folder / task)

    def joint(self, tasks: Iterable[str] = ()) -> RunFolder:
        """The run that learns all tasks jointly, or these; that of others is another run."""
        return RunFolder(self.folder / "_".join([JOINT, *sorted(tasks)]))

    def result(self, name: str) -> Path:
        """The file of something that a study computed from the runs."""
        return self.folder / "results" / f"{name}.json"

    def with_seed(self, seed: int) -> Experiment:
        """The experiment with a seed."""
        return Experiment(self.folder / f"seed{seed}", self.shared)

    def round(self, number: int, *, rule: str, rounds: int) -> Experiment:
        """Where the runs of one of several rounds are, counted from 1, with merges under a rule between."""
        return Experiment(self.folder / "rounds" / f"{rule}_{rounds}" / f"round_{number:02d}", self.shared)

    # --- what they share ---

    @classmethod
    def prepare(cls, folder: Path, shared: Mapping[str, Any], *, option: str = "--out") -> Experiment:
        """The experiment that a folder is to hold; nothing is written before `create`.

        Args:
            folder: where it is.
            shared: what its runs share.
            option: what names the folder on the command line, for the message of an error.

        Raises:
            UserError: if the folder holds another one; the message names what differs. Or it is damaged.
        """
        if (folder / "experiment.json").exists():
            there = cls.open(folder).shared
            for name, value in shared.items():
                if there[name] != value:
                    raise UserError(
                        f"{folder} holds runs with {name} = {there[name]!r}, not {value!r}; "
                        f"choose another folder with {option}, or the same --{name} as there"
                    )
        return cls(folder, dict(shared))

    def create(self) -> None:
        """Make the folder where there is none, and note what its runs share.

        Raises:
            FileError: if it cannot be written.
        """
        path = self.folder / "experiment.json"
        if not path.exists():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FileError(
                    f"the folder {self.folder} could not be made ({error}); choose another"
                ) from error
            _files.write_json(path, dict(self.shared))

    @classmethod
    def open(cls, folder: Path) -> Experiment:
        """The experiment in a folder that `finetune` wrote.

        Raises:
            MissingFileError: if there is none.
            UserError: if its file is damaged.
        """
        path = folder / "experiment.json"
        if not path.exists():
            raise MissingFileError(
                f"{folder} holds no runs; make some with `finetune`, or name another folder"
            )
        remedy = (
            "delete this file and give the command that made the runs again: it writes the file anew, and "
            "nothing is trained again"
        )
        shared = _files.read_json(path, what="description of an experiment", remedy=remedy)
        for name, kind in _SHARED.items():
            if name not in shared or not isinstance(shared[name], kind):
                raise UserError(f"{path} is damaged, it names no {name}; {remedy}")
        return cls(folder, shared)

    @property
    def pretrained(self) -> Path:
        """The file with the parameters that all runs began with, if `keep_pretrained` wrote it."""
        return self.folder / "pretrained.safetensors"

    def keep_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Write the parameters that all runs begin with, unless they are there.

        Raises:
            UserError: if other ones are there, or the file is damaged.
            FileError: if they cannot be written.
        """
        if not self.pretrained.exists():
            _files.write_tensors(self.pretrained, state, {}, kind=_CHECKPOINT)
            return
        remedy = "delete this file and give the same command again: it writes the file anew"
        there, _ = _files.read_tensors(self.pretrained, kind=_CHECKPOINT, what="checkpoint", remedy=remedy)
        if _files.checksum(there) != _files.checksum(state):
            raise UserError(
                f"{self.pretrained} holds other parameters than the encoder has now, so the runs there had "
                "another start; give another folder with --runs"
            )

    # --- what is in them ---

    def chosen(self, names: Sequence[str] | None) -> list[str]:
        """The tasks asked for, by default all that have a kept epoch, in the order of their names.

        Raises:
            UserError: if there is no run of a task, where near names are suggested, or it is named twice.
        """
        folders = sorted(path.name for path in self.folder.iterdir() if self.run(path.name).kept)
        there = [name for name in folders if name.partition("_")[0] != JOINT]
        _checks.not_empty(f"the list of finished runs in {self.folder}", there)
        for name in names or ():
            _checks.named_choice(f"run in {self.folder}:", name, dict.fromkeys(there))
        _checks.each_once("task", names or ())
        return list(names or there)

    def epoch(self, tasks: Sequence[str], wanted: int | None) -> int:
        """The epoch asked for, by default the last that all tasks have kept.

        Raises:
            UserError: if a task lacks it; the message says what all of them have.
        """
        common = sorted(set.intersection(*(set(self.run(name).kept) for name in tasks)))
        if not common or (wanted is not None and wanted not in common):
            what = "no epoch" if wanted is None else f"not epoch {wanted}"
            raise UserError(
                f"the runs of {', '.join(tasks)} in {self.folder} have {what} in common; "
                f"there is {', '.join(map(str, common)) or 'none'}: finetune longer, or ask for another one"
            )
        return common[-1] if wanted is None else wanted

    def states(
        self, tasks: Sequence[str], epoch: int, *, pretrained: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        """The parameters of each run after an epoch, in the order of those it began with.

        Raises:
            UserError: if a run began with other parameters than `pretrained`, or its file is damaged or of
                another run.
        """
        own, states = _files.checksum(pretrained), {}
        for task in tasks:
            run = self.run(task)
            begun = run.identity()["backbone"]
            if begun["parameters"] != own:
                raise UserError(
                    f"the run of {task} in {self.folder} began with other weights of {begun['name']} than "
                    "are here now; finetune again into another folder"
                )
            found = run.state(epoch)
            states[task] = {name: found[name] for name in pretrained}
        return states

    def origin(self, tasks: Sequence[str], epoch: int, *, pretrained: Mapping[str, Tensor]) -> dict[str, Any]:
        """Where task vectors of these runs come from, for the file of what is made of them.

        Returns:
            The suite and the backbone, the checksum of the pretrained parameters, the epoch, and for each
            task the checksum of its run and the SHA-256 of its checkpoint.
        """
        return {
            "suite": self.shared["suite"],
            "backbone": self.shared["backbone"],
            "pretrained": _files.checksum(pretrained),
            "epoch": epoch,
            "tasks": {
                task: {
                    "run": self.run(task).checksum(),
                    "checkpoint": _files.sha256(self.run(task).checkpoint(epoch)),
                }
                for task in tasks
            },
        }

    def check_origin(
        self, origin: Mapping[str, Any], tasks: Sequence[str], *, file: Path, pretrained: Mapping[str, Tensor]
    ) -> None:
        """An error unless what is in `file` was made of these runs here, or of more of them.

        Raises:
            UserError: if it is of another start, a task is not in it, or a run or a checkpoint in this folder
                is another one.
        """
        again = "make the file anew with `merge`, or name the folder of the runs that it is of with --runs"
        if origin["pretrained"] != _files.checksum(pretrained):
            raise UserError(
                f"{file} began with other weights of {origin['backbone']} than {self.shared['backbone']} has "
                f"here; {again}"
            )
        for task in tasks:
            if task not in origin["tasks"]:
                raise UserError(
                    f"{file} is made of {', '.join(origin['tasks'])} and knows nothing of {task}; leave it "
                    "out of --tasks, or merge it too"
                )
            there = self.origin([task], origin["epoch"], pretrained=pretrained)["tasks"][task]
            for what in ("run", "checkpoint"):
                if there[what] != origin["tasks"][task][what]:
                    raise UserError(
                        f"{file} is made of another {what} of {task} than {self.folder} holds; {again}"
                    )

    def tasks(self, names: Sequence[str], data: Path | None, *, encoder: Encoder) -> dict[str, Task]:
        """The tasks with the split that the runs were trained on, texts in the encoder's tokens."""
        return load_tasks(
            names,
            suite=self.shared["suite"],
            folder=data,
            limit=self.shared["limit"],
            seed=self.shared["seed"],
            tokenizer=tokenizer_of(encoder),
        )

    def head(self, backbone: Encoder, task: Task) -> Head:
        """The frozen head of a task, made and kept at the first call."""
        path = self.run(task.name).head
        if self.shared["heads"] == "prototypes":
            return kept_head(path, task, partial(prototype_head, backbone))
        # by name: the text encoder is in memory while the head is made, not while the encoder is finetuned
        texts = templates_in(self.shared["suite"], task.name)
        make = partial(zero_shot_head, backbone.name, templates=texts, device=backbone.device)
        return kept_head(path, task, make)

    def heads(self, tasks: Sequence[str]) -> dict[str, Head]:
        """The frozen heads that the runs were trained with.

        Raises:
            MissingFileError: if one is gone.
            UserError: if one is damaged, or of another run.
        """
        heads = {}
        for task in tasks:
            run = self.run(task)
            heads[task] = stored_head(run.head)
            if head_checksum(heads[task]) != run.identity()["tasks"][task]["head"]:
                raise UserError(
                    f"{run.head} is not the head that the run of {task} was trained with; delete this file "
                    "and give the command that made the runs again: on the same machine it makes the same "
                    "head"
                )
        return heads


def head_checksum(head: Head) -> str:
    """What says whether two frozen heads are one: the checksum of its kind and of all that is in it."""
    return _files.checksum(head.state_dict(), type(head).__name__)
