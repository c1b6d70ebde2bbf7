"""The Hugging Face Hub: is a data set there, how large are its files; and is it what it should be?"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskvec_mini.benchmarks._arrays import Array
from taskvec_mini.benchmarks.data.hub_tables import SOURCES, Source
from taskvec_mini.benchmarks.data.torchvision_sets import full_disk
from taskvec_mini.errors import FileError, MissingFileError, UserError

PARTS = ("train", "test")
_TIMEOUT = 10.0  # seconds until an unanswered question to the Hub is an error
_SPELLINGS = {"cra": "crab"}  # CIFAR-100's card has lost a letter


@dataclass(frozen=True)
class Offer:
    """What the Hub has of a task: which files of which revision, and how many bytes."""

    name: str
    source: Source
    revision: str
    files: dict[str, list[str]]
    size: int


def ask(name: str, revision: str | None) -> Offer:
    """What the Hub has of a task: one request, answered within seconds.

    Raises:
        PermissionError: if the data set wants a login.
        ValueError: if it has no such revision.
        FileNotFoundError: if it was moved, deleted or made private.
        OSError: if the Hub cannot be asked.
    """
    source, hub, errors = SOURCES[name], extra("huggingface_hub"), extra("huggingface_hub.errors")
    api, page = hub.HfApi(), f"https://huggingface.co/datasets/{source.repository}"
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
            f"{what} could not be asked for ({_words(error)}); look at the network connection and call "
            f"again, or copy the folder 'hub' from a machine that has one{_route(source)}"
        ) from error
    return _offer(name, source, info)


def _offer(name: str, source: Source, info: Any) -> Offer:
    """The files of both parts; an error where a part has none."""
    start = f"{source.config}/" if source.config else ""
    sizes = {each.rfilename: each.size for each in info.siblings or ()}
    files = {
        part: sorted(
            file
            for file in sizes
            if file.startswith(start) and re.fullmatch(rf"(.*/)?{part}-\d+-of-\d+(-\w+)?\.parquet", file)
        )
        for part in PARTS
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
    return Offer(name, source, str(info.sha), files, total)


def _route(source: Source) -> str:
    return "; suite='torchvision' has it too" if source.torchvision else ""


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(" .:")


# --- fetching and checking -------------------------------------------------------------------------------


def fetch(offer: Offer) -> Mapping[str, Any]:
    """The two parts through `datasets`; its own errors, of many kinds, become an OSError with the remedy."""
    source = offer.source
    try:
        parts: Mapping[str, Any] = extra("datasets").load_dataset(
            source.repository,
            name=source.config,
            data_files=offer.files,  # without them all other parts would come too
            revision=offer.revision,
            verification_mode="no_checks",  # it would miss those parts
        )
    except Exception as error:
        raise _explained(offer, error) from error
    return parts


def _explained(offer: Offer, error: BaseException) -> OSError:
    """The error to raise: what failed, why, and what to do."""
    return disk_full(offer, error) or OSError(
        f"task {offer.name!r} could not be fetched from {offer.source.repository} ({_words(error)}); call "
        f"again: what arrived whole is kept{_route(offer.source)}"
    )


def disk_full(offer: Offer, error: BaseException) -> OSError | None:
    """An error with the remedy where a full disk is behind an error, else None."""
    full = full_disk(error)
    return full and OSError(
        full.errno,
        f"the disk is full while task {offer.name!r} was being made ({_words(full)}); free some "
        "space, give another folder, or set HF_HOME to a folder on a larger disk, and call again",
    )


def class_names(source: Source, parts: Mapping[str, Any]) -> list[str]:
    """The names of the classes; a ValueError where a column is missing or a label means something else."""
    names: dict[str, list[str]] = {}
    for part in PARTS:
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
    listed = [list(parts[part][source.label]) for part in PARTS]
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


def extra(module: str) -> Any:
    """A module of the extra "data", imported on use: it takes seconds, and nothing else needs it.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"suite 'hub' needs Hugging Face's datasets ({error}); "
            'install it with: python -m pip install "taskvec-mini[data]"'
        ) from error
