"""Files of images: npz without pickles, written whole or not at all, read only if their checksum fits."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from taskvec_mini import records
from taskvec_mini.errors import UserError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]  # by the names below
REQUIRED = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
OPTIONAL = ("train_groups", "test_groups")


def read(path: Path, expected: str, *, remedy: str) -> dict[str, Array]:
    """The arrays of a file; where its sha256 is another one, a ValueError with both and the remedy."""
    found = records.checksum(path)
    if found != expected:
        raise UserError(
            f"{path} is truncated or corrupted ({path.stat().st_size:,} bytes): "
            f"its sha256 should be {expected} and is {found}; {remedy}"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [key for key in REQUIRED if key not in stored.files]
            if missing:
                raise UserError(f"it has no array {missing[0]!r}, only {', '.join(stored.files)}")
            return {key: stored[key] for key in (*REQUIRED, *OPTIONAL) if key in stored.files}
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as a file of images ({error}); {remedy}") from error


def write(path: Path, arrays: Arrays) -> None:
    """Write arrays, then beside them their sha256 as `sha256sum -c` reads it; both are whole or not there."""
    savez: Any = np.savez  # its type hints know no arrays by name
    checksum_file(path).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.part") as folder:
        data, note = Path(folder, path.name), Path(folder, "sha256")
        with open(data, "wb") as file:
            savez(file, **arrays)
        note.write_text(f"{records.checksum(data)}  {path.name}\n", encoding="ascii")
        os.replace(data, path)
        os.replace(note, checksum_file(path))


def checksum_file(path: Path) -> Path:
    """Where `write` writes the checksum of a file: the last step, so that its presence says "complete"."""
    return path.with_name(f"{path.name}.sha256")


def checksum(arrays: Arrays) -> str:
    """A sha256 of names, types, shapes and values, for arrays that come from no file."""
    digest = hashlib.sha256()
    for key, values in sorted(arrays.items()):
        digest.update(f"{key} {values.dtype.str} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
