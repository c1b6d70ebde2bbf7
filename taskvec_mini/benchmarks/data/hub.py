"""The eight image benchmarks of CLIP merging, and CIFAR-100, through Hugging Face `datasets`.

Before anything is fetched, the Hub is asked once for each data set: is it there, is it open, how large are
its files. Only the files of the parts "train" and "test" are downloaded; some repositories hold several times
as much. Then columns, counts and the order of the classes are checked, and the images are decoded once into
a folder (see `image_store`), which later calls use without a network.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskvec_mini import _checks, _imports, scores
from taskvec_mini.benchmarks.data import image_store
from taskvec_mini.benchmarks.data.image_files import Array, full_disk
from taskvec_mini.benchmarks.data.tasks import ImageTask
from taskvec_mini.errors import FileError, MissingFileError, UserError

IMAGE_SIZE = 224  # pixels a side, as CLIP's B/32, B/16 and L/14 take them
_PARTS = ("train", "test")
_TIMEOUT = 10.0  # seconds until an unanswered question to the Hub is an error
_SPELLINGS = {"cra": "crab"}  # CIFAR-100's card has lost a letter


@dataclass(frozen=True)
class Source:
    """How to have one data set from the Hub, and what it should be; the table `hub.toml` has them.

    Attributes:
        repository: its name on the Hub.
        sizes: the images of its parts "train" and "test".
        classes: how many there are.
        names: what a label should mean, for all labels or (Cars, GTSRB, SUN397) for some that tell the order.
        megabytes: about what the two parts are to download.
        pixels: the side of its images where all are squares of one size.
        grey: whether they have no colours.
        image, label: the columns.
        config: the configuration, where it has several.
        torchvision: whether the suite "torchvision" has the same images in the same parts.
    """

    repository: str
    sizes: tuple[int, int]
    classes: int
    names: Mapping[int, str]
    megabytes: int
    pixels: int | None = None
    grey: bool = False
    image: str = "image"
    label: str = "label"
    config: str | None = None
    torchvision: bool = False

    def side(self, size: int) -> int:
        """The side, in pixels, of its images once they are prepared: small squares are kept as they are."""
        return size if self.pixels is None else min(size, self.pixels)

    def bytes_of(self, images: int, size: int) -> int:
        """What so many prepared images take, in memory and on the disk.

        Example:
            >>> sources()["sun397"].bytes_of(19_850, 224), sources()["svhn"].bytes_of(1, 224)
            (2987980800, 3072)
        """
        return images * self.side(size) ** 2 * (1 if self.grey else 3)


@functools.cache
def sources() -> Mapping[str, Source]:
    """The data sets by name; the first eight are the benchmarks of the literature, in its order."""
    with open(Path(__file__).with_name("hub.toml"), "rb") as file:
        table = tomllib.load(file)
    for entry in table.values():
        names = entry["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        entry["names"] = {int(label): name for label, name in pairs}
        entry["sizes"] = tuple(entry["sizes"])
    return {name: Source(**entry) for name, entry in table.items()}


def load(
    names: Iterable[str] | None,
    folder: str | os.PathLike[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    size: int = IMAGE_SIZE,
    revisions: Mapping[str, str] | None = None,
    other_counts: bool = False,
) -> dict[str, ImageTask]:
    """Tasks by name: downloaded and decoded at the first call, afterwards mapped from the disk.

    A tenth of the training images, at most 5,000, validates; none of these data sets has a validation part of
    its own. No exact copy of a training image stands in validation or test: copies of test images are left
    out of training, and copies within the training images stay on one side. Images that show the same thing
    in other pixels are not noticed: of GTSRB's thirty frames of a sign some may validate what others trained
    (the suite "torchvision" keeps them together).

    Args:
        names: of `sources`; None for the eight benchmarks.
        folder: the images go to its folder `hub`.
        limit: keep at most that many training images, the first of the shuffled order.
        seed: decides the validation part and the order. With seed 0 the images stay on the disk; with another
            one those of training and validation are copied into memory.
        size: pixels a side. Images of one small square size (MNIST, SVHN, EuroSAT, CIFAR-100) are kept as
            they are; all others get their shorter side resized (bicubic, antialiased) and the middle cut out.
        revisions: a commit of the repository, by the task's name; by default the newest.
        other_counts: take a data set whose parts have other sizes than documented, or classes without images.

    Returns:
        The tasks in the order asked.

    Raises:
        ImportError: if `datasets` is not installed and something has to be fetched.
        ValueError: for an unknown name, a damaged file, or a data set whose columns, counts or classes are
            not the documented ones.
        OSError: if the Hub does not answer, wants a login, or has no such repository; if the disk is too
            small.
    """
    chosen = _checks.not_empty("names", tuple(sources())[:8] if names is None else names)
    pinned = dict(revisions or {})
    for name in (*chosen, *pinned):
        _checks.named_choice("task", name, sources())
    _checks.each_once("task", chosen)
    seed = _checks.seed("seed", seed)
    size = _checks.whole_number("size", size)
    places = {name: _folder(name, folder, size) for name in chosen}
    missing = [name for name in places if not image_store.is_prepared(places[name])]
    for name, place in places.items():
        if name in pinned and name not in missing:
            found = str(image_store.read_about(place).get("revision"))
            if not found.startswith(pinned[name]):
                raise UserError(
                    f"{place} was made from revision {found}, not from {pinned[name]}; delete it, or give "
                    "another folder"
                )
    if missing:
        cache = Path(_extra("datasets").config.HF_DATASETS_CACHE)  # before anything is asked of a network
        listings = [ask(name, pinned.get(name)) for name in missing]
        _check_room(listings, places[missing[0]].parent, cache=cache, size=size)
        for listing in listings:
            _make(listing, places[listing.name], size, other_counts=other_counts)
    return {name: image_store.task(name, place, limit=limit, seed=seed) for name, place in places.items()}


def is_prepared(name: str, folder: str | os.PathLike[str]) -> bool:
    """Whether the images of a data set, at the usual size, are below `folder`: `load` downloads nothing."""
    return image_store.is_prepared(_folder(name, folder, IMAGE_SIZE))


def _folder(name: str, folder: str | os.PathLike[str], size: int) -> Path:
    return Path(folder).expanduser() / "hub" / f"{name}_{size}"


# --- asking the Hub, and the disk ------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """What the Hub has of a task: which files of which revision, and how many bytes."""

    name: str
    source: Source
    revision: str
    files: dict[str, list[str]]
    size: int


def ask(name: str, revision: str | None = None) -> Listing:
    """What the Hub has of a task: one request, answered within seconds.

    Raises:
        ValueError: if it has no such revision, or a part without files.
        FileNotFoundError: if it was moved, deleted or made private.
        OSError: if the data set wants a login, or the Hub cannot be asked.
    """
    source, library, errors = sources()[name], _extra("huggingface_hub"), _extra("huggingface_hub.errors")
    api, page = library.HfApi(), f"https://huggingface.co/datasets/{source.repository}"
    what = f"task {name!r}: the data set {source.repository}"
    try:
        info = api.dataset_info(source.repository, revision=revision, timeout=_TIMEOUT, files_metadata=True)
        if info.gated:
            api.auth_check(source.repository, repo_type="dataset")
    except errors.GatedRepoError as error:
        raise FileError(
            f"{what} wants a login: accept its terms at {page}, then run `hf auth login`{_route(source)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{what} has no revision {revision!r}; {page}/commits/main lists them") from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFileError(
            f"{what} is not on the Hub: it was moved, deleted or made private; look at {page}{_route(source)}"
        ) from error
    except Exception as error:  # of one of several network libraries
        raise FileError(
            f"{what} could not be asked for ({_line(error)}); look at the network connection and call "
            f"again, or copy the folder 'hub' from a machine that has one{_route(source)}"
        ) from error
    start = f"{source.config}/" if source.config else ""
    sizes = {each.rfilename: each.size for each in info.siblings or ()}
    files = {
        part: sorted(
            file
            for file in sizes
            if file.startswith(start) and re.fullmatch(rf"(.*/)?{part}-\d+-of-\d+(-\w+)?\.parquet", file)
        )
        for part in _PARTS
    }
    for part, found in files.items():
        if not found:
            raise UserError(
                f"task {name!r}: {source.repository} at revision {info.sha} has no files "
                f"{start}.../{part}-*.parquet but {', '.join(sorted(sizes)[:5]) or 'nothing'}; it has "
                f"changed: pin an older revision{_route(source)}"
            )
    listed = [sizes[file] for found in files.values() for file in found]
    total = source.megabytes * 10**6 if None in listed else sum(listed)
    return Listing(name, source, str(info.sha), files, total)


def _check_room(listings: list[Listing], target: Path, *, cache: Path, size: int) -> None:
    """Say what is to come, make the folders for it, and refuse it where a disk is too small."""
    images = {each.name: each.source.bytes_of(sum(each.source.sizes), size) for each in listings}
    print(f"to be downloaded from the Hugging Face Hub and decoded into {target}:")
    rows: list[dict[str, object]] = [
        {
            "task": each.name,
            "repository": each.source.repository,
            "revision": each.revision[:8],
            "download MB": _megabytes(each.size),
            "images MB": _megabytes(images[each.name]),
            "train images MB": _megabytes(each.source.bytes_of(each.source.sizes[0], size)),
        }
        for each in listings
    ]
    print(scores.table(rows))
    needs = {
        cache: 2 * sum(each.size for each in listings),  # as fetched, and unpacked
        target: sum(images.values()) + max(images.values()),  # once more while they are not yet in order
    }
    print(f"{cache} needs {_megabytes(needs[cache])} MB meanwhile; it may be emptied afterwards", flush=True)
    for path in needs:
        path.mkdir(parents=True, exist_ok=True)
    disks: dict[int, list[Path]] = {}
    for path in needs:
        disks.setdefault(path.stat().st_dev, []).append(path)
    for paths in disks.values():
        wanted, free = sum(needs[path] for path in paths), shutil.disk_usage(paths[0]).free
        if wanted > free:
            raise FileError(
                errno.ENOSPC,
                f"the disk of {' and '.join(map(str, paths))} has {_megabytes(free)} MB free, and "
                f"{_megabytes(wanted)} MB are needed: nothing was fetched; ask for fewer tasks, give another "
                "folder, or set the environment variable HF_HOME to a folder on a larger disk",
            )


def _megabytes(size: int) -> str:
    return f"{size / 10**6:,.0f}"


def _route(source: Source) -> str:
    return "; suite='torchvision' has it too" if source.torchvision else ""


# --- fetching and checking -------------------------------------------------------------------------------


def _make(listing: Listing, place: Path, size: int, *, other_counts: bool) -> None:
    """Fetch, check, decode; what was found is printed. Errors say which data set they are about."""
    source = listing.source
    try:
        parts = fetch(listing)
        names = class_names(source, parts)
        found = image_store.make(
            place,
            parts,
            labels(source, parts, other_counts=other_counts),
            column=source.image,
            side=source.side(size),
            pixels=source.pixels,
            grey=source.grey,
            about={
                "task": listing.name,
                "repository": source.repository,
                "revision": listing.revision,
                "size": size,
                "class_names": names,
            },
        )
    except OSError as error:
        full = full_disk(error)
        if full is None:
            raise
        raise FileError(
            full.errno,
            f"the disk is full while task {listing.name!r} was being made ({_line(full)}); free some space, "
            "give another folder, or set HF_HOME to a folder on a larger disk, and call again",
        ) from error
    except UserError as error:
        where = f"{source.repository} at revision {listing.revision}"
        raise UserError(f"task {listing.name!r}, {where}: {error}") from error
    print(
        f"{listing.name}: {found['learnt']:,} images to train and validate on, {found['test']:,} to test; "
        f"left out {found['copies_of_test']:,} training images that are copies of test images; "
        f"{found['copies_in_train']:,} copies among the others stay on one side",
        flush=True,
    )


def fetch(listing: Listing) -> Mapping[str, Any]:
    """The two parts through `datasets`; its own errors, of many kinds, become an OSError with the remedy."""
    source = listing.source
    try:
        parts: Mapping[str, Any] = _extra("datasets").load_dataset(
            source.repository,
            name=source.config,
            data_files=listing.files,  # without them all other parts would come too
            revision=listing.revision,
            verification_mode="no_checks",  # it would miss those parts
        )
    except Exception as error:
        raise FileError(
            f"task {listing.name!r} could not be fetched from {source.repository} ({_line(error)}); call "
            f"again: what arrived whole is kept{_route(source)}"
        ) from error
    return parts


def class_names(source: Source, parts: Mapping[str, Any]) -> list[str]:
    """The names of the classes; a ValueError where a column is missing or a label means something else."""
    names: dict[str, list[str]] = {}
    for part in _PARTS:
        features = parts[part].features
        for column in (source.image, source.label):
            if column not in features:
                raise UserError(
                    f"{part} has no column {column!r} but {', '.join(map(repr, features))}; the repository "
                    "has changed: pin an older revision"
                )
        names[part] = found = list(getattr(features[source.label], "names", None) or ())
        if len(found) != source.classes:
            raise UserError(
                f"{part} names {len(found)} classes in column {source.label!r}, not {source.classes}; "
                "the repository has changed: pin an older revision"
            )
        for label, name in source.names.items():
            if _plain(found[label]) != _plain(name):
                raise UserError(
                    f"class {label} of {part} is {found[label]!r}, not {name!r}: the classes have another "
                    "order, and heads of the documented order would be wrong; pin an older revision"
                )
    if names["train"] != names["test"]:
        raise UserError("train and test name their classes differently; pin an older revision")
    return [_SPELLINGS.get(name, name).replace("_", " ") for name in names["train"]]


def _plain(name: str) -> str:
    """A name without what repositories write in different ways."""
    return re.sub(r"[^a-z0-9]", "", _SPELLINGS.get(name, name).lower())


def labels(source: Source, parts: Mapping[str, Any], *, other_counts: bool) -> Array:
    """The labels of both parts; a ValueError where counts differ from the documented ones."""
    listed = [list(parts[part][source.label]) for part in _PARTS]
    found, empty = tuple(map(len, listed)), set(range(source.classes)) - set(listed[0])
    if (found != source.sizes or empty) and not other_counts:
        lack = f", and {len(empty)} classes have no training image" if empty else ""
        raise UserError(
            f"train and test have {found[0]:,} and {found[1]:,} images, documented are "
            f"{source.sizes[0]:,} and {source.sizes[1]:,}{lack}; pin an older revision, or take it with "
            "hub.load(..., other_counts=True)"
        )
    strange = {each for labels in listed for each in labels} - set(range(source.classes))
    if strange:
        raise UserError(
            f"some images have the label {strange.pop()!r}; the repository has changed: pin an older revision"
        )
    return np.array([each for labels in listed for each in labels], dtype=np.int64)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(" .:")


def _extra(module: str) -> Any:
    return _imports.load(module, needed_for="suite 'hub'", install="taskvec-mini[data]")
