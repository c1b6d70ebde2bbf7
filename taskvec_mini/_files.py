"""Files that are written whole or not at all, and read only if they are what was written.

Everything this library writes goes through `replacing`. It is made in a folder of its own beside its place,
brought to the disk, and then renamed. A process that is killed leaves that folder behind; the next one that
writes to the same place sweeps it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskvec_mini.errors import FileError, MissingFileError, UserError

SPACE = "is there space on the disk, and may you write there?"
_PIECE = 4_000_000  # bytes that `checksum` copies at a time, where it has to
_AXES = 64  # of a tensor that numpy and torch can handle
_DAY = 86_400.0  # seconds after which what another machine left behind counts as left behind
_MAKING = ".taskvec_mini-"  # how folders begin in which files are made; then machine, process, random letters
_WINDOWS = os.name == "nt"
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save and pickle begin

# --- writing ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, remedy: str = SPACE) -> Iterator[Path]:
    """A place to write to, which becomes `path` when the block ends, or leaves no trace when it fails.

    What is written there may be a file or a folder; a folder takes the place of none. A link at `path` is
    replaced, not followed.

    Raises:
        MissingFileError: if the folder that it goes into does not exist.
        FileError: if the block or the renaming fails with an OSError; the message names the path. Any other
            error of the block passes through as it is.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "greeting.txt"
        >>> with replacing(target) as place:
        ...     _ = place.write_text("hello")
        >>> target.read_text(), [each.name for each in target.parent.iterdir()]
        ('hello', ['greeting.txt'])
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise MissingFileError(
            f"there is no folder {target.parent} to write {target.name} into; make it first"
        )
    _sweep(target.parent)
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{_MAKING}{_machine()}-{os.getpid()}-"))
    except OSError as error:
        raise FileError(f"{target} could not be written ({error}); {remedy}") from error
    place = folder / f"new{target.suffix}"  # of another name, so that no search for such files finds it
    try:
        yield place
        _to_disk(place)
        os.replace(place, target)
        # it is in its place already, and not every system lets a folder be brought to the disk
        with contextlib.suppress(OSError):
            _to_disk(target.parent, inside=False)
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
    *,
    metadata: Mapping[str, str],
    remedy: str = SPACE,
) -> None:
    """Write a plain safetensors file, without a checksum of ours; errors are those of `replacing`.

    Two names may stand for one tensor, which is then written twice. Tensors may lie in memory in any order of
    their axes.
    """
    whole: dict[str, Tensor] = {}
    places = set()
    for name, tensor in tensors.items():
        whole[name] = tensor.detach().contiguous()
        if whole[name].data_ptr() in places:  # which safetensors refuses
            whole[name] = whole[name].clone()
        places.add(whole[name].data_ptr())
    with replacing(path, remedy=remedy) as place:
        save_file(whole, place, metadata=dict(metadata))


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
    write_safetensors(path, tensors, metadata=metadata, remedy=remedy)


# --- reading ---------------------------------------------------------------------------------------------


