"""The suites of tasks, and the one door to them: `load_tasks`.

Images stay uint8 until an encoder prepares them, texts come as token ids.
"""

from __future__ import annotations

import functools
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskvec_mini import _checks, _files, tasks
from taskvec_mini.benchmarks.data import hub, image_files, own, texts, torchvision_sets
from taskvec_mini.benchmarks.data import tokenizer as tokenizers
from taskvec_mini.benchmarks.data.tasks import DATA_VARIABLE, PARTS
from taskvec_mini.benchmarks.data.texts import TextTokenizer
from taskvec_mini.errors import MissingFileError, UserError

Row = dict[str, object]
_ANEW = "delete it and make it anew with `python -m taskvec_mini.benchmarks data`"


@dataclass(frozen=True)
class Suite:
    """Tasks that come from one place.

    Attributes:
        name: what `load_tasks` takes.
        description: what it is, in a few words.
        unit: what its tasks are made of, "images" or "texts".
        names: gives the names of all its tasks; of a suite whose tasks are the user's, none.
        read: gives of a name, and the folder of the data, where the task is, for messages, its two parts (as
            `image_task` or `text_task` takes them) and their sha256; None where `hub.load` does it all.
        row: gives what there is to say about a name, see `overview`.
        most: how many of its tasks, the first, are meant where none are named; None for all.
        needs_folder: whether it keeps files in the folder of the data.
        subfolder: where in that folder they are.
        downloads: whether it downloads what is not yet there.
        drop_near_duplicates: whether near duplicates are left out of validation and test (see `duplicates`).
        how_to_get: what to do where there is no folder.
        find: gives the names of the tasks in a folder, where they are the user's.
    """

    name: str
    description: str
    unit: str
    names: Callable[[], Iterable[str]]
    read: Callable[[str, Path], tuple[str, Any, str]] | None
    row: Callable[[str, Path | None], Row]
    most: int | None = None
    needs_folder: bool = False
    subfolder: str = ""
    downloads: bool = False
    drop_near_duplicates: bool = False
    how_to_get: str = ""
    find: Callable[[Path], tuple[str, ...]] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of all its tasks; none where they are the user's."""
        return tuple(self.names())

    @property
    def default_tasks(self) -> tuple[str, ...]:
        """The names of the tasks that are meant where none are named."""
        return self.tasks[: self.most]

    def overview(self, folder: str | os.PathLike[str] | None = None) -> list[Row]:
        """A row for each task: its sizes where they are known, else where it is. Nothing is downloaded.

        Args:
            folder: the folder of the data, if there is one.

        Example:
            >>> SUITES["torchvision"].overview()[0]
            {'task': 'mnist', 'train + val': '60,000', 'test': '10,000', '': 'not yet there'}
        """
        place = None if folder is None else Path(folder).expanduser()
        names = self.find(place) if self.find and place else self.tasks
        rows = [self.row(name, place) for name in names]
        return rows if rows or self.find is None else [{"task": "none", "": self.how_to_get}]


