"""Files that are written whole or not at all, and read only if they are what was written.

Everything this library writes goes through `replacing`. It is made in a folder of its own beside its place,
brought to the disk, and then renamed. A process that is killed leaves that folder behind; the next one that
writes the same file sweeps it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskvec_mini.errors import FileError, MissingFileError, UserError

SPACE = "is there space on the disk, and may you write there?"
_PIECE = 4_000_000  # bytes that `checksum` copies at a time, where it has to
_DAY = 86_400.0  # seconds after which what another machine left behind counts as left behind
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save and pickle begin

# --- writing ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, remedy: str = SPACE) -> Iterator[Path]:
    """A place to write to, which becomes `path` when the block ends, or leaves no trace when it fails.

    What is written there may be a file or a folder. A folder takes the place of none or of an empty one. A
    link at `path` is replaced, not followed.

    Raises:
        FileError: if the block or the renaming fails with an OSError; the message names the path.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "greeting.txt"
        >>> with replacing(target) as place:
        ...     _ = place.write_text("hello")
        >>> target.read_text(), [each.name for each in target.parent.iterdir()]
        ('hello', ['greeting.txt'])
    """
    target = Path(path)
    _sweep(target)
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target) + f"{os.getpid()}-"))
    except OSError as error:
        raise FileError(f"{target} could not be written ({error}); {remedy}") from error
    place = folder / target.name
    try:
        yield place
        _to_disk(place)
        os.replace(place, target)
        _to_disk(target.parent, folder=True)
    except FileError:
        raise
    except (OSError, SafetensorError) as error:
        raise FileError(f"{target} could not be written ({error}); {remedy}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str, *, remedy: str = SPACE) -> None:
    """Write a text as UTF-8; errors are those of `replacing`."""
    with replacing(path, remedy=remedy) as place:
        place.write_bytes(text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any, *, remedy: str = SPACE) -> None:
    """Write JSON; errors are those of `replacing`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n", remedy=remedy)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    remedy: str = SPACE,
) -> None:
    """Write a plain safetensors file, without a checksum of ours; errors are those of `replacing`."""
    with replacing(path, remedy=remedy) as place:
        save_file(dict(tensors), place, metadata=dict(metadata or {}))


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    description: Mapping[str, Any],
    *,
    kind: str,
    remedy: str = SPACE,
) -> None:
    """Write named tensors, what describes them (JSON) and a checksum of both to a safetensors file.

    Args:
        path: where to.
        tensors: by name.
        description: what the file says of them.
        kind: which kind of file it is, such as "taskvec_mini.TaskVector/2"; `read_tensors` asks for it.
        remedy: what to do about a failure, for the message.

    Raises:
        FileError: if it cannot be written; an older file stays as it is.
    """
    text = json.dumps(description, sort_keys=True)
    metadata = {kind: f"{checksum(tensors, text)} {text}"}  # one entry, because their order is not fixed
    write_safetensors(path, tensors, metadata, remedy=remedy)


# --- reading ---------------------------------------------------------------------------------------------


def read_json(path: str | os.PathLike[str], *, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if it is no JSON object; the message names the file and the remedy.
    """
    try:
        value = json.loads(_bytes_of_file(path, what=what, remedy=remedy))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged, it is no {what} ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged, it holds no JSON object and is no {what}; {remedy}")
    return value


def read_tensors(
    path: str | os.PathLike[str], *, kind: str, what: str, remedy: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description that `write_tensors` wrote. Nothing is ever unpickled.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if it is damaged or of another kind; the message names the file and the remedy.
    """
    if not os.path.exists(path):
        raise MissingFileError(f"there is no file {path}; {remedy}")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if kind not in metadata:
                raise UserError(f"{path} is a safetensors file but no {what}; {remedy}")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(_why_unreadable(path, error, what=what, remedy=remedy)) from error
    expected, _, text = metadata[kind].partition(" ")
    if expected != checksum(tensors, text):
        raise UserError(f"{path} is truncated or corrupted (its checksum does not fit); {remedy}")
    return tensors, json.loads(text)


def checksum(tensors: Mapping[str, Tensor], words: str = "") -> str:
    """A CRC-32 of names, dtypes, shapes and entries, as eight hexadecimal digits; `words` go in as well.

    Example:
        >>> checksum({"a": torch.ones(1)}) == checksum({"a": torch.ones(1)}) != checksum({"b": torch.ones(1)})
        True
    """
    total = zlib.crc32(words.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        for piece in _bytes_of(tensor):
            total = zlib.crc32(piece, total)
    return f"{total:08x}"


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits.

    Raises:
        MissingFileError: if there is no such file.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}") from error


def check_sha256(path: str | os.PathLike[str], expected: str, *, remedy: str) -> None:
    """A UserError with both checksums and the remedy, unless the file has this SHA-256."""
    found = sha256(path)
    if found != expected:
        raise UserError(
            f"{path} is truncated or corrupted ({os.path.getsize(path):,} bytes): its sha256 should be "
            f"{expected} and is {found}; {remedy}"
        )


# --- parts -----------------------------------------------------------------------------------------------


def _prefix(target: Path) -> str:
    return f".{target.name}.{socket.gethostname()}."


def _sweep(target: Path) -> None:
    """Remove what processes that are gone have left while they wrote this file."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*.*-*"):
        host, _, rest = folder.name.removeprefix(f".{target.name}.").rpartition(".")
        process = rest.partition("-")[0]
        if not (folder.is_dir() and not folder.is_symlink() and process.isdecimal()):
            continue
        if host == socket.gethostname() and os.name != "nt":
            gone = not _is_running(int(process))
        else:
            gone = time.time() - folder.stat().st_mtime > _DAY
        if gone:
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _to_disk(path: Path, *, folder: bool = False) -> None:
    """Wait until it is on the disk: a power cut must not leave a name without its bytes."""
    if folder or path.is_dir():
        if not folder:
            for each in path.iterdir():
                _to_disk(each)
        if os.name == "nt":
            return  # folders cannot be opened there
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _bytes_of_file(path: str | os.PathLike[str], *, what: str, remedy: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no {what} {path}; {remedy}") from error
    except OSError as error:
        raise FileError(f"{path} could not be read ({error}); {remedy}") from error


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """Its entries in the order of their indices: its own memory where that has them so, else small copies."""
    if (tensor.is_cpu and tensor.is_contiguous()) or tensor.nbytes <= _PIECE:
        flat = tensor.cpu().contiguous().as_strided((tensor.numel(),), (1,))  # a single entry has any stride
        yield flat.view(torch.uint8).numpy().data
        return
    rows = _PIECE // tensor[0].nbytes
    for part in torch.split(tensor, rows) if rows else tensor.unbind():
        yield from _bytes_of(part)


def _why_unreadable(path: str | os.PathLike[str], error: Exception, *, what: str, remedy: str) -> str:
    if os.path.isfile(path):
        with open(path, "rb") as file:
            if file.read(2) in _PICKLES:
                return (
                    f"{path} is a pickle (torch.save writes these) and is not loaded, because a pickle can "
                    f"run any code; {remedy}"
                )
    return f"{path} is no {what}, or it is truncated or corrupted ({error}); {remedy}"
