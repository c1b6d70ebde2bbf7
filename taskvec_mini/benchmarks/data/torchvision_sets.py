"""Public data sets through torchvision: downloaded, verified, and kept as one file of uint8 images each.

torchvision shows the progress of a download and checks its MD5. What was unpacked it does not check: a
folder left by an interrupted run passes for complete. So whatever is not yet done is unpacked anew, from the
archives that arrived whole; the images are counted and written to one npz file, its sha256 beside it. Later
calls read only that.
"""

from __future__ import annotations

import errno
import http.client
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taskvec_mini import _checks
from taskvec_mini.benchmarks import _arrays
from taskvec_mini.benchmarks._arrays import Array
from taskvec_mini.errors import UserError

IMAGE_SIZE = (
    64  # pixels a side of GTSRB, EuroSAT and DTD, whose photos come in many sizes; the others keep theirs
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STEP = 500  # images between two updates of the progress bar
_DIGITS = tuple(map(str, range(10)))
_SIGNS = (
    "speed limit 20,speed limit 30,speed limit 50,speed limit 60,speed limit 70,speed limit 80,"
    "end of speed limit 80,speed limit 100,speed limit 120,no passing,no passing for trucks,"
    "right of way at next intersection,priority road,yield,stop,no vehicles,no trucks,no entry,"
    "general caution,dangerous curve left,dangerous curve right,double curve,bumpy road,slippery road,"
    "road narrows on the right,road work,traffic signals,pedestrians,children crossing,bicycles crossing,"
    "beware of ice or snow,wild animals crossing,end of all limits,turn right ahead,turn left ahead,"
    "ahead only,go straight or right,go straight or left,keep right,keep left,roundabout mandatory,"
    "end of no passing,end of no passing for trucks"
)


@dataclass(frozen=True)
class Source:
    """How to have one data set from torchvision.

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


_FLAGS: dict[str, Any] = {"train": ({"train": True},), "test": ({"train": False},)}
_SPLITS: dict[str, Any] = {"train": ({"split": "train"},), "test": ({"split": "test"},)}
_DTD: dict[str, Any] = {"train": ({"split": "train"}, {"split": "val"}), "test": ({"split": "test"},)}
SOURCES = {
    "mnist": Source("MNIST", "MNIST/raw/*.gz", sizes=(60_000, 10_000), **_FLAGS),
    "fashion_mnist": Source("FashionMNIST", "FashionMNIST/raw/*.gz", sizes=(60_000, 10_000), **_FLAGS),
    "kmnist": Source("KMNIST", "KMNIST/raw/*.gz", sizes=(60_000, 10_000), **_FLAGS),
    "svhn": Source("SVHN", "*.mat", sizes=(73_257, 26_032), class_names=_DIGITS, **_SPLITS),
    "gtsrb": Source(
        "GTSRB",
        "gtsrb/*.zip",
        sizes=(26_640, 12_630),
        class_names=tuple(_SIGNS.split(",")),
        resized=True,
        **_SPLITS,
    ),
    "eurosat": Source("EuroSAT", "eurosat/*.zip", ({},), (), sizes=(24_300, 2_700), resized=True),
    "dtd": Source("DTD", "dtd/*.tar.gz", sizes=(3_760, 1_880), resized=True, **_DTD),
    "cifar10": Source("CIFAR10", "*.tar.gz", sizes=(50_000, 10_000), **_FLAGS),
}


def load(name: str, folder: Path) -> tuple[Path, dict[str, Array], str]:
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
    source = _checks.named_choice("task", name, SOURCES)
    file, raw = _file(name, folder), folder / "torchvision" / "downloads" / name
    if not there(name, folder):
        _make(name, source, file, raw)
    sha256 = _arrays.checksum_file(file).read_text(encoding="utf-8").partition(" ")[0]
    remedy = f"delete it and call again: it is made anew from {raw}"
    return file, _arrays.read(file, sha256, remedy=remedy), sha256


def there(name: str, folder: Path) -> bool:
    """Whether the file of a data set is below `folder`, so that `load` downloads nothing."""
    file = _file(name, folder)
    return file.exists() and _arrays.checksum_file(file).exists()


def _file(name: str, folder: Path) -> Path:
    size = f"_{IMAGE_SIZE}" if SOURCES[name].resized else ""
    return folder / "torchvision" / f"{name}{size}.npz"


def _make(name: str, source: Source, file: Path, raw: Path) -> None:
    """Download, unpack, read, count and write; what fails leaves whole archives and no file."""
    datasets = _torchvision("datasets")
    try:
        raw.mkdir(parents=True, exist_ok=True)
        _keep_archives(raw, source)
        arrays = _read(source, datasets, raw)
        _count(name, source, arrays, raw)
        _arrays.write(file, arrays)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise _explained(name, raw, error) from error
    _keep_archives(raw, source)


def _read(source: Source, datasets: Any, raw: Path) -> dict[str, Array]:
    """The arrays of all pieces of a data set, in the names of the bundle's files."""
    make = getattr(datasets, source.dataset)
    transform = _test_transform() if source.resized else None
    pieces = {
        part: [make(str(raw), download=True, transform=transform, **options) for options in options_of]
        for part, options_of in (("train", source.train), ("test", source.test))
    }
    first = pieces["train"][0]
    arrays = {"class_names": np.array(source.class_names or first.classes)}
    for part, listed in pieces.items():
        if listed:
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = _stacked(listed, part)
    if source.dataset == "GTSRB":
        arrays["train_groups"] = np.array([_track(path) for path, _ in first._samples], dtype=np.int64)
    return arrays if source.test else _with_test_part(arrays)


def _stacked(pieces: list[Any], part: str) -> tuple[Array, Array]:
    images, labels = [], []
    bar = _torchvision("datasets.utils").tqdm  # tqdm's, or a simple one where that is not installed
    with bar(total=sum(map(len, pieces)), desc=f"reading {part} images", unit=" images") as progress:
        for image, label in _examples(pieces):
            images.append(np.asarray(image, dtype=np.uint8))
            labels.append(label)
            if len(images) % _STEP == 0:
                progress.update(_STEP)
        progress.update(len(images) % _STEP)
    return np.stack(images), np.array(labels, dtype=np.int64)


def _examples(pieces: list[Any]) -> Iterator[tuple[Any, int]]:
    for dataset in pieces:
        yield from (dataset[i] for i in range(len(dataset)))


def _test_transform() -> Any:
    transforms = _torchvision("transforms")
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [transforms.Resize(IMAGE_SIZE, interpolation=bicubic), transforms.CenterCrop(IMAGE_SIZE)]
    )


