"""Public data sets through torchvision: downloaded, verified, and kept as one file of uint8 images each.

torchvision shows the progress of a download and checks its MD5. What was unpacked it does not check: a
folder left by an interrupted run passes for complete. So whatever is not yet done is unpacked anew, from the
archives that arrived whole; the images are counted and written to one npz file, its sha256 beside it. Later
calls read only that.
"""

from __future__ import annotations

import functools
import http.client
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from taskvec_mini import _checks, _files, _imports
from taskvec_mini.benchmarks.data import image_files
from taskvec_mini.benchmarks.data.image_files import Array, full_disk
from taskvec_mini.errors import FileError, UserError

# pixels a side of GTSRB, EuroSAT and DTD, whose photos come in many sizes; the others keep theirs
IMAGE_SIZE = 64


@dataclass(frozen=True)
class Source:
    """How to have one data set from torchvision; the table `torchvision_sets.toml` has them.

    Attributes:
        dataset: its class in `torchvision.datasets`.
        archives: where torchvision puts what it downloads (a pattern below the root).
        train, test: keyword arguments of each piece of the two parts; no test where the data set has none.
        sizes: the images of the two parts, by which an incomplete one is noticed.
        class_names: where torchvision knows none.
        resized: whether the images come in many sizes.
    """

    dataset: str
    archives: str
    train: tuple[dict[str, Any], ...]
    test: tuple[dict[str, Any], ...]
    sizes: tuple[int, int]
    class_names: tuple[str, ...] = ()
    resized: bool = False


@functools.cache
def sources() -> Mapping[str, Source]:
    """The data sets by name."""
    with open(Path(__file__).with_name("torchvision_sets.toml"), "rb") as file:
        table: dict[str, dict[str, Any]] = tomllib.load(file)
    for entry in table.values():
        for key in ("train", "test", "sizes", "class_names"):
            entry[key] = tuple(entry.get(key, ()))
    return {name: Source(**entry) for name, entry in table.items()}


def load(name: str, folder: Path) -> tuple[str, dict[str, Array], str]:
    """A data set from its file below `folder`; the first call downloads it and makes the file.

    Images of many sizes go through the usual test transform: the short side to 64 pixels (bicubic,
    antialiased), then the square in the middle. Grey images stay grey. EuroSAT has no test part: a tenth is
    drawn, always the same. DTD is its first partition, with "train" and "val" together for training. The
    tracks of GTSRB are its groups.

    Returns:
        The path of the file, its arrays, and its sha256.

    Raises:
        ValueError: for an unknown name, a damaged file, or another number of images than there should be.
        OSError: if a download fails or the disk is full; archives that arrived whole serve the next call.
        ImportError: if torchvision is not installed.
    """
    source = _checks.named_choice("task", name, sources())
    file, raw = _file(name, folder), folder / "torchvision" / "downloads" / name
    if not is_prepared(name, folder):
        try:
            datasets = _torchvision("datasets")
            raw.mkdir(parents=True, exist_ok=True)
            _keep_archives(raw, source)
            arrays = _read(source, datasets, raw)
            found = len(arrays["train_labels"]), len(arrays["test_labels"])
            if found != source.sizes:
                raise UserError(
                    f"task {name!r} has {found[0]} train and {found[1]} test images in {raw}, not "
                    f"{source.sizes[0]} and {source.sizes[1]}; delete that folder and call again to download "
                    "it anew"
                )
            image_files.write_arrays(file, arrays)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            if full := full_disk(error):
                raise FileError(
                    full.errno,
                    f"the disk is full while task {name!r} was being made in {raw} ({full.strerror}); free "
                    "some space or give another folder, and call again",
                ) from error
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise FileError(
                f"task {name!r} could not be downloaded to {raw}: {why}; look at the network connection and "
                "call again (archives that arrived whole are kept), or take suite='digits', which needs no "
                "download"
            ) from error
        _keep_archives(raw, source)
    sha256 = image_files.recorded_checksum(file)
    remedy = f"delete it and call again: it is made anew from {raw}"
    _files.check_sha256(file, sha256, remedy=remedy)
    return str(file), image_files.read_arrays(file, remedy=remedy), sha256


def is_prepared(name: str, folder: Path) -> bool:
    """Whether the file of a data set is below `folder`, so that `load` downloads nothing."""
    file = _file(name, folder)
    return file.exists() and image_files.checksum_file(file).exists()


def _file(name: str, folder: Path) -> Path:
    size = f"_{IMAGE_SIZE}" if sources()[name].resized else ""
    return folder / "torchvision" / f"{name}{size}.npz"


def _keep_archives(raw: Path, source: Source) -> None:
    """Delete what was unpacked: torchvision would take a folder half unpacked for a whole one."""
    kept = set(raw.glob(source.archives))
    for path in sorted(raw.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_symlink() or not path.is_dir():
            if path not in kept:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def _read(source: Source, datasets: Any, raw: Path) -> dict[str, Array]:
    """The arrays of all pieces of a data set, in the names of the bundle's files."""
    make, transform = getattr(datasets, source.dataset), None
    if source.resized:
        transforms = _torchvision("transforms")
        bicubic = transforms.InterpolationMode.BICUBIC
        transform = transforms.Compose(
            [transforms.Resize(IMAGE_SIZE, interpolation=bicubic), transforms.CenterCrop(IMAGE_SIZE)]
        )
    arrays: dict[str, Array] = {}
    for part, options_of in (("train", source.train), ("test", source.test)):
        pieces = [make(str(raw), download=True, transform=transform, **options) for options in options_of]
        if not pieces:
            continue
        if part == "train":
            arrays["class_names"] = np.array(source.class_names or pieces[0].classes)
            if source.dataset == "GTSRB":  # the number of the physical sign: <class>/<track>_<frame>.ppm
                paths = [Path(path) for path, _ in pieces[0]._samples]
                tracks = [
                    int(path.parent.name) * 100_000 + int(path.name.partition("_")[0]) for path in paths
                ]
                arrays["train_groups"] = np.array(tracks, dtype=np.int64)
        images, labels = [], []
        with tqdm(total=sum(map(len, pieces)), desc=f"reading {part} images", unit=" images") as progress:
            for piece in pieces:
                for i in range(len(piece)):
                    image, label = piece[i]
                    images.append(np.asarray(image, dtype=np.uint8))
                    labels.append(label)
                    progress.update()
        arrays[f"{part}_images"] = np.stack(images)
        arrays[f"{part}_labels"] = np.array(labels, dtype=np.int64)
    if not source.test:  # a tenth, drawn with a fixed seed, so that every run is judged on the same images
        count = len(arrays["train_labels"])
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
        for key in ("images", "labels"):
            whole = arrays[f"train_{key}"]
            arrays[f"test_{key}"] = whole[order[: count // 10]]
            arrays[f"train_{key}"] = whole[order[count // 10 :]]
    return arrays


def _torchvision(module: str) -> Any:
    return _imports.load(f"torchvision.{module}", needed_for="suite 'torchvision'", install="torchvision")
