"""The folder of a run: a checkpoint an epoch, and enough to go on after a kill at any moment.

    settings.json            what the run is; another run is refused
    epoch_003.safetensors    the parameters after epoch 3
    epoch_003.json           its loss, accuracy, seconds; written last, so that epoch 3 counts from here on
    latest.safetensors       parameters and optimiser after the last epoch; only a run that goes on needs it
    .lock                    empty; held while a process works here, so that no second one does

Every file is written beside its place as `.part` and then renamed, so that it is whole or absent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskvec_mini.benchmarks.encoders.parameters import checksum
from taskvec_mini.errors import FileError, UserError

FILE_FORMAT = "taskvec_mini.benchmarks/1"
LOCK = ".lock"  # held by the process that is finetuning in the folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write named tensors and a record (plain JSON) to a safetensors file, whole or not at all.

    Raises:
        OSError: if there is no space, no such folder or no permission; an older file stays as it is.
    """
    text = json.dumps(record, sort_keys=True)
    metadata = {FILE_FORMAT: f"{checksum(tensors, text)} {text}"}  # one entry, as their order is not fixed
    _replace(path, lambda part: save_file(dict(tensors), part, metadata=metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The named tensors and the record that `write_tensors` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, corrupted or of another kind; the message says what to do.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(_unreadable(path, str(error))) from error
    expected, _, text = metadata.get(FILE_FORMAT, "").partition(" ")
    if expected != checksum(tensors, text):
        raise UserError(_unreadable(path, "its checksum does not fit"))
    return tensors, json.loads(text)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, whole or not at all.

    Raises:
        OSError: if there is no space, no such folder or no permission; an older file stays as it is.
    """
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    _replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """The record that `write_json` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON; the message says what to do.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(_unreadable(path, str(error))) from error
    return record


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes out of a folder; the system ends this with the process, however that ends.

    A storage that knows no locks, such as some network folders, is used without.

    Raises:
        OSError: if another process is in it, or it cannot be made.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise FileError(
            errno.EBUSY, f"another process is finetuning in {path}; wait for it, or give another folder"
        ) from error
    except NotImplementedError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it is made where there is none.
        identity: what the run is, as nested dictionaries of JSON values.
        ignore: names of fields that may differ, such as `settings.epochs`.

    Raises:
        ValueError: if the folder holds a run of another identity; the message names the first field that
            differs and both values.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any], *, ignore: frozenset[str]):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        for part in self.path.glob("*.part"):  # what a kill left behind
            part.unlink()
        settings = self.path / "settings.json"
        if settings.exists():
            _check_identity(self.path, read_json(settings), identity, ignore)
        else:
            write_json(settings, identity)

    def checkpoint(self, epoch: int) -> Path:
        """The file with the parameters after an epoch."""
        return self.path / f"epoch_{epoch:03}.safetensors"

    def record(self, epoch: int) -> Path:
        """The file with what was measured in an epoch; it is there once the epoch is complete."""
        return self.path / f"epoch_{epoch:03}.json"

    @property
    def latest(self) -> Path:
        """The file with parameters and optimiser after the last complete epoch."""
        return self.path / "latest.safetensors"

    def save(
        self,
        epoch: int,
        *,
        state: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        record: Mapping[str, Any],
        keep: bool,
    ) -> None:
        """Write what belongs to a finished epoch; its record last, so that half an epoch never counts.

        Raises:
            OSError: if a file cannot be written; the epochs before stay as they are.
        """
        if keep:
            write_tensors(self.checkpoint(epoch), state, {"epoch": epoch})
        everything = {f"model.{name}": tensor for name, tensor in state.items()}
        everything |= {f"optimizer.{name}": tensor for name, tensor in optimizer.items()}
        write_tensors(self.latest, everything, record)
        write_json(self.record(epoch), record)

    def resume(self) -> tuple[dict[str, Tensor], dict[str, Tensor], int] | None:
        """Parameters, optimiser and number of the last epoch, or None where no epoch was finished.

        Raises:
            ValueError: if the file is truncated or corrupted.
        """
        if not self.latest.exists():
            return None
        tensors, record = read_tensors(self.latest)
        if not self.record(record["epoch"]).exists():  # killed between the last two files of the epoch
            write_json(self.record(record["epoch"]), record)
        return _with_prefix(tensors, "model."), _with_prefix(tensors, "optimizer."), record["epoch"]

    def check_kept(self, epoch: int) -> None:
        """A ValueError where the file with the parameters after an epoch is not there."""
        if not self.checkpoint(epoch).exists():
            raise UserError(
                f"the checkpoint of epoch {epoch} is not in {self.path}; ask for an epoch that was kept, or "
                "delete the folder and finetune again (the same settings give the same bytes)"
            )

    def state(self, epoch: int) -> dict[str, Tensor]:
        """The parameters after an epoch.

        Raises:
            ValueError: if this epoch was not kept, or its file is truncated or corrupted.
        """
        self.check_kept(epoch)
        return read_tensors(self.checkpoint(epoch))[0]


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with open(part, "rb+") as file:  # on the disk before the name is: a power cut must not leave a hole
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"{path} could not be written ({error}); is there space on the disk? Earlier checkpoints are "
            "untouched: free some space and start the same run again, it goes on after the last whole epoch"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _unreadable(path: Path, why: str) -> str:
    return (
        f"{path} is truncated or corrupted ({why}); delete its folder {path.parent} and finetune again: the "
        "same settings give the same bytes"
    )


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_identity(
    folder: Path, there: Mapping[str, Any], here: Mapping[str, Any], ignore: frozenset[str]
) -> None:
    old, new = _fields(there), _fields(here)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and name not in ignore:
            raise UserError(
                f"{folder} holds a run with {name} = {old.get(name)!r}, but this run has {new.get(name)!r}; "
                "use another folder for it"
            )


def _fields(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with names such as `settings.epochs`."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
