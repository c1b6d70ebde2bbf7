"""The data of the recorded studies, made anew from public repositories: fetched, cut, checked, written.

Each task is fetched and cut by itself, and what is finished is not done again. So a call that was stopped,
at any moment, is taken up by the same call.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from taskvec_mini import _checks, _files
from taskvec_mini.benchmarks.data import cut_images, cut_texts, image_files, suites, texts
from taskvec_mini.benchmarks.data.downloads import download
from taskvec_mini.errors import FileError, UserError

GITHUB = "https://github.com"
_MADE = 150  # megabytes that all files of the suites take, and as much again while one is written


@dataclass(frozen=True)
class Offer:
    """A task that can be made.

    Attributes:
        task: its name.
        suites: the suites that have it.
        repository, commit: where it is on GitHub.
        megabytes: about what is fetched.
        files: what is made, below the folder of the data.
        licence: what is known of it.
    """

    task: str
    suites: tuple[str, ...]
    repository: str
    commit: str
    megabytes: int
    files: tuple[str, ...]
    licence: str


def offers() -> dict[str, Offer]:
    """All tasks that can be made, by name, images first.

    Example:
        >>> offers()["scenes15"].files, offers()["sst2"].suites
        (('scenes15.npz', 'large/scenes15.npz'), ('text',))
    """
    found = {}
    for name, images in cut_images.sources().items():
        files = {suite: table[name].file for suite, table in suites.file_tables().items() if name in table}
        found[name] = Offer(
            name,
            tuple(files),
            repository=images.repository,
            commit=images.commit,
            megabytes=images.megabytes,
            files=tuple(dict.fromkeys(files.values())),
            licence=images.licence,
        )
    for name, source in cut_texts.sources().items():
        found[name] = Offer(
            name,
            ("text",),
            repository=source.repository,
            commit=source.commit,
            megabytes=source.megabytes,
            files=tuple(f"text/{file}" for file in texts.file_checksums(name)),
            licence=source.licence,
        )
    return found


def chosen_offers(names: Iterable[str] | None) -> dict[str, Offer]:
    """The offers of these names, or all.

    Raises:
        UserError: for an unknown name, or one given twice.
    """
    known = offers()
    chosen = _checks.not_empty("names", known if names is None else names)
    for name in chosen:
        _checks.named_choice("task", name, known)
    _checks.each_once("task", chosen)
    return {name: known[name] for name in chosen}


def obtain(
    names: Iterable[str] | None,
    folder: str | os.PathLike[str],
    *,
    address: str = GITHUB,
    keep: bool = False,
    wait: float = 2.0,
) -> dict[str, str]:
    """Make the files of some tasks, unless they are there.

    Args:
        names: of `offers`; None for all.
        folder: of the data, made if need be; what is fetched goes to its folder `sources`.
        address: of GitHub, or of a mirror with the same paths.
        keep: leave what was fetched where it is; else it goes when its task is done.
        wait: seconds before a broken connection is opened again.

    Returns:
        By the name of each task, what became of it: `SAME` where the files hold the same as those of the
        records, `OTHER` where the pictures are the same but their pixels were rounded in another way.

    Raises:
        MissingFileError: if a source is gone.
        NoConnectionError: if it cannot be reached; what arrived is kept.
        FileError: if the disk is too small or full.
        UserError: for an unknown name, or a source that is damaged or not what it was.
    """
    place = Path(folder).expanduser()
    chosen = chosen_offers(names)
    missing = {name: offer for name, offer in chosen.items() if state(name, place) is None}
    if missing:
        try:
            (place / "sources").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{place} cannot be made ({error}); {_files.SPACE}") from error
        needed = sum(offer.megabytes for offer in missing.values()) + 2 * _MADE
        free = shutil.disk_usage(place).free // 10**6
        if free < needed:
            raise FileError(
                errno.ENOSPC,
                f"the disk of {place} has {free:,} MB free, and {needed:,} MB are needed: nothing was "
                "fetched; ask for fewer tasks with --tasks, or give another --out",
            )
    for name in missing:
        if name in cut_images.sources():
            _make_images(name, place, address=address, keep=keep, wait=wait)
        else:
            _make_texts(name, place, address=address, keep=keep, wait=wait)
    if not keep and (place / "sources").is_dir() and not any((place / "sources").iterdir()):
        (place / "sources").rmdir()
    return {name: state(name, place) or "" for name in chosen}


SAME = "as in the records"
OTHER = "the same pictures, other pixels: this machine decodes or resizes them with another rounding"


def state(name: str, folder: Path) -> str | None:
    """What the files of a task are, `SAME` or `OTHER`; None where one is missing or damaged.

    Args:
        name: of `offers`.
        folder: of the data.
    """
    if name in cut_texts.sources():
        for file, expected in texts.file_checksums(name).items():
            path = folder / "text" / file
            if not path.is_file() or _files.sha256(path) != expected:
                return None
        return SAME
    found = SAME
    for suite, table in suites.file_tables().items():
        if name in table:
            try:
                _, sha256 = suites.checked_file(name, folder, suite=suite)
            except UserError:
                return None
            if sha256 != table[name].sha256:
                found = OTHER
    return found


def _make_images(name: str, folder: Path, *, address: str, keep: bool, wait: float) -> None:
    source = cut_images.sources()[name]
    archive = folder / "sources" / f"{source.repository.replace('/', '+')}-{source.commit}.tar.gz"
    download(f"{address}/{source.archive}", archive, wait=wait)
    found = cut_images.cut(name, archive, source=source, rows=cut_images.stored_rows(name))
    if found.sha256 != source.sha256:
        raise UserError(
            f"{archive} has other pictures than those of the records (sha256 {found.sha256}, not "
            f"{source.sha256}); delete it and call again, and if it happens again, leave {name!r} out"
        )
    tables = suites.file_tables()
    for suite, arrays in (("bundle", found.small), ("large", found.large)):
        if arrays is not None:
            path = folder / tables[suite][name].file
            path.parent.mkdir(parents=True, exist_ok=True)
            image_files.write_arrays(path, arrays)
    if not keep:
        archive.unlink()


def _make_texts(name: str, folder: Path, *, address: str, keep: bool, wait: float) -> None:
    source = cut_texts.sources()[name]
    place = folder / "sources" / name
    place.mkdir(exist_ok=True)
    contents = {}
    for file, sha256 in source.files.items():
        last = file.rpartition("/")[2]
        download(f"{address}/{source.address(file)}", place / last, sha256=sha256, wait=wait)
        _files.check_sha256(place / last, sha256, remedy="delete it and call again")
        contents[last] = (place / last).read_bytes()
    made = cut_texts.cut(name, contents, cut_images.stored_rows(name))
    (folder / "text").mkdir(exist_ok=True)
    for part, content in made.items():
        _files.write_text(folder / "text" / f"{name}.{part}.tsv", content)
    if not keep:
        shutil.rmtree(place)
