"""Files of flat vectors: safetensors only, written whole or not at all, with a checksum."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE_FORMAT = "taskvec_mini.TaskVector/1"
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save and pickle begin


def write(path: str | os.PathLike[str], flat: Tensor, description: dict[str, Any]) -> None:
    """Write a vector and what describes it; an older file stays until the new one is complete."""
    text = json.dumps(description)
    metadata = {FILE_FORMAT: f"{_checksum(flat, text)} {text}"}  # one entry, because their order is not fixed
    write_tensors(path, {"flat": flat}, metadata)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write named tensors to a safetensors file; an older file stays until the new one is complete."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    try:
        save_file(dict(tensors), temporary, metadata=metadata)
        os.replace(temporary, target)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written ({error}); is there space on the disk?") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[Tensor, dict[str, Any]]:
    """What `write` wrote. Nothing is ever unpickled: a pickle is called one in the error, and that is all."""
    with open(path, "rb") as file:
        start = file.read(2)
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if FILE_FORMAT not in metadata:
                raise ValueError(f"{path} is a safetensors file but no task vector; make one with save()")
            flat = stored.get_tensor("flat")
    except SafetensorError as error:
        raise ValueError(_why_unreadable(path, start, str(error))) from error
    checksum, _, text = metadata[FILE_FORMAT].partition(" ")
    if checksum != _checksum(flat, text):
        raise ValueError(_why_unreadable(path, b"", "its checksum does not fit"))
    return flat, json.loads(text)


def _checksum(flat: Tensor, text: str) -> str:
    """A CRC-32 of all a file says: safetensors by itself does not notice a flipped bit in the numbers."""
    words = zlib.crc32(f"{flat.dtype} {tuple(flat.shape)} {text}".encode())
    entries = flat.cpu().reshape(-1).view(torch.uint8)
    return f"{zlib.crc32(entries.numpy().data, words):08x}"


def _why_unreadable(path: str | os.PathLike[str], start: bytes, error: str) -> str:
    if start in _PICKLES:
        return (
            f"{path} is a pickle (torch.save writes these) and is not loaded, because a pickle can run "
            "any code; load the two state dicts yourself and save TaskVector.between(...) with save()"
        )
    return f"{path} is truncated or corrupted ({error}); copy it again or make it anew with save()"