def load_tasks(
    names: Iterable[str] | None = None,
    *,
    suite: str = "bundle",
    folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    tokenizer: TextTokenizer | None = None,
) -> dict[str, Any]:
    """Tasks by name, each in a train, a validation and a test part that share no copy of an image or text.

    The test part is the data set's own and the same for all seeds. A tenth of the training part, at most
    5,000 examples, validates. Images of one group (track, photo), exact copies, and texts that are equal but
    for letter case and white space stay on one side, and training examples of which a copy stands in the
    test part are left out. Nothing is augmented: images are as they were stored, those of many sizes (see
    `torchvision_sets`) went through the test transform.

    Near duplicates, images of nearly the same pixels, are left out of the validation and the test part of
    the suites "large" and "folder". The other suites have the test parts as published, for the recorded
    studies used them; of "bundle", 20 of the 1,600 test images of dtd10, 7 of the 1,200 of scenes15, 11 of
    the 2,000 of fashion_mnist and 2 of the 2,000 of mnist are near duplicates of images to learn from.
    `near_duplicates(task)` finds them and `without_near_duplicates(task)` leaves them out.

    Args:
        names: the tasks; by default all of the suite (of "bundle", "hub" and the texts the first eight).
        suite: "bundle" (files of real images, checksums checked), "large" (the same tasks at up to 96
            pixels), "torchvision" (downloaded on first use),
            "digits" (scikit-learn's digits in seven views, 8 x 8 grey), "hub" (the benchmarks of CLIP merging
            at 224 pixels, downloaded on first use; `hub.load` has more options), "text" (files of texts in
            the folder `text`) or "text-hub" (downloaded from Hugging Face), for encoders of texts; and tasks
            of your own: "folder" (images in class folders) or "csv" (texts and labels), see `own`.
        folder: where the files are, or go; by default the environment variable TASKVEC_MINI_DATA tells it.
        limit: keep at most that many training examples, the first of the shuffled order; nothing else
            changes.
        seed: decides the validation part and the order.
        tokenizer: turns texts into token ids; by default that of the encoder "pocket-text".

    Returns:
        The tasks in the order asked: each an `ImageTask`, or a `TextTask` of the suites of texts.

    Raises:
        ValueError: for an unknown name or suite, a name given twice, no folder, a damaged file, or labels
            that do not fit.
        FileNotFoundError: if the folder or a file is missing.
        OSError: if a download fails or the disk is full.
        ImportError: if a package is missing that is needed only here.

    Example:
        >>> load_tasks(["digits"], suite="digits", limit=100)["digits"]
        ImageTask('digits', 10 classes, 8x8, 100 train, 135 val, 449 test)
    """
    asked = _checks.named_choice("suite", suite, SUITES)
    known = asked.tasks if asked.find is None else asked.find(data_folder(asked, folder))
    wanted = known[: asked.most] if names is None else [names] if isinstance(names, str) else names
    chosen = _checks.not_empty("names", wanted)
    for name in chosen:
        _checks.named_choice("task", name, dict.fromkeys(known))
    _checks.each_once("task", chosen)
    seed = _checks.seed("seed", seed)
    if limit is not None:
        limit = _checks.whole_number("limit", limit)
    if tokenizer is not None and asked.unit != "texts":
        raise UserError(f"suite {suite!r} has no texts to cut into tokens; leave tokenizer=... out")
    place = data_folder(asked, folder) if asked.needs_folder else Path()
    if asked.read is None:
        return dict(hub.load(chosen, place, limit=limit, seed=seed))
    if asked.unit == "texts" and tokenizer is None:
        tokenizer = tokenizers.load_tokenizer()
    found: dict[str, Any] = {}
    for name in chosen:
        where, parts, sha256 = asked.read(name, place)
        made: dict[str, Any] = {"sha256": sha256, "limit": limit, "seed": seed}
        try:
            if tokenizer is None:
                task = image_files.image_task(
                    name, parts, drop_near_duplicates=asked.drop_near_duplicates, **made
                )
                if asked.find is not None:
                    own.warn_of_left_out(name, task.left_out)
                found[name] = task
            else:
                labels = sorted(set(parts[0].names))
                classes = texts.sources()[name].classes if asked.find is None else tuple(labels)
                found[name] = texts.text_task(name, parts, classes=classes, tokenizer=tokenizer, **made)
        except UserError as error:
            raise type(error)(f"{where}: {error}") from error
    return found


def data_folder(asked: Suite, folder: str | os.PathLike[str] | None) -> Path:
    """The folder of a suite's data.

    Args:
        asked: the suite.
        folder: of the data; None for the one that the environment variable TASKVEC_MINI_DATA names.

    Raises:
        UserError: if none is given; the message says how, and what else there is.
        MissingFileError: if there is no such folder.
    """
    given = os.environ.get(DATA_VARIABLE) if folder is None else folder
    without = (
        f"{asked.how_to_get}; suite='digits' needs no folder (on the command line: --data FOLDER, "
        "--suite digits)"
    )
    if not given:
        raise UserError(
            f"suite {asked.name!r} needs a folder: give folder=... or set the environment variable "
            f"{DATA_VARIABLE} to the folder of the data; {without}"
        )
    place = Path(given).expanduser()
    if not asked.downloads and not (place / asked.subfolder).is_dir():
        raise MissingFileError(
            f"{place / asked.subfolder} is no folder; give the folder of the data as folder=... or in the "
            f"environment variable {DATA_VARIABLE}; {without}"
        )
    if asked.find is not None and not asked.find(place):
        raise MissingFileError(f"{place} holds no task; {asked.how_to_get}")
    return place


class _Uncut:
    """No tokenizer: for the sizes of a task no text need be cut into tokens."""

    sha256 = ""

    def encode(self, texts: list[str]) -> Tensor:
        return torch.ones(len(texts), 1, dtype=torch.int32)


