"""Images of a data set, decoded once: a folder with one array on disk, which is mapped, not read, when used.

A folder holds `images.npy` (uint8, one size), `rows.npz` (labels and what splits need) and `about.json` with
the checksums of both. It appears whole or not at all. The rows stand in the order of the split with seed 0,
so its parts are pieces of the file: they cost no memory until a batch is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from taskvec_mini import _files
from taskvec_mini.benchmarks.data import splits
from taskvec_mini.benchmarks.data.image_files import Array
from taskvec_mini.benchmarks.data.tasks import ImageTask
from taskvec_mini.errors import FileError, MissingFileError, UserError

SEED = 0  # of the order of the rows on disk; the split of another seed is copied into memory
_IMAGES, _ROWS, _ABOUT = "images.npy", "rows.npz", "about.json"
_STEP = 256  # images that are handled together


def square(image: Image.Image, size: int, *, grey: bool = False) -> Array:
    """An image as CLIP's test transform sees it, before its colours are normalised: uint8 (size, size[, 3]).

    The shorter side is brought to `size` pixels (bicubic, antialiased), then the middle is cut out. An image
    of that size is not changed.

    Example:
        >>> square(Image.new("RGB", (40, 20), (255, 0, 0)), 8).shape
        (8, 8, 3)
    """
    mode = "L" if grey else "RGB"
    plain = image if image.mode == mode else image.convert(mode)
    short = min(plain.size)
    sides = [size if each == short else int(size * each / short) for each in plain.size]
    resized = plain.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
    left, top = (round((each - size) / 2) for each in sides)
    return np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.uint8)


def make(
    folder: Path,
    parts: Mapping[str, Any],
    labels: Array,
    *,
    column: str,
    side: int,
    pixels: int | None,
    grey: bool,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Decode the parts "train" and "test" of a data set, find exact copies, and write the folder.

    Training images of which a copy stands in the test part are not written. While they are not yet in order,
    the images lie beside the folder as well, so the disk needs twice their room.

    Args:
        folder: where it appears, once it is complete.
        parts: of each the rows: `part[i]` gives the columns of row i.
        labels: (N,) int64 of the training images, then of the test images.
        column: the name of the images' column.
        side: pixels a side to bring them to.
        pixels: pixels a side that they all should have; None where they have many sizes.
        grey: whether they have no colours.
        about: what is noted beside.

    Returns:
        What `about.json` holds: `about`, the numbers of images and of copies, the checksums.

    Raises:
        ValueError: if an image cannot be decoded or has another size than it should.
        OSError: if the disk is full.
    """
    train = len(parts["train"])
    savez: Any = np.savez  # its type hints know no arrays by name
    try:
        with _files.replacing(folder) as place:
            place.mkdir()
            shape = (len(labels), side, side) if grey else (len(labels), side, side, 3)
            # where it is written the folder of `replacing` is its own, so that a kill leaves nothing for good
            images: Array = np.memmap(place.parent / "images", dtype=np.uint8, mode="w+", shape=shape)
            fingerprints = _decode(parts, images, column=column, pixels=pixels, grey=grey, title=folder.name)
            fresh = splits.without_test_copies(fingerprints[:train], fingerprints[train:])
            kept = [fingerprints[i] for i in fresh.tolist()]
            shuffled = torch.cat(splits.validation_split(kept, None, seed=SEED))
            order = torch.cat([fresh[shuffled], torch.arange(train, len(labels))])
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(order), *shape[1:])}
            with open(place / _IMAGES, "wb") as file:  # from front to back, as network drives like it
                np.lib.format.write_array_header_1_0(file, header)
                for chunk in torch.split(order, _STEP):
                    file.write(images[chunk.numpy()].tobytes())
            del images  # before the folder is deleted: some systems keep mapped files
            savez(
                place / _ROWS,
                labels=labels[order.numpy()],
                fingerprints=np.frombuffer(b"".join(kept), dtype=np.uint8).reshape(len(kept), -1),
                places=torch.argsort(shuffled).numpy(),  # in the file, of the images with these fingerprints
            )
            found = {
                **about,
                "learnt": len(kept),
                "test": len(labels) - train,
                "copies_of_test": train - len(kept),
                "copies_in_train": len(kept) - len(set(kept)),
                "sha256": {name: _files.sha256(place / name) for name in (_IMAGES, _ROWS)},
            }
            (place / _ABOUT).write_text(json.dumps(found, indent=1), encoding="utf-8")
    except FileError:
        if not is_prepared(folder):  # else another process was quicker
            raise
    return found