def read_json(path: str | os.PathLike[str], *, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        MissingFileError: if there is no such file.
        FileError: if it cannot be read.
        UserError: if it is no JSON object; the message names the file and the remedy.
    """
    with _opened(path, what=what, remedy=remedy) as file:
        content = file.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, it is no {what} ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged, it holds no JSON object and is no {what}; {remedy}")
    return value


def read_tensors(
    path: str | os.PathLike[str], *, kind: str, what: str, remedy: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description that `write_tensors` wrote. Nothing is ever unpickled.

    The tensors are copies: nothing that later happens to the file changes them.

    Raises:
        MissingFileError: if there is no such file.
        FileError: if it cannot be read.
        UserError: if it is damaged or of another kind; the message names the file and the remedy.
    """
    with opened_safetensors(path, what=what, remedy=remedy) as stored:
        metadata = stored.metadata() or {}
        if kind not in metadata:
            ours = [key for key in metadata if key.startswith("taskvec_mini.")]
            found = f"a {ours[0]}" if ours else "a safetensors file"
            raise UserError(f"{path} is {found} but no {what}; {remedy}")
        tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
    expected, _, text = metadata[kind].partition(" ")
    if expected != checksum(tensors, text):
        raise UserError(f"{path} is truncated or corrupted (its checksum does not fit); {remedy}")
    return tensors, json.loads(text)


@contextlib.contextmanager
def opened_safetensors(path: str | os.PathLike[str], *, what: str, remedy: str) -> Iterator[Any]:
    """A safetensors file to read from, as `safetensors.safe_open` gives it. Nothing is ever unpickled.

    Raises:
        MissingFileError: if there is no such file.
        FileError: if it cannot be read.
        UserError: if it is no whole safetensors file, or a tensor has more axes than torch can handle; the
            message names the file and the remedy.
    """
    with _opened(path, what=what, remedy=remedy) as file:
        start = file.read(2)
    try:
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (no mapping)
                axes = len(stored.get_slice(name).get_shape())
                if axes > _AXES:
                    raise UserError(f"{path} is no {what}: {name!r} has {axes} axes, above {_AXES}; {remedy}")
            yield stored
    except (SafetensorError, OSError) as error:
        if start in _PICKLES:
            raise UserError(
                f"{path} is a pickle (torch.save writes these) and is not loaded, because a pickle can run "
                f"any code; {remedy}"
            ) from error
        raise UserError(
            f"{path} is no {what}, or it is truncated or corrupted ({error}); {remedy}"
        ) from error


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """A CRC-32 of names, dtypes, shapes and entries, as eight hexadecimal digits; `text` goes in as well.

    Example:
        >>> checksum({"a": torch.ones(1)}) == checksum({"a": torch.ones(1)}) != checksum({"b": torch.ones(1)})
        True
    """
    total = zlib.crc32(text.encode())
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
        FileError: if it cannot be read.
    """
    with _opened(path, what="file", remedy="give the path of a file that you may read") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: str | os.PathLike[str], expected: str, *, remedy: str) -> None:
    """A UserError with both checksums and the remedy, unless the file has this SHA-256."""
    found = sha256(path)
    if found != expected:
        raise UserError(
            f"{path} is truncated or corrupted ({os.path.getsize(path):,} bytes): its sha256 should be "
            f"{expected} and is {found}; {remedy}"
        )


# --- parts -----------------------------------------------------------------------------------------------


def _machine() -> str:
    """This machine and, in a container, its own table of processes: a number means something in one table."""
    try:
        table = os.readlink("/proc/self/ns/pid")
    except OSError:
        table = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {table}'.encode()):08x}"


def _sweep(folder: Path) -> None:
    """Remove what processes that are gone have left while they wrote into this folder."""
    with contextlib.suppress(OSError):  # whoever may not look there, or was too late, need not sweep
        for entry in os.scandir(folder):
            if not (entry.name.startswith(_MAKING) and entry.is_dir(follow_symlinks=False)):
                continue
            machine, _, rest = entry.name.removeprefix(_MAKING).partition("-")
            process = rest.partition("-")[0]
            if machine == _machine() and process.isdecimal() and not _WINDOWS:
                gone = not _is_running(int(process))
            else:
                gone = time.time() - entry.stat().st_mtime > _DAY
            if gone:
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _to_disk(path: Path, *, inside: bool = True) -> None:
    """Wait until it is on the disk: a power cut must not leave a name without its bytes."""
    if path.is_dir():
        for each in path.iterdir() if inside else ():
            _to_disk(each)
        if _WINDOWS:
            return  # folders cannot be opened there
    number = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)  # Windows flushes what may be written to
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], *, what: str, remedy: str) -> Iterator[BufferedReader]:
    try:
        with open(path, "rb") as file:
            yield file
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
