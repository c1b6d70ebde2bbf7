"""`record`: run a study of the book, and write down what it found and what is needed to find it again."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec_mini import _checks, records
from taskvec_mini.benchmarks._cli_parser import PROGRAM

_REPOSITORY = Path(__file__).resolve().parents[2]


def record(options: argparse.Namespace, studies: Mapping[str, Any]) -> None:
    """Run the study `options.study` and write its record.

    A study has a `description` and a method `run(options)` that returns the results. Its attributes `seeds`,
    `settings`, `data` and `device` tell the rest; they are read after the run, so that it may set them.

    Raises:
        ValueError: if there is no such study, or its results are no JSON.
        OSError: if the record cannot be written.
    """
    if not studies:
        raise ValueError("there are no studies in taskvec_mini.benchmarks.studies; put one into STUDIES")
    study = _checks.named_choice("study", options.study, studies)
    path = options.out or _default_path(options.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    origin, begun = records.provenance(), time.perf_counter()
    results = study.run(options)
    written = records.write(
        path,
        results,
        command=command_of(options),
        seeds=list(getattr(study, "seeds", [])),
        seconds=round(time.perf_counter() - begun, 1),
        settings=getattr(study, "settings", {}),
        data=getattr(study, "data", {}),
        origin={**origin, "device": records.provenance(getattr(study, "device", "cpu"))["device"]},
    )
    print(f"{path}: {len(str(written['results'])):,} characters of results after {written['seconds']} s")


def command_of(options: argparse.Namespace) -> str:
    """The line that makes the record anew: where data and record lie on this machine is left out.

    Example:
        >>> command_of(argparse.Namespace(study="first_epoch", data="anywhere"))
        'python -m taskvec_mini.benchmarks record first_epoch'
    """
    return f"{PROGRAM} record {options.study}"


def _default_path(study: str) -> Path:
    """In the book's folder of records where this is the book's repository, else where the user stands."""
    book = _REPOSITORY / "book" / "recorded"
    return (book if book.is_dir() else Path()) / f"{study}.json"
