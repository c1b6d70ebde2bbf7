"""One loader of tasks: four suites of images, two of texts.

`bundle` reads the eight small files of real images which the recorded studies use, `torchvision` downloads
public data sets, `digits` needs no files at all. Images stay uint8 until a backbone prepares them. `hub` has
the benchmarks of CLIP merging (see `hub.load`); `text` and `text-hub` are those of
`text_tasks.load_text_tasks`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.benchmarks import _arrays
from taskvec_mini.benchmarks.data import hub, splits
from taskvec_mini.benchmarks.data import torchvision_sets as downloads
from taskvec_mini.benchmarks.data.tasks import ImageTask, check_part
from taskvec_mini.benchmarks.data.texts import load_text_tasks
from taskvec_mini.errors import MissingFileError, UserError
from taskvec_mini.tasks import digit_tasks

__all__ = ["BUNDLE", "CORE", "FOLDER_VARIABLE", "TEXTS", "ImageTask", "load_tasks"]

FOLDER_VARIABLE = "TASKVEC_MINI_DATA"
BUNDLE = {  # task: (file, sha256); the first eight are the suite, the others are loaded by name
    "mnist": ("mnist.npz", "c3e330e66d60add7e6475a46271dc75a5806967d321c06d30f6a92e06af88637"),
    "streetchars": ("streetchars.npz", "ea837c8dc428879f86118f1c1b30bb9642d9c0fe32958478afbb77951b9492a3"),
    "gtsrb": ("gtsrb.npz", "7328dcc24f4fd7220fa4d661147f2ad40eede4567aaa04907f673dcfe3685db8"),
    "rsscn7": ("rsscn7.npz", "cbaf8239c0e5154cf77f187ab5e436ee7fdb8dc91ff81b52e82b5bc4775dad88"),
    "dtd10": ("dtd10.npz", "20fb1107b6e6fd8ab391e6900a58e41edd03f69bafacd2612c55581d7321c549"),
    "cars": ("cars.npz", "d5a61619ed75097d29b637c8da9e0b055c676e221360af8d4517164d27ccf6b4"),
    "scenes15": ("scenes15.npz", "08a4d9a70bd385a2271d085babb32a252928728f6c793a67c628e5ecf4333c9d"),
    "cifar10": ("cifar10.npz", "5e232392b78c64ab4c7745701775a2dd483361f9cc212e43637a3fb832692c41"),
    "fashion_mnist": (
        "extra/fashion_mnist.npz",
        "905215332fd99537f5fcdf7ae1fe85a5862eab77bdc2f5bde77f798eb74b751c",
    ),
    "sign_digits": (
        "extra/sign_digits.npz",
        "bcad62394f0af2eebb1f25f9c2248a8b41a6b888a344935a11b3a386100291ed",
    ),
}
CORE = tuple(BUNDLE)[:8]
TEXTS = {"text": "files", "text-hub": "hub"}  # the suites of texts, and where their tasks come from


class _Source(NamedTuple):
    """A task as it was read: `where` names it in errors."""

    name: str
    where: str
    arrays: _arrays.Arrays
    sha256: str


def load_tasks(
    names: Iterable[str] | None = None,
    *,
    suite: str = "bundle",
    folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Tasks by name, each in a train, a validation and a test part that have no image or text in common.

    The test part is the data set's own and the same for all seeds. A tenth of the training part, at most
    5,000 images, validates. Images of one group (track, photo) and exact copies stay on one side, and
    training images of which an exact copy stands in the test part are left out. Nothing is augmented: images
    are as they were stored, those of many sizes (see `downloads`) went through the test transform.

    Args:
        names: the tasks; by default all of the suite (of "bundle" and "hub" the first eight).
        suite: "bundle" (files of real images, checksums checked), "torchvision" (downloaded on first use),
            "digits" (scikit-learn's digits in seven views, 8 x 8 grey), "hub" (the benchmarks of CLIP merging
            at 224 pixels, downloaded on first use; `hub.load` has more options), "text" (files of texts in
            the folder `text`) or "text-hub" (downloaded from Hugging Face), for encoders of texts.
        folder: where the files are, or go; by default the environment variable TASKVEC_MINI_DATA tells it.
        limit: keep at most that many training examples, the first of the shuffled order; nothing else
            changes.
        seed: decides the validation part and the order.

    Returns:
        The tasks in the order asked: each an `ImageTask`, or a `TextTask` of the suites of texts.

    Raises:
        ValueError: for an unknown name or suite, no folder, a damaged file, or labels that do not fit.
        FileNotFoundError: if the folder or a file is missing.
        OSError: if a download fails or the disk is full.

    Example:
        >>> load_tasks(["digits"], suite="digits", limit=100)["digits"]
        ImageTask('digits', 10 classes, 8x8, 100 train, 135 val, 449 test)
    """
    _checks.named_choice("suite", suite, {**_SUITES, "hub": hub.load, **TEXTS})
    if suite in TEXTS:
        return dict(load_text_tasks(names, source=TEXTS[suite], folder=folder, limit=limit, seed=seed))
    seed = _checks.whole_number("seed", seed, minimum=0)
    if limit is not None:
        limit = _checks.whole_number("limit", limit)
    wanted = [names] if isinstance(names, str) else names
    if suite == "hub":
        return dict(
            hub.load(_chosen(wanted, hub.SOURCES, hub.EIGHT), _folder(folder, suite), limit=limit, seed=seed)
        )
    return {source.name: _task(source, limit=limit, seed=seed) for source in _SUITES[suite](wanted, folder)}


