"""Tasks of your own: images in class folders, or texts in CSV files.

Images: one folder a task, with a folder for each class in it, or with `train` and `test` that have those. A
folder that is itself such a task is taken as one. Texts: `NAME.csv`, or `NAME.train.csv` and `NAME.test.csv`,
with the columns `text` and `label`. Where there is no test part, a fifth of each class is drawn for it,
always the same. A file that cannot be read is named, and nothing is left out unsaid.
"""

from __future__ import annotations

import csv
import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from taskvec_mini.benchmarks.data import image_files, image_store
from taskvec_mini.benchmarks.data.image_files import Array
from taskvec_mini.benchmarks.data.texts import Rows
from taskvec_mini.errors import MissingFileError, UserError

IMAGE_SIZE = 224  # pixels a side, at most
_BYTES = 10**9  # that all images of a task take, at most
_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY = ("1", "L", "LA", "I;16")  # modes of Pillow
_IGNORED = ("thumbs.db", "desktop.ini")  # and what begins with a dot: systems put these there by themselves
_TEST_SHARE = 0.2
_NAMED = 5  # files or lines that a message names, at most


# --- images ----------------------------------------------------------------------------------------------


def image_tasks(folder: Path) -> tuple[str, ...]:
    """The names of the tasks in a folder: its own, where it is a task, or those of the folders in it."""
    if _is_task(folder):
        return (folder.resolve().name,)
    return tuple(each.name for each in _folders(folder) if _is_task(each))


def read_images(name: str, folder: Path) -> tuple[str, dict[str, Array], str]:
    """The arrays of a task of images.

    All are brought to one square size: the short side to it (bicubic, antialiased), then the middle cut out.
    It is that of the smallest image, at most 224 pixels, and as many as fit into 1 GB. They are grey if every
    file is. The way up that a camera noted is respected.

    Returns:
        Where it is, for messages; its arrays as `image_task` takes them; a sha256 of these.

    Raises:
        MissingFileError: if there is no such task.
        UserError: if a file is no picture, or the classes do not fit.
    """
    place = folder if _is_task(folder) and folder.resolve().name == name else folder / name
    if not _is_task(place):
        raise MissingFileError(f"{place} holds no task of images; {HOW_IMAGES}")
    split = (place / "train").is_dir()
    parts = (
        {part: _pictures(place / part) for part in ("train", "test")}
        if split
        else {"train": _pictures(place)}
    )
    classes = list(parts["train"])
    if len(classes) < 2:
        raise UserError(
            f"{place} has the class folders {', '.join(classes) or 'none'}; give at least two classes"
        )
    for each in parts.get("test", ()):
        if each not in classes:
            raise UserError(
                f"{place / 'test' / each} is a class without a folder in {place / 'train'}, which has "
                f"{', '.join(classes)}; name the folders alike"
            )
    paths: dict[str, list[Path]] = {}
    labels: dict[str, list[int]] = {}
    for part, found in parts.items():
        paths[part] = [path for pictures in found.values() for path in pictures]
        labels[part] = [classes.index(each) for each, pictures in found.items() for _ in pictures]
    if not all(paths.values()):
        raise UserError(
            f"{place / 'test'} holds no picture; put some there, or leave both train and test out"
        )
    images = _decoded([path for part in parts for path in paths[part]], title=name)
    arrays: dict[str, Array] = {"class_names": np.array(classes)}
    numbers = np.array([label for part in parts for label in labels[part]], dtype=np.int64)
    test = (
        np.arange(len(paths["train"]), len(numbers))
        if split
        else drawn_test([classes[i] for i in numbers], place)
    )
    train = np.setdiff1d(np.arange(len(numbers)), test)
    for part, chosen in (("train", train), ("test", test)):
        arrays[f"{part}_images"] = images[chosen]
        arrays[f"{part}_labels"] = numbers[chosen]
    return str(place), arrays, image_files.checksum(arrays)


def _is_task(folder: Path) -> bool:
    """Whether its folders are classes, or it has a folder `train`; not where it is their folders that hold
    pictures, for then these are tasks, and a picture beside them is a mistake to be named.
    """
    if (folder / "train").is_dir():
        return True
    inside = _folders(folder)
    return any(_holds_pictures(each) for each in inside) and not any(
        _holds_pictures(deeper) for each in inside for deeper in _folders(each)
    )


def _holds_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in _ENDINGS for path in folder.iterdir())


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """The files of each class folder, by its name; an error names what is no picture, or lies beside them."""
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}; {HOW_IMAGES}")
    found = {}
    strange = [path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in _ENDINGS]
    for each in _folders(folder):
        files = sorted(
            path
            for path in each.iterdir()
            if not path.name.startswith(".") and path.name.lower() not in _IGNORED
        )
        strange += [path for path in files if path.suffix.lower() not in _ENDINGS or path.is_dir()]
        found[each.name] = files
    if strange:
        raise UserError(
            f"{_several(strange)} in {folder}: no picture ({' '.join(_ENDINGS)}), or outside the folders of "
            "the classes; move or delete what does not belong there"
        )
    empty = [each for each, files in found.items() if not files]
    if empty:
        raise UserError(f"{folder / empty[0]} holds no picture; put some there, or delete the folder")
    return found