def _loaded_row(name: str, folder: Path | None, *, suite: str) -> Row:
    """A row with a task's sizes, or with what is wrong with its data; without a folder, with its files."""
    if suite in file_tables() and folder is None:
        return {"task": name, "file": file_tables()[suite][name].file}
    if suite == "text" and folder is None:
        return {"task": name, "files": ", ".join(texts.file_checksums(name))}
    row: Row = dict.fromkeys(("task", "classes", *(() if suite == "text" else ("pixels",)), *PARTS), "-")
    row |= {"task": name, "": ""}
    try:
        tokenizer = _Uncut() if suite == "text" else None
        task = load_tasks([name], suite=suite, folder=folder, tokenizer=tokenizer)[name]
    except UserError as error:
        return row | {"": error}
    if suite != "text":
        shape = task.train_images.shape
        row["pixels"] = f"{shape[1]}x{shape[2]} {'grey' if len(shape) == 3 else 'colour'}"
    sizes = {part: f"{len(task.part(part)[1]):,}" for part in PARTS}
    return row | sizes | {"classes": str(len(task.class_names))}


# --- bundle and large: files of images --------------------------------------------------------------------


@dataclass(frozen=True)
class BundleFile:
    """A file of the suite "bundle" or "large"; the tables `bundle.toml` and `large.toml` have them.

    Attributes:
        file: its place below the folder of the data.
        sha256: its checksum.
        contents: that of the arrays in it, see `image_files.contents`: the same arrays may be packed into
            other bytes by another version of zlib.
        grey: whether images in it that are to be decoded have no colours.
    """

    file: str
    sha256: str
    contents: str = ""
    grey: bool = False


@functools.cache
def bundle_files() -> Mapping[str, BundleFile]:
    """The files of the suite "bundle", by the names of the tasks."""
    return _read_table("bundle.toml")


@functools.cache
def large_files() -> Mapping[str, BundleFile]:
    """The files of the suite "large", by the names of the tasks."""
    return _read_table("large.toml")


def _read_table(name: str) -> Mapping[str, BundleFile]:
    with open(Path(__file__).with_name(name), "rb") as table:
        return {name: BundleFile(**entry) for name, entry in tomllib.load(table).items()}


def file_tables() -> Mapping[str, Mapping[str, BundleFile]]:
    """The files of the suites that have some, by suite and task."""
    return {"bundle": bundle_files(), "large": large_files()}


def checked_file(name: str, folder: Path, *, suite: str) -> tuple[Path, str]:
    """Where the file of a task is, and the sha256 of its data.

    A file that `obtain` made has its own checksum beside it. Where its arrays are those of the records, what
    is returned is the checksum of the records' file.

    Raises:
        MissingFileError: if it is not there.
        UserError: if it is damaged.
    """
    known = file_tables()[suite][name]
    path = folder / known.file
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing; make it with `python -m taskvec_mini.benchmarks data --tasks {name} --out "
            f"FOLDER`, or leave the task {name!r} out"
        )
    if not image_files.checksum_file(path).is_file():
        _files.check_sha256(path, known.sha256, remedy=_ANEW)
        return path, known.sha256
    sha256 = image_files.recorded_checksum(path)
    _files.check_sha256(path, sha256, remedy=_ANEW)
    return path, known.sha256 if image_files.contents(path, remedy=_ANEW) == known.contents else sha256


def _large_row(name: str, folder: Path | None) -> Row:
    """A row with a task's file and what is wrong with it; it is not loaded, for decoding takes a while."""
    row: Row = {"task": name, "file": large_files()[name].file}
    if folder is None:
        return row
    try:
        checked_file(name, folder, suite="large")
    except UserError as error:
        return row | {"": error}
    return row | {"": "there"}


def _read_file(name: str, folder: Path, *, suite: str) -> tuple[str, image_files.Arrays, str]:
    path, sha256 = checked_file(name, folder, suite=suite)
    grey = file_tables()[suite][name].grey
    return str(path), image_files.read_arrays(path, remedy=_ANEW, grey=grey), sha256


# --- digits: images of scikit-learn ----------------------------------------------------------------------


@functools.cache
def _digits() -> Mapping[str, tasks.Task]:
    return tasks.digit_tasks()


def _read_digits(name: str, _: Path) -> tuple[str, image_files.Arrays, str]:
    task = _digits()[name]
    arrays: dict[str, image_files.Array] = {"class_names": np.array(task.class_names)}
    for part, inputs, labels in (
        ("train", task.train_inputs, task.train_labels),
        ("test", task.test_inputs, task.test_labels),
    ):
        arrays[f"{part}_images"] = (inputs.reshape(-1, 8, 8) * 255).round().to(torch.uint8).numpy()
        arrays[f"{part}_labels"] = labels.numpy().copy()  # another caller gets its own
    return f"task {name!r}", arrays, image_files.checksum(arrays)


