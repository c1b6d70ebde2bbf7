"""The files of the suites "bundle" and "large", cut from the archive of a public repository.

`rows.npz` says of each row which picture of the repository it is, what its label and its group are. The
pictures themselves are not part of this library. What was cut is held to two checksums: one of the pictures
as the repository has them, row by row, which has to fit; and one of the finished arrays, which fits where
this machine decodes and resizes as the machine of the records did, to the last bit.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from taskvec_mini.benchmarks.data import image_files
from taskvec_mini.benchmarks.data.image_files import Array
from taskvec_mini.errors import UserError

_PARTS = ("train", "test")
_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm")
_QUALITY = {"quality": 78, "method": 5}  # of the larger pictures, as WebP


@dataclass(frozen=True)
class Source:
    """Where the pictures of a task are, and how they are cut; the table `image_sources.toml` has them.

    Attributes:
        repository, commit: on GitHub.
        megabytes: about what its archive takes.
        under: the folders of its pictures; the rows count the files in them, sorted by name.
        pictures: how many there are.
        mode: "L" for grey, "RGB" for colours.
        cut: "whole", "square" (the one in the middle) or "corners" (four squares of half the short side).
        pixels: of a side of the smaller pictures.
        large_pixels: of the larger ones; 0 where there are none.
        sha256: of the pictures as the repository has them, see `Cut`.
        licence: what the repository says of them.
    """

    repository: str
    commit: str
    megabytes: int
    under: tuple[str, ...]
    pictures: int
    mode: str
    cut: str
    pixels: int
    sha256: str
    licence: str
    large_pixels: int = 0

    @property
    def archive(self) -> str:
        """The path of its archive on GitHub."""
        return f"{self.repository}/archive/{self.commit}.tar.gz"


@dataclass(frozen=True, eq=False)
class Cut:
    """What came out.

    Attributes:
        small: the arrays of the file of "bundle".
        large: those of the file of "large"; None where there is none.
        sha256: of the pictures as the repository has them: of the SHA-256 of each and the number of its
            crop, row by row, first those to learn from.
    """

    small: Mapping[str, Array]
    large: Mapping[str, Array] | None
    sha256: str


@functools.cache
def sources() -> Mapping[str, Source]:
    """The image tasks that can be cut, by name."""
    with open(Path(__file__).with_name("image_sources.toml"), "rb") as file:
        table = tomllib.load(file)
    return {name: Source(**{**entry, "under": tuple(entry["under"])}) for name, entry in table.items()}


def cut(name: str, archive: Path, *, source: Source, rows: Mapping[str, Array]) -> Cut:
    """Find the pictures of a task in an archive and cut them, each to its row.

    Args:
        name: of the task, for messages.
        archive: a tar.gz with one folder around all, as GitHub and `git archive --prefix` make them.
        source: how they are cut.
        rows: as `stored_rows` gives them: `<part>_rows` and all arrays but those of images.

    Raises:
        UserError: if the archive is damaged, has another number of pictures, or one cannot be decoded.
    """
    crops = 4 if source.cut == "corners" else 1
    places: dict[int, list[tuple[str, int, int]]] = {}  # of a picture: part, row, crop
    small: dict[str, Array] = {}
    large: dict[str, list[bytes]] = {}
    marks: dict[str, list[bytes]] = {}
    for part in _PARTS:
        numbers = rows[f"{part}_rows"]
        for row, number in enumerate(numbers.tolist()):
            places.setdefault(number // crops, []).append((part, row, number % crops))
        shape = (len(numbers), source.pixels, source.pixels, 3)
        small[f"{part}_images"] = np.empty(shape[: 4 if source.mode == "RGB" else 3], dtype=np.uint8)
        large[part] = [b""] * len(numbers)
        marks[part] = [b""] * len(numbers)
    try:
        with (
            tarfile.open(archive, "r:gz") as tar,
            tqdm(total=len(places), desc=f"{name}: cutting", unit=" pictures") as progress,
        ):
            files = {member.name.partition("/")[2]: member for member in tar if member.isfile()}
            pictures = sorted(
                each for each in files if each.startswith(source.under) and each.lower().endswith(_ENDINGS)
            )
            if len(pictures) != source.pictures:
                raise UserError(
                    f"{archive} has {len(pictures):,} pictures below {' and '.join(source.under)}, not "
                    f"{source.pictures:,}; delete it and call again"
                )
            for number, picture in enumerate(pictures):
                if number not in places:
                    continue
                stored = tar.extractfile(files[picture])
                content = b"" if stored is None else stored.read()
                mark = hashlib.sha256(content).digest()
                try:
                    with Image.open(io.BytesIO(content)) as opened:
                        image = opened.convert(source.mode)
                except OSError as error:
                    raise UserError(
                        f"{archive}: {picture} cannot be decoded ({error}); delete the archive and call again"
                    ) from error
                for part, row, crop in places[number]:
                    piece = image.crop(_box(image.size, source.cut, crop=crop))
                    small[f"{part}_images"][row] = np.asarray(_resized(piece, source.pixels))
                    if source.large_pixels:
                        written = io.BytesIO()
                        _resized(piece, source.large_pixels).save(written, "WEBP", **_QUALITY)
                        large[part][row] = written.getvalue()
                    marks[part][row] = mark + bytes([crop])
                progress.update()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{archive} is damaged ({error}); delete it and call again") from error
    rest = {key: values for key, values in rows.items() if not key.endswith("_rows")}
    larger = None
    if source.large_pixels:
        larger = dict(rest)
        for part in _PARTS:
            larger[f"{part}_bytes"], larger[f"{part}_ends"] = image_files.encode(large[part])
    pictures_sha256 = hashlib.sha256(b"".join(marks["train"] + marks["test"])).hexdigest()
    return Cut({**rest, **small}, larger, pictures_sha256)


def stored_rows(name: str) -> dict[str, Array]:
    """All that is known of the rows of a task but their pictures.

    Returns:
        `train_rows` and `test_rows`, the numbers of their pictures (of crops where a picture has four), and
        the other arrays of its files.
    """
    with np.load(Path(__file__).with_name("rows.npz"), allow_pickle=False) as stored:
        start = f"{name}/"
        return {key.removeprefix(start): stored[key] for key in stored.files if key.startswith(start)}


def _box(size: tuple[int, int], cut: str, *, crop: int) -> tuple[int, int, int, int]:
    """What is cut out of a picture: left, top, right and bottom."""
    width, height = size
    if cut == "corners":
        side = min(width, height) // 2
        left = (width - side) * (crop % 2)
        top = (height - side) * (crop // 2)
    elif cut == "square":
        side = min(width, height)
        left = (width - side) // 2
        top = (height - side) // 2
    else:
        return 0, 0, width, height
    return left, top, left + side, top + side


def _resized(image: Image.Image, pixels: int) -> Image.Image:
    if image.size == (pixels, pixels):
        return image
    return image.resize((pixels, pixels), Image.Resampling.BICUBIC)
