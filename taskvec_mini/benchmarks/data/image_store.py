"""Images of a data set, decoded once: a folder with one array on disk, which is mapped, not read, when used.

A folder holds `images.npy` (uint8, one size), `rows.npz` (labels and what splits need) and `about.json` with
the checksums of both. It appears whole or not at all. The rows stand in the order of the split with seed 0,
so its parts are pieces of the file: they cost no memory until a batch is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from taskvec_mini import records
from taskvec_mini.benchmarks._arrays import Array
from taskvec_mini.benchmarks.data import splits
from taskvec_mini.benchmarks.data.hub_tables import Source
from taskvec_mini.benchmarks.data.tasks import ImageTask
from taskvec_mini.benchmarks.training.progress import ProgressLine
from taskvec_mini.errors import UserError

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
    source: Source,
    size: int,
    about: Mapping[str, Any],
    scratch: Path,
) -> dict[str, Any]:
    """Decode the parts "train" and "test" of a data set, find exact copies, and write the folder.

    Args:
        folder: where it appears, once it is complete.
        parts: of each the rows: `part[i]` gives the columns of row i.
        labels: (N,) int64 of the training images, then of the test images.
        source: names the column and the kind of images.
        size: pixels a side; small squares are kept as they are.
        about: what is noted beside.
        scratch: a folder where the images may lie until they are in order.

    Returns:
        What `about.json` holds: `about`, the numbers of images and of copies, the checksums.

    Raises:
        ValueError: if an image cannot be decoded or has another size than the source says.
        OSError: if the disk is full.
    """
    train = len(parts["train"])
    with tempfile.TemporaryDirectory(dir=scratch, prefix="taskvec_mini") as temporary:
        shape = (len(labels), *source.shape(size))
        images: Array = np.memmap(Path(temporary, "images"), dtype=np.uint8, mode="w+", shape=shape)
        fingerprints = _decode(parts, source, images, title=folder.name)
        kept, order = _arranged(fingerprints, train)
        copies = {"copies_of_test": train - len(kept["places"]), "copies_in_train": _repeated(kept)}
        counts = {"learnt": len(kept["places"]), "test": len(labels) - train}
        found = _write(
            folder, images, {"labels": labels[order.numpy()], **kept}, order, {**about, **counts, **copies}
        )
        del images  # before the folder is deleted: some systems keep mapped files
    return found


def _decode(parts: Mapping[str, Any], source: Source, images: Array, *, title: str) -> list[bytes]:
    """Fill `images` with the rows of both parts; a fingerprint of each."""
    line, found = ProgressLine(title, len(images)), []
    pending = 0
    for at, (part, row, image) in enumerate(_examples(parts, source.image)):
        if source.pixels is not None and image.size != (source.pixels, source.pixels):
            raise UserError(
                f"image {row} of {part} has {image.size[0]} x {image.size[1]} pixels, not {source.pixels} x "
                f"{source.pixels}; the repository has changed: pin an older revision"
            )
        images[at] = square(image, images.shape[1], grey=source.grey)
        pending += 1
        if pending == _STEP or at + 1 == len(images):
            found += splits.contents(torch.from_numpy(images[at + 1 - pending : at + 1]))
            line.add(pending, "decoding")
            pending = 0
    line.end_epoch("decoded")
    return found


def _examples(parts: Mapping[str, Any], column: str) -> Iterator[tuple[str, int, Image.Image]]:
    for part in ("train", "test"):
        for row in range(len(parts[part])):
            try:
                image = parts[part][row][column]
                image.load()
            except (OSError, SyntaxError, ValueError, AttributeError) as error:
                raise UserError(
                    f"image {row} of {part} cannot be decoded ({error}); its download may be damaged: delete "
                    "the data set from the cache of Hugging Face and call again"
                ) from error
            yield part, row, image


def _arranged(fingerprints: list[bytes], train: int) -> tuple[dict[str, Array], Tensor]:
    """What later splits need, and the rows to write: first those trained on, validated on, tested on.

    Training images of which a copy stands in the test part are not written.
    """
    fresh = splits.without_test_images(fingerprints[:train], fingerprints[train:])
    kept = [fingerprints[i] for i in fresh.tolist()]
    shuffled = torch.cat(splits.validation_split(kept, None, seed=SEED))
    order = torch.cat([fresh[shuffled], torch.arange(train, len(fingerprints))])
    return {
        "fingerprints": np.frombuffer(b"".join(kept), dtype=np.uint8).reshape(len(kept), -1),
        "places": torch.argsort(shuffled).numpy(),  # in the file, of the images with these fingerprints
    }, order


def _repeated(kept: Mapping[str, Array]) -> int:
    """How many training images are exact copies of a training image before them."""
    return len(kept["places"]) - len(set(_bytes(kept["fingerprints"])))


def _bytes(fingerprints: Array) -> list[bytes]:
    return [row.tobytes() for row in fingerprints]


def _write(
    folder: Path, images: Array, rows: Mapping[str, Array], order: Tensor, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The folder, made inside another one and moved once it is complete."""
    savez: Any = np.savez  # its type hints know no arrays by name
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(order), *images.shape[1:])}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.part") as temporary:
        whole = Path(temporary, folder.name)
        whole.mkdir()
        with open(whole / _IMAGES, "wb") as file:  # from front to back, as network drives like it
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in torch.split(order, _STEP):
                file.write(images[chunk.numpy()].tobytes())
        savez(whole / _ROWS, **rows)
        sums = {name: records.checksum(whole / name) for name in (_IMAGES, _ROWS)}
        (whole / _ABOUT).write_text(json.dumps({**about, "sha256": sums}, indent=1), encoding="utf-8")
        try:
            os.replace(whole, folder)
        except OSError:
            if not there(folder):  # else another process was quicker
                raise
    return {**about, "sha256": sums}