def _track(path: str) -> int:
    """The number of the physical sign: files are called <class>/<track>_<frame>.ppm."""
    folder, file = Path(path).parts[-2:]
    return int(folder) * 100_000 + int(file.partition("_")[0])


def _with_test_part(arrays: dict[str, Array]) -> dict[str, Array]:
    """A tenth for testing, drawn with a fixed seed, so that every run is judged on the same images."""
    count = len(arrays["train_labels"])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    parts = {"test": order[: count // 10], "train": order[count // 10 :]}
    drawn = {
        f"{part}_{what}": arrays[f"train_{what}"][rows]
        for part, rows in parts.items()
        for what in ("images", "labels")
    }
    return arrays | drawn


def _count(name: str, source: Source, arrays: _arrays.Arrays, raw: Path) -> None:
    found = len(arrays["train_labels"]), len(arrays["test_labels"])
    if found != source.sizes:
        raise UserError(
            f"task {name!r} has {found[0]} train and {found[1]} test images in {raw}, not {source.sizes[0]} "
            f"and {source.sizes[1]}; delete that folder and call again to download it anew"
        )


def _keep_archives(raw: Path, source: Source) -> None:
    """Delete what was unpacked: torchvision would take a folder half unpacked for a whole one."""
    kept = set(raw.glob(source.archives))
    for path in sorted(raw.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_symlink() or not path.is_dir():
            if path not in kept:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def _explained(name: str, raw: Path, error: BaseException) -> OSError:
    """The error to raise: what failed, why, and what to do."""
    if full := full_disk(error):
        return OSError(
            full.errno,
            f"the disk is full while task {name!r} was being made in {raw} ({full.strerror}); free some "
            "space or give another folder, and call again",
        )
    why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return OSError(
        f"task {name!r} could not be downloaded to {raw}: {why}; look at the network connection and call "
        "again (archives that arrived whole are kept), or take suite='digits', which needs no download"
    )


def full_disk(error: BaseException) -> OSError | None:
    """The error of a full disk that is behind an error, or None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _torchvision(module: str) -> Any:
    """A module of torchvision, imported on use: it takes seconds, and nothing else here needs it."""
    try:
        return importlib.import_module(f"torchvision.{module}")
    except ImportError as error:
        raise ImportError(
            f"suite 'torchvision' needs torchvision ({error}); "
            "install it with: python -m pip install torchvision"
        ) from error
