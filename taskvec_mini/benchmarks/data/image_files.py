"""Files of images: npz without pickles, read only if their checksum fits; and the tasks made of them."""

from __future__ import annotations

import errno
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from taskvec_mini import _files
from taskvec_mini.benchmarks.data import duplicates, splits
from taskvec_mini.benchmarks.data.tasks import ImageTask, check_images
from taskvec_mini.errors import MissingFileError, UserError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]  # by the names below
REQUIRED = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
OPTIONAL = ("train_groups", "test_groups")
_ENCODED = ("train_bytes", "train_ends", "test_bytes", "test_ends")  # in place of the images; see `decode`
_UNREADABLE = (ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error, OSError)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_arrays(path: Path, *, remedy: str, grey: bool = False) -> dict[str, Array]:
    """The arrays of a file whose checksum was found right.

    Images are stored as they are, or as `<part>_bytes` (uint8, image files one after the other) and
    `<part>_ends` (int64, where each of them ends); then they are decoded here, if `grey` without colours.

    Raises:
        UserError: if it holds something else; with the remedy.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in (*REQUIRED, *OPTIONAL, *_ENCODED) if key in stored.files}
        for part in ("train", "test"):
            if f"{part}_bytes" in arrays and f"{part}_ends" in arrays:
                arrays[f"{part}_images"] = decode(
                    arrays.pop(f"{part}_bytes"), arrays.pop(f"{part}_ends"), grey=grey
                )
        missing = [key for key in REQUIRED if key not in arrays]
        if missing:
            raise UserError(f"it has no array {missing[0]!r}, only {', '.join(stored.files)}")
        return arrays
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a file of images ({error}); {remedy}") from error


def contents(path: Path, *, remedy: str) -> str:
    """The `checksum` of all arrays of a file as they are stored, however they are packed.

    Raises:
        UserError: if it is no file of arrays; with the remedy.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return checksum({key: stored[key] for key in stored.files})
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a file of arrays ({error}); {remedy}") from error


def encode(images: Iterable[bytes]) -> tuple[Array, Array]:
    """Image files one after the other (uint8), and where each of them ends (int64)."""
    files = list(images)
    return np.frombuffer(b"".join(files), dtype=np.uint8), np.cumsum(
        [len(each) for each in files], dtype=np.int64
    )


def decode(stored: Array, ends: Array, *, grey: bool = False) -> Array:
    """What `encode` made, as images: uint8 (N, H, W, 3), or (N, H, W) where they are to be grey.

    Raises:
        UserError: if the ends do not fit, an image cannot be decoded, or their sizes differ.
    """
    if len(ends) == 0 or ends[-1] != len(stored) or (np.diff(ends, prepend=0) <= 0).any():
        raise UserError(f"the ends of {len(ends)} images do not fit their {len(stored):,} bytes")
    whole = stored.tobytes()
    images: list[Array] = []
    for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        try:
            with Image.open(io.BytesIO(whole[start:end])) as image:
                images.append(np.asarray(image.convert("L" if grey else "RGB")))
        except OSError as error:
            raise UserError(f"image {i} cannot be decoded ({error})") from error
        if images[i].shape != images[0].shape:
            raise UserError(f"image {i} is of shape {images[i].shape}, the first of {images[0].shape}")
    return np.stack(images)


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays, then beside them their sha256 as `sha256sum -c` reads it.

    The checksum comes last, so that its presence says that the file is complete.
    """
    savez: Any = np.savez  # its type hints know no arrays by name
    checksum_file(path).unlink(missing_ok=True)
    with _files.replacing(path) as place, open(place, "wb") as file:
        savez(file, **arrays)
    _files.write_text(checksum_file(path), f"{_files.sha256(path)}  {path.name}\n")


def checksum_file(path: Path) -> Path:
    """Where `write_arrays` writes the checksum of a file."""
    return path.with_name(f"{path.name}.sha256")


def recorded_checksum(path: Path) -> str:
    """The sha256 that `write_arrays` wrote beside a file.

    Raises:
        MissingFileError: if there is none.
    """
    try:
        return checksum_file(path).read_text(encoding="utf-8", errors="replace").partition(" ")[0]
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {checksum_file(path)}; delete {path} as well") from error


def checksum(arrays: Arrays) -> str:
    """A sha256 of names, types, shapes and values, for arrays that come from no file."""
    digest = hashlib.sha256()
    for key, values in sorted(arrays.items()):
        digest.update(f"{key} {values.dtype.str} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def image_task(
    name: str,
    arrays: Arrays,
    *,
    sha256: str,
    limit: int | None,
    seed: int,
    drop_near_duplicates: bool = False,
) -> ImageTask:
    """The task of some arrays: a part of its training images split off to validate, the test part as it is.

    Args:
        name: of the task.
        arrays: by the names of `REQUIRED`, and some of `OPTIONAL`.
        sha256: of what they came from.
        limit: keep at most that many training images, the first of the shuffled order.
        seed: decides the validation part and the order.
        drop_near_duplicates: leave out of the validation and the test part what `duplicates` finds, with all
            training images, whatever the limit is.

    Raises:
        TypeError: if images are not uint8 or labels not int64.
        ValueError: if the arrays do not fit one another, or a group stands in the train and the test part.
    """
    class_names = tuple(map(str, arrays["class_names"]))
    tensors = {
        key: torch.from_numpy(np.ascontiguousarray(values))
        for key, values in arrays.items()
        if key != "class_names"
    }
    for part in ("train", "test"):
        images, labels = tensors[f"{part}_images"], tensors[f"{part}_labels"]
        check_images(part, images, labels, classes=len(class_names))
    images, labels, groups = tensors["train_images"], tensors["train_labels"], tensors.get("train_groups")
    if groups is not None:
        if groups.shape != labels.shape:
            raise UserError(
                f"train_groups has shape {tuple(groups.shape)} for {len(labels)} images; give one each"
            )
        both = np.intersect1d(arrays["train_groups"], arrays.get("test_groups", np.empty(0, np.int64)))
        if len(both):
            raise UserError(
                f"{len(both)} group(s) stand in the train and in the test part, the first is {both[0]}; "
                "the test part is leaked: split it anew by group"
            )
    fingerprints = splits.contents(images)
    fresh = splits.without_test_copies(fingerprints, splits.contents(tensors["test_images"]))
    train, val = splits.validation_split(
        [fingerprints[i] for i in fresh.tolist()], None if groups is None else groups[fresh], seed=seed
    )
    train, val = fresh[train], fresh[val]
    task = ImageTask(
        name=name,
        class_names=class_names,
        train_images=images[train],
        train_labels=labels[train],
        val_images=images[val],
        val_labels=labels[val],
        test_images=tensors["test_images"],
        test_labels=tensors["test_labels"],
        sha256=sha256,
    )
    if drop_near_duplicates:
        task = duplicates.without_near_duplicates(task)
    if limit is not None:
        task = replace(task, train_images=task.train_images[:limit], train_labels=task.train_labels[:limit])
    return task


def full_disk(error: BaseException) -> OSError | None:
    """The error of a full disk that is behind an error, or None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
