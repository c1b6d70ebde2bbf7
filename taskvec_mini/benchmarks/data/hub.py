"""The eight image benchmarks of CLIP merging, and CIFAR-100, through Hugging Face `datasets`.

Before anything is fetched, the Hub is asked once for each data set: is it there, is it open, how large are
its files. Only the files of the parts "train" and "test" are downloaded; some repositories hold several times
as much. Then columns, counts and the order of the classes are checked, and the images are decoded once into
a folder (see `hub_images`), which later calls use without a network.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskvec_mini import _checks, scores
from taskvec_mini.benchmarks.data import hub_access
from taskvec_mini.benchmarks.data import image_store as hub_images
from taskvec_mini.benchmarks.data.hub_access import Offer
from taskvec_mini.benchmarks.data.hub_tables import EIGHT, SOURCES
from taskvec_mini.benchmarks.data.tasks import ImageTask
from taskvec_mini.errors import FileError, UserError

__all__ = ["EIGHT", "IMAGE_SIZE", "SOURCES", "load"]

IMAGE_SIZE = 224  # pixels a side, as CLIP's B/32, B/16 and L/14 take them


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
        names: of `SOURCES`; None for the eight benchmarks.
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
    chosen = _checks.not_empty("names", EIGHT if names is None else names)
    for name in (*chosen, *(revisions or {})):
        _checks.named_choice("task", name, SOURCES)
    size = _checks.whole_number("size", size)
    places = {name: Path(folder).expanduser() / "hub" / f"{name}_{size}" for name in chosen}
    wanted = {name: (revisions or {}).get(name) for name in chosen}
    missing = [name for name in places if not hub_images.there(places[name])]
    for name in set(places) - set(missing):
        _check_revision(places[name], wanted[name])
    if missing:
        _prepare(
            [hub_access.ask(name, wanted[name]) for name in missing], places, size, other_counts=other_counts
        )
    return {name: hub_images.task(name, place, limit=limit, seed=seed) for name, place in places.items()}


def _check_revision(place: Path, wanted: str | None) -> None:
    found = str(hub_images.read_about(place).get("revision"))
    if wanted is not None and not found.startswith(wanted):
        raise UserError(
            f"{place} was made from revision {found}, not from {wanted}; delete it, or give another folder"
        )


# --- sizes -----------------------------------------------------------------------------------------------


def _prepare(offers: list[Offer], places: Mapping[str, Path], size: int, *, other_counts: bool) -> None:
    """Say what is to come, refuse it where the disk is too small, and do it."""
    cache, target = Path(hub_access.extra("datasets").config.HF_DATASETS_CACHE), places[offers[0].name].parent
    images = {each.name: each.source.bytes_of(sum(each.source.sizes), size) for each in offers}
    print(f"to be downloaded from the Hugging Face Hub and decoded into {target}:")
    print(scores.table([_row(each, images[each.name], size) for each in offers]))
    needs = {
        cache: 2 * sum(each.size for each in offers) + max(images.values()),  # as fetched, and unpacked
        target: sum(images.values()),
    }
    print(f"{cache} needs {_megabytes(needs[cache])} MB meanwhile; it may be emptied afterwards", flush=True)
    _check_disk(needs, [path for each in offers for path in hub_images.leftovers(places[each.name])])
    for path in needs:
        path.mkdir(parents=True, exist_ok=True)
    for each in offers:
        _make(each, places[each.name], size, cache, other_counts=other_counts)


def _row(offer: Offer, images: int, size: int) -> dict[str, object]:
    source = offer.source
    return {
        "task": offer.name,
        "repository": source.repository,
        "revision": offer.revision[:8],
        "download MB": _megabytes(offer.size),
        "images MB": _megabytes(images),
        "train images MB": _megabytes(source.bytes_of(source.sizes[0], size)),
    }


def _megabytes(size: int) -> str:
    return f"{size / 10**6:,.0f}"


def _check_disk(needs: Mapping[Path, int], leftovers: list[Path]) -> None:
    """An OSError where a disk has less room than what goes there."""
    disks: dict[int, list[Path]] = {}
    for path in needs:
        disks.setdefault(_existing(path).stat().st_dev, []).append(path)
    for paths in disks.values():
        wanted, free = sum(needs[path] for path in paths), shutil.disk_usage(_existing(paths[0])).free
        if wanted > free:
            old = f"; {', '.join(map(str, leftovers))} may be deleted" if leftovers else ""
            raise FileError(
                errno.ENOSPC,
                f"the disk of {' and '.join(map(str, paths))} has {_megabytes(free)} MB free, and "
                f"{_megabytes(wanted)} MB are needed: nothing was fetched; ask for fewer tasks, give another "
                f"folder, or set the environment variable HF_HOME to a folder on a larger disk{old}",
            )


def _existing(path: Path) -> Path:
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _make(offer: Offer, place: Path, size: int, scratch: Path, *, other_counts: bool) -> None:
    """Fetch, check, decode; what was found is printed. Errors say which data set they are about."""
    source = offer.source
    about: dict[str, Any] = {"task": offer.name, "repository": source.repository}
    about |= {"revision": offer.revision, "size": size}
    parts = hub_access.fetch(offer)
    try:
        about["class_names"] = hub_access.class_names(source, parts)
        labels = hub_access.labels(source, parts, other_counts=other_counts)
        found = hub_images.make(place, parts, labels, source=source, size=size, about=about, scratch=scratch)
    except ValueError as error:
        where = f"{source.repository} at revision {offer.revision}"
        raise UserError(f"task {offer.name!r}, {where}: {error}") from error
    except OSError as error:
        full = hub_access.disk_full(offer, error)
        if full is None:
            raise
        raise full from error
    print(
        f"{offer.name}: {found['learnt']:,} images to train and validate on, {found['test']:,} to test; left "
        f"out {found['copies_of_test']:,} training images that are copies of test images; "
        f"{found['copies_in_train']:,} copies among the others stay on one side",
        flush=True,
    )