# --- reading ---------------------------------------------------------------------------------------------


def there(folder: Path) -> bool:
    """Whether the folder has been made."""
    return (folder / _ABOUT).is_file()


def leftovers(folder: Path) -> list[Path]:
    """What a process that was killed while it made the folder has left beside it."""
    return sorted(folder.parent.glob(f"{folder.name}.part*"))


def read_about(folder: Path) -> dict[str, Any]:
    """What `about.json` holds; a ValueError with the remedy where it is damaged."""
    try:
        return dict(json.loads((folder / _ABOUT).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / _ABOUT} is damaged ({error}); {_remedy(folder)}") from error


def task(name: str, folder: Path, *, limit: int | None, seed: int) -> ImageTask:
    """The task of a folder that `make` made, its checksums verified.

    With seed 0 the images stay on the disk. With another seed those of training and validation are copied
    into memory, because they do not stand next to one another.

    Raises:
        ValueError: if a file is truncated or damaged.
    """
    about = read_about(folder)
    for file, expected in about["sha256"].items():
        _check(folder, file, expected)
    with np.load(folder / _ROWS, allow_pickle=False) as stored:
        labels, places = (torch.from_numpy(stored[key]) for key in ("labels", "places"))
        fingerprints = _bytes(stored["fingerprints"])
    images = torch.from_numpy(
        np.load(folder / _IMAGES, mmap_mode="c")
    )  # "c": what is changed stays in memory
    train, val = splits.validation_split(fingerprints, None, seed=seed)
    rows = {
        "train": places[train][:limit],
        "val": places[val],
        "test": torch.arange(len(places), len(labels)),
    }
    parts = {f"{part}_images": _rows(images, chosen) for part, chosen in rows.items()}
    parts |= {f"{part}_labels": labels[chosen] for part, chosen in rows.items()}
    sha256 = hashlib.sha256(" ".join(about["sha256"].values()).encode()).hexdigest()
    return ImageTask(name=name, class_names=tuple(about["class_names"]), sha256=sha256, **parts)


def _rows(images: Tensor, chosen: Tensor) -> Tensor:
    """These rows: a piece of the file where they follow one another in it."""
    first, count = int(chosen[0]), len(chosen)
    if torch.equal(chosen, torch.arange(first, first + count)):
        return images[first : first + count]
    return images[chosen]


def _check(folder: Path, file: str, expected: str) -> None:
    path = folder / file
    found = records.checksum(path) if path.is_file() else "missing"
    if found != expected:
        size = f"{path.stat().st_size:,} bytes" if path.is_file() else "not there"
        raise UserError(
            f"{path} is truncated or corrupted ({size}): its sha256 should be {expected} and is {found}; "
            f"{_remedy(folder)}"
        )


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and call again: it is made anew"
