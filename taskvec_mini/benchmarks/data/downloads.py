"""Files from the network, byte by byte onto the disk: with progress, taken up again where they broke off.

What arrives is kept beside its place, in a file that ends in `.part`, until it is whole. A connection that
breaks is opened again, and the server asked for the rest; one that does not know how to begin in the middle
sends all of it once more.
"""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from taskvec_mini import _files
from taskvec_mini.benchmarks.data.image_files import full_disk
from taskvec_mini.errors import FileError, MissingFileError, NoConnectionError, UserError

_TIMEOUT = 60.0  # seconds of silence until a connection counts as broken
_PIECE = 1 << 18  # bytes that are read at a time
_GONE = (401, 403, 404, 410, 451)  # what a server answers where asking again is of no use
_WHOLE = 416  # what it answers where there is nothing after the byte to begin with


def download(
    address: str, path: Path, *, sha256: str | None = None, attempts: int = 5, wait: float = 2.0
) -> None:
    """Fetch a file, unless it is there.

    Args:
        address: where from, such as "https://example.org/file.txt".
        path: where to, in a folder that is there.
        sha256: what the file must have; None where the caller checks it in another way.
        attempts: connections that may break in a row without a byte, before this one fails.
        wait: seconds before the second of these; each time twice as long.

    Raises:
        MissingFileError: if the server has no such file, or shows it to nobody.
        NoConnectionError: if it does not answer, or the connection breaks again and again. What arrived is
            kept, and the next call goes on from there.
        FileError: if the disk is full, or the file cannot be written.
        UserError: if the file has another sha256; it is deleted.
    """
    if path.is_file():
        return
    part = path.with_name(f"{path.name}.part")
    if part.is_symlink():  # what it leads to is not ours to write to
        part.unlink()
    failures = 0
    while True:
        before = _size(part)
        try:
            _receive(address, part, title=path.name)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == _WHOLE and before:  # the part has more bytes than the file, it is of another one
                part.unlink()
            elif error.code in _GONE:
                raise MissingFileError(
                    f"{address} is not to be had ({error.code} {error.reason}): it was moved, deleted or "
                    "closed; leave its task out with --tasks, or take the suite 'torchvision' or 'text-hub'"
                ) from error
            cause: Exception = error
        except (OSError, http.client.HTTPException) as error:
            if full := full_disk(error):
                raise FileError(
                    full.errno,
                    f"the disk is full while {path.name} was fetched to {path.parent} ({_size(part):,} bytes "
                    "of it are there); free some space, or give another --out, and call again: what arrived "
                    "is kept",
                ) from error
            cause = error
        failures = failures + 1 if _size(part) <= before else 1
        if failures >= attempts:
            raise NoConnectionError(
                f"{address} could not be fetched ({' '.join(str(cause).split()) or type(cause).__name__}); "
                f"look at the network connection and call again: the {_size(part):,} bytes that arrived are "
                "kept"
            ) from cause
        time.sleep(wait * 2 ** (failures - 1))
    if sha256 is not None:
        found = _files.sha256(part)
        if found != sha256:
            part.unlink()
            raise UserError(
                f"{address} has the sha256 {found}, not {sha256}, and was deleted; call again, and if it "
                "happens again, leave its task out with --tasks: the source is no longer what it was"
            )
    with _files.replacing(path) as place:
        os.replace(part, place)


def _receive(address: str, part: Path, *, title: str) -> None:
    """Add to `part` what the server has after it; an error unless that is all."""
    start = _size(part)
    request = urllib.request.Request(address, headers={"User-Agent": "taskvec-mini"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if error.code == _WHOLE and whole and int(whole[1]) == start:
            error.close()
            return
        raise
    with response:
        if response.status != 206:  # all of it, from the beginning
            start = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(total=total, initial=start, desc=title, unit="B", unit_scale=True) as progress,
        ):
            while piece := response.read(_PIECE):
                file.write(piece)
                progress.update(len(piece))
    if total is not None and _size(part) != total:
        raise http.client.IncompleteRead(b"", total - _size(part))


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