def _decoded(paths: Sequence[Path], *, title: str) -> Array:
    """All pictures in one size: uint8 (N, S, S) or (N, S, S, 3); an error names all that cannot be read."""
    broken: list[str] = []
    sides: list[int] = []
    grey = True
    for path in paths:  # the headers alone
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
                grey = grey and image.mode in _GREY
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            broken.append(_reason(path, error))
    side = min([IMAGE_SIZE, math.isqrt(_BYTES // (3 * len(paths))), *sides])
    images = np.empty((len(paths), side, side) if grey else (len(paths), side, side, 3), dtype=np.uint8)
    for i, path in enumerate(tqdm(paths, desc=f"{title}: reading", unit=" images", disable=bool(broken))):
        try:
            with Image.open(path) as image:
                images[i] = image_store.square(ImageOps.exif_transpose(image), side, grey=grey)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if not any(each.startswith(f"{path} ") for each in broken):
                broken.append(_reason(path, error))
    if broken:
        raise UserError(
            f"{len(broken)} of {len(paths)} files cannot be read as pictures: {_several(broken)}; repair or "
            "delete them"
        )
    return images


def _reason(path: Path, error: BaseException) -> str:
    words = " ".join(str(error).replace(repr(str(path)), "it").split())
    return f"{path} ({words or type(error).__name__})"


# --- texts -----------------------------------------------------------------------------------------------


def text_tasks(folder: Path) -> tuple[str, ...]:
    """The names of the tasks in a folder: those of its CSV files, without the part and the ending."""
    names: dict[str, None] = {}
    for path in sorted(folder.glob("*.csv")):
        names[path.stem.removesuffix(".train").removesuffix(".test")] = None
    return tuple(names)


def read_texts(name: str, folder: Path) -> tuple[str, tuple[Rows, Rows], str]:
    """The two parts of a task of texts.

    Returns:
        Where it is, for messages; the rows to learn from and those to be judged on; a sha256 of both.

    Raises:
        MissingFileError: if a file is missing.
        UserError: if a file cannot be read, lacks a column, a text or a label, or the classes do not fit.
    """
    single = folder / f"{name}.csv"
    pair = [folder / f"{name}.{part}.csv" for part in ("train", "test")]
    if single.is_file() and any(path.is_file() for path in pair):
        raise UserError(f"{single} and {name}.train.csv or {name}.test.csv are there; keep one kind")
    if single.is_file():
        rows = _read_csv(single)
        test = set(drawn_test(rows.names, single).tolist())
        both = [
            Rows(*([column[i] for i in range(len(rows.texts)) if (i in test) == tested] for column in rows))
            for tested in (False, True)
        ]
        place = single
    else:
        for path in pair:
            if not path.is_file():
                raise MissingFileError(f"there is no file {path}; {HOW_TEXTS}")
        both = [_read_csv(path) for path in pair]
        place = pair[0]
    train, judged = both
    if len(set(train.names)) < 2:
        raise UserError(f"{place} has the label {train.names[0]!r} alone; give texts of at least two classes")
    foreign = sorted(set(judged.names) - set(train.names))
    if foreign:
        raise UserError(
            f"{pair[1]} has the label {foreign[0]!r}, which no text of {pair[0]} has; spell the labels alike"
        )
    digest = hashlib.sha256()
    for part in both:
        for text, label in zip(part.texts, part.names, strict=True):
            digest.update(f"{text}\t{label}\n".encode())
        digest.update(b"\n")
    return str(place), (train, judged), digest.hexdigest()


def _read_csv(path: Path) -> Rows:
    rows = Rows([], [])
    bare: list[str] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for column in ("text", "label"):
                if column not in (reader.fieldnames or ()):
                    raise UserError(
                        f"{path} has no column {column!r}, only "
                        f"{', '.join(reader.fieldnames or ['nothing'])}; its first line must name the "
                        "columns text and label"
                    )
            for row in reader:
                text = " ".join((row["text"] or "").split())
                label = " ".join((row["label"] or "").split())
                if not (text and label):
                    bare.append(f"line {reader.line_num}")
                rows.texts.append(text)
                rows.names.append(label)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not written in UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; save it anew as CSV") from error
    if bare:
        raise UserError(
            f"{path} lacks a text or a label in {_several(bare)}; fill them in or delete the lines"
        )
    if not rows.texts:
        raise UserError(f"{path} holds no text below its first line; put some there")
    return rows


# --- both ------------------------------------------------------------------------------------------------

HOW_IMAGES = (
    "--data names a folder with one folder for each task, and in it one for each class, or `train` and "
    "`test` with those of the classes"
)
HOW_TEXTS = (
    "--data names a folder with NAME.csv for each task, or NAME.train.csv and NAME.test.csv, with the "
    "columns text and label"
)


def drawn_test(labels: Sequence[object], place: Path) -> Array:
    """Positions for a test part, rising: a fifth of each class, at least one, always the same.

    Copies need no care here: training examples with a copy in the test part are left out later.

    Args:
        labels: of all examples.
        place: for messages.

    Raises:
        UserError: if a class has one example only.
    """
    generator = torch.Generator().manual_seed(0)
    chosen: list[int] = []
    members: dict[object, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    for label, positions in members.items():
        if len(positions) < 2:
            raise UserError(
                f"{place} has one example of class {label!r}; give more, one to learn from and one to test"
            )
        count = max(1, round(_TEST_SHARE * len(positions)))
        order = torch.randperm(len(positions), generator=generator)[:count]
        chosen += [positions[i] for i in order.tolist()]
    return np.array(sorted(chosen))


def warn_of_left_out(name: str, left_out: Mapping[str, int]) -> None:
    """A warning that says how many images are not used for judging."""
    if any(left_out.values()):
        warnings.warn(
            f"task {name!r}: {left_out['val']} validation and {left_out['test']} test images are near "
            "duplicates of images to learn from and were left out",
            stacklevel=3,
        )


def _several(items: Iterable[object]) -> str:
    """The first few of some things, and how many more there are."""
    listed = [str(each) for each in items]
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