def _bundle(names: Iterable[str] | None, folder: str | os.PathLike[str] | None) -> Iterator[_Source]:
    chosen = _chosen(names, BUNDLE, CORE)
    place = _folder(folder, "bundle")
    if not place.is_dir():
        raise MissingFileError(
            f"{place} is no folder; give the folder of mnist.npz and the others as folder=... or in the "
            f"environment variable {FOLDER_VARIABLE}, or take suite='torchvision' or 'digits' (on the "
            "command line: --data FOLDER, --suite)"
        )
    for name in chosen:
        file, sha256 = BUNDLE[name]
        if not (place / file).is_file():
            raise MissingFileError(
                f"{place / file} is missing; copy it there, or leave the task {name!r} out"
            )
        arrays = _arrays.read(place / file, sha256, remedy="copy the file again from where it came from")
        yield _Source(name, str(place / file), arrays, sha256)


def _torchvision(names: Iterable[str] | None, folder: str | os.PathLike[str] | None) -> Iterator[_Source]:
    chosen = _chosen(names, downloads.SOURCES, tuple(downloads.SOURCES))
    place = _folder(folder, "torchvision")
    for name in chosen:
        path, arrays, sha256 = downloads.load(name, place)
        yield _Source(name, str(path), arrays, sha256)


def _digits(names: Iterable[str] | None, _folder: object) -> Iterator[_Source]:
    tasks = digit_tasks()
    for name in _chosen(names, tasks, tuple(tasks)):
        task, arrays = tasks[name], {}
        for part in ("train", "test"):
            pixels = getattr(task, f"{part}_inputs").reshape(-1, 8, 8) * 255
            arrays[f"{part}_images"] = pixels.round().to(torch.uint8).numpy()
            arrays[f"{part}_labels"] = getattr(task, f"{part}_labels").numpy()
        arrays["class_names"] = np.array(task.class_names)
        yield _Source(name, f"task {name!r}", arrays, _arrays.checksum(arrays))


_SUITES = {"bundle": _bundle, "torchvision": _torchvision, "digits": _digits}


def _chosen(names: Iterable[str] | None, known: Mapping[str, object], default: tuple[str, ...]) -> list[str]:
    chosen = _checks.not_empty("names", default if names is None else names)
    for name in chosen:
        _checks.named_choice("task", name, known)
    return chosen


def _folder(folder: str | os.PathLike[str] | None, suite: str) -> Path:
    given = os.environ.get(FOLDER_VARIABLE) if folder is None else folder
    if not given:
        raise UserError(
            f"suite {suite!r} needs a folder: give folder=... or set the environment variable "
            f"{FOLDER_VARIABLE} to the folder of the data; suite='digits' needs none (on the command line: "
            "--data FOLDER, --suite digits)"
        )
    return Path(given).expanduser()


def _task(source: _Source, *, limit: int | None, seed: int) -> ImageTask:
    """The task of a source, split; errors name the file it came from."""
    try:
        return _split(source.name, source.arrays, source.sha256, limit=limit, seed=seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{source.where}: {error}") from error


def _split(name: str, arrays: _arrays.Arrays, sha256: str, *, limit: int | None, seed: int) -> ImageTask:
    class_names = tuple(map(str, arrays["class_names"]))
    images, labels = _part(arrays, "train", len(class_names))
    test_images, test_labels = _part(arrays, "test", len(class_names))
    groups = _groups(arrays, len(labels))
    fingerprints = splits.contents(images)
    fresh = splits.without_test_images(fingerprints, splits.contents(test_images))
    train, val = splits.validation_split(
        [fingerprints[i] for i in fresh.tolist()], None if groups is None else groups[fresh], seed=seed
    )
    train, val = fresh[train][:limit], fresh[val]
    return ImageTask(
        name,
        class_names,
        images[train],
        labels[train],
        images[val],
        labels[val],
        test_images,
        test_labels,
        sha256,
    )


def _part(arrays: _arrays.Arrays, part: str, classes: int) -> tuple[Tensor, Tensor]:
    images, labels = (_tensor(arrays[f"{part}_{what}"]) for what in ("images", "labels"))
    check_part(part, images, labels, classes=classes)
    return images, labels


def _groups(arrays: _arrays.Arrays, images: int) -> Tensor | None:
    """The group of each training image; an error where a group stands in the test part too."""
    if "train_groups" not in arrays:
        return None
    groups = _tensor(arrays["train_groups"])
    if groups.shape != (images,):
        raise UserError(f"train_groups has shape {tuple(groups.shape)} for {images} images; give one each")
    both = np.intersect1d(arrays["train_groups"], arrays.get("test_groups", np.array([], dtype=np.int64)))
    if len(both):
        raise UserError(
            f"{len(both)} group(s) stand in the train and in the test part, the first is {both[0]}; "
            "the test part is leaked: split it anew by group"
        )
    return groups


def _tensor(array: _arrays.Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