# --- torchvision and hub: images that are downloaded ------------------------------------------------------


def _torchvision_row(name: str, folder: Path | None) -> Row:
    train, test = torchvision_sets.sources()[name].sizes
    prepared = folder is not None and torchvision_sets.is_prepared(name, folder)
    return {
        "task": name,
        "train + val": f"{train:,}",
        "test": f"{test:,}",
        "": "there" if prepared else "not yet there",
    }


def _hub_row(name: str, folder: Path | None) -> Row:
    source = hub.sources()[name]
    return {
        "task": name,
        "train + val": f"{source.sizes[0]:,}",
        "test": f"{source.sizes[1]:,}",
        "classes": str(source.classes),
        "download MB": f"about {source.megabytes:,}",
        "images MB": f"{source.bytes_of(sum(source.sizes), hub.IMAGE_SIZE) / 10**6:,.0f}",
        "repository": source.repository,
        "also in suite": "torchvision" if source.torchvision else "-",
        "": "there" if folder is not None and hub.is_prepared(name, folder) else "not yet there",
    }


# --- text and text-hub -----------------------------------------------------------------------------------


def _text_hub_row(name: str, _: Path | None) -> Row:
    source = texts.sources()[name]
    return {"task": name, "repository": source.repository, "config": source.config or "-"}


# --- folder and csv: tasks of the user -------------------------------------------------------------------


def _own_row(name: str, _: Path | None) -> Row:
    return {"task": name}


# --- the table -------------------------------------------------------------------------------------------

_MAKE = (
    "its files do not come with the library, `python -m taskvec_mini.benchmarks data --out FOLDER` makes "
    "them from public sources"
)
_EMPTY = "any folder with room will do, what is missing is downloaded into it"
SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="bundle",
            description="real images in small files",
            unit="images",
            names=bundle_files,
            read=functools.partial(_read_file, suite="bundle"),
            row=functools.partial(_loaded_row, suite="bundle"),
            most=8,
            needs_folder=True,
            how_to_get=_MAKE,
        ),
        Suite(
            name="large",
            description="the tasks of bundle with larger images, up to 96 pixels a side",
            unit="images",
            names=large_files,
            read=functools.partial(_read_file, suite="large"),
            row=_large_row,
            most=8,
            needs_folder=True,
            drop_near_duplicates=True,
            how_to_get=_MAKE,
        ),
        Suite(
            name="torchvision",
            description="public data sets, downloaded on first use",
            unit="images",
            names=torchvision_sets.sources,
            read=torchvision_sets.load,
            row=_torchvision_row,
            needs_folder=True,
            subfolder="torchvision",
            downloads=True,
            how_to_get=_EMPTY,
        ),
        Suite(
            name="hub",
            description="benchmarks of CLIP merging, downloaded on first use",
            unit="images",
            names=hub.sources,
            read=None,  # all are asked for before the first is fetched, and images stay on the disk
            row=_hub_row,
            most=8,
            needs_folder=True,
            subfolder="hub",
            downloads=True,
            how_to_get=_EMPTY,
        ),
        Suite(
            name="digits",
            description="scikit-learn's small digits, nothing to download",
            unit="images",
            names=_digits,
            read=_read_digits,
            row=functools.partial(_loaded_row, suite="digits"),
        ),
        Suite(
            name="text",
            description="short English texts in small files",
            unit="texts",
            names=texts.sources,
            read=texts.read_files,
            row=functools.partial(_loaded_row, suite="text"),
            most=8,
            needs_folder=True,
            subfolder="text",
            how_to_get=f"{_MAKE}; suite='text-hub' downloads the same tasks",
        ),
        Suite(
            name="text-hub",
            description="the same tasks, other subsets, downloaded from Hugging Face on first use",
            unit="texts",
            names=texts.sources,
            read=lambda name, _: texts.read_hub(name),
            row=_text_hub_row,
            most=8,
            downloads=True,
        ),
        Suite(
            name="folder",
            description="your own images, in class folders",
            unit="images",
            names=tuple,
            find=own.image_tasks,
            read=own.read_images,
            row=_own_row,
            needs_folder=True,
            drop_near_duplicates=True,
            how_to_get=own.HOW_IMAGES,
        ),
        Suite(
            name="csv",
            description="your own texts, in CSV files",
            unit="texts",
            names=tuple,
            find=own.text_tasks,
            read=own.read_texts,
            row=_own_row,
            needs_folder=True,
            how_to_get=own.HOW_TEXTS,
        ),
    )
}