def _decode(
    parts: Mapping[str, Any], images: Array, *, column: str, pixels: int | None, grey: bool, title: str
) -> list[bytes]:
    """Fill `images` with the rows of both parts; a fingerprint of each."""
    fingerprints: list[bytes] = []
    with tqdm(total=len(images), desc=f"{title}: decoding", unit=" images") as progress:
        for part in ("train", "test"):
            for row in range(len(parts[part])):
                try:
                    image = parts[part][row][column]
                    image.load()
                except (OSError, SyntaxError, ValueError, AttributeError) as error:
                    raise UserError(
                        f"image {row} of {part} cannot be decoded ({error}); its download may be damaged: "
                        "delete the data set from the cache of Hugging Face and call again"
                    ) from error
                if pixels is not None and image.size != (pixels, pixels):
                    raise UserError(
                        f"image {row} of {part} has {image.size[0]} x {image.size[1]} pixels, not {pixels} x "
                        f"{pixels}; the repository has changed: pin an older revision"
                    )
                place = len(fingerprints)
                images[place] = square(image, images.shape[1], grey=grey)
                fingerprints += splits.contents(torch.from_numpy(images[place : place + 1]))
                progress.update()
    return fingerprints


# --- reading ---------------------------------------------------------------------------------------------


def is_prepared(folder: Path) -> bool:
    """Whether the folder has been made."""
    return (folder / _ABOUT).is_file()


def read_about(folder: Path) -> dict[str, Any]:
    """What `about.json` holds; a ValueError with the remedy where it is damaged."""
    about = _files.read_json(folder / _ABOUT, what="note about images", remedy=_remedy(folder))
    sums = about.get("sha256")
    if not isinstance(sums, dict) or not sums.keys() >= {_IMAGES, _ROWS} or "class_names" not in about:
        raise UserError(
            f"{folder / _ABOUT} is damaged, it lacks checksums or the names of classes; {_remedy(folder)}"
        )
    return about


def task(name: str, folder: Path, *, limit: int | None, seed: int) -> ImageTask:
    """The task of a folder that `make` made, its checksums verified.

    With seed 0 the images stay on the disk. With another seed those of training and validation are copied
    into memory, because they do not stand next to one another.

    Raises:
        ValueError: if a file is truncated or damaged.
    """
    about = read_about(folder)
    for file, expected in about["sha256"].items():
        if not (folder / file).is_file():
            raise MissingFileError(f"{folder / file} is missing; {_remedy(folder)}")
        _files.check_sha256(folder / file, expected, remedy=_remedy(folder))
    with np.load(folder / _ROWS, allow_pickle=False) as stored:
        labels, places = (torch.from_numpy(stored[key]) for key in ("labels", "places"))
        fingerprints = [row.tobytes() for row in stored["fingerprints"]]
    images = torch.from_numpy(
        np.load(folder / _IMAGES, mmap_mode="c")  # "c": what is changed stays in memory
    )
    train, val = splits.validation_split(fingerprints, None, seed=seed)
    rows = {
        "train": places[train][:limit],
        "val": places[val],
        "test": torch.arange(len(places), len(labels)),
    }
    parts: dict[str, Any] = {}
    for part, chosen in rows.items():  # a piece of the file where its rows stand in a row: nothing is copied
        first, count = int(chosen[0]), len(chosen)
        whole = torch.equal(chosen, torch.arange(first, first + count))
        parts[f"{part}_images"] = images[first : first + count] if whole else images[chosen]
        parts[f"{part}_labels"] = labels[chosen]
    sha256 = hashlib.sha256(" ".join(about["sha256"].values()).encode()).hexdigest()
    return ImageTask(name=name, class_names=tuple(about["class_names"]), sha256=sha256, **parts)


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and call again: it is made anew"
