"""`record`: run a study of the book, and write down what it found and what is needed to find it again."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskvec_mini import _checks, _files, records
from taskvec_mini._options import changed_options
from taskvec_mini.benchmarks.cli.parser import command_of
from taskvec_mini.benchmarks.cli.requests import RecordRequest
from taskvec_mini.benchmarks.studies import STUDIES, StudyRequest
from taskvec_mini.benchmarks.studies.clip import ClipRequest
from taskvec_mini.errors import FileError, UserError

_REPOSITORY = Path(__file__).resolve().parents[3]


def record(request: RecordRequest) -> dict[str, Any]:
    """Run a study and write its record; its place is tried first, so that no long run is for nothing.

    Returns:
        The record.

    Raises:
        UserError: if there is no such study, it does not take one of the options, or what it raises.
        FileError: if the record cannot be written; where it is then, if anywhere, is in the message.
    """
    study = _checks.named_choice("study", request.study, STUDIES)
    asked: StudyRequest
    if study.request is ClipRequest:
        asked = replace(request.clip, data=request.data)
    else:
        foreign = changed_options(replace(request.clip, data=None))
        if foreign:
            takes = [name for name, each in STUDIES.items() if each.request is ClipRequest]
            raise UserError(
                f"the study {request.study!r} takes no {next(iter(foreign))}, only {', '.join(takes)} does; "
                "leave it out: what a recorded study does is fixed"
            )
        asked = study.request(data=request.data)
    path = request.out
    if path is None:  # in the book's folder where this is the book's repository, else where the user stands
        book = _REPOSITORY / "book" / "recorded"
        path = (book if book.is_dir() else Path()) / f"{request.study}.json"
    check_place(path)
    origin, begun = records.provenance(), time.perf_counter()
    results = study.run(asked)
    written = write_record(
        path,
        results,
        command=command_of(request),
        seeds=list(study.seeds),
        seconds=round(time.perf_counter() - begun, 1),
        settings=study.settings,
        data=study.data,
        origin={**origin, "device": records.provenance(study.device)["device"]},
    )
    print(f"{path}: {len(str(written['results'])):,} characters of results after {written['seconds']} s")
    return written


def write_record(path: Path, results: Any, **fields: Any) -> dict[str, Any]:
    """Write a record; where that fails, write it to the folder for temporary files, so that it is not lost.

    Args:
        path: where to.
        results: what was found.
        fields: the other arguments of `records.write`.

    Raises:
        FileError: if it could not be written to its place; the message says where it is, if it is anywhere.
    """
    try:
        return records.write(path, results, **fields)
    except FileError as error:
        folder = Path(tempfile.mkdtemp(prefix="taskvec_mini-"))
        try:
            records.write(folder / path.name, results, **fields)
        except FileError as other:
            raise FileError(f"{error}; nor could it be kept elsewhere: {other}") from error
        raise FileError(
            f"{error}; the record is in {folder / path.name}: make room and move it to its place"
        ) from error


def check_place(path: Path) -> None:
    """Make the folder of a file that is to be written, and try to write there.

    Raises:
        FileError: if that is not possible; the message names the path.
    """
    if path.is_dir():
        raise FileError(f"{path} is a folder; give the name of a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise FileError(f"{path} could not be written ({error}); {_files.SPACE}") from error
