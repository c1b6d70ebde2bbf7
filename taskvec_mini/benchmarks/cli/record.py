"""`record`: run a study of the book, and write down what it found and what is needed to find it again."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec_mini import _checks, records
from taskvec_mini.benchmarks.cli.words import PROGRAM
from taskvec_mini.errors import UserError

_PLACES = ("runs", "workers", "address")  # options that are about these machines
OWN_OPTIONS = (  # of studies that name them
    "budget_minutes", "gpu", "backbone", "suite", "tasks", "joint", "micro_batch_size", "engine", *_PLACES
)  # fmt: skip
_REPOSITORY = Path(__file__).resolve().parents[3]


def record(options: argparse.Namespace, studies: Mapping[str, Any]) -> None:
    """Run the study `options.study` and write its record.

    A study has a `description` and a method `run(options)` that returns the results. Its attributes `seeds`,
    `settings`, `data` and `device` tell the rest; they are read after the run, so that it may set them. Its
    `own_options` are those that it alone takes.

    Raises:
        ValueError: if there is no such study, it does not take one of the options, or its results are no
            JSON.
        OSError: if the record cannot be written.
    """
    if not studies:
        raise UserError("there are no studies in taskvec_mini.benchmarks.studies; put one into STUDIES")
    study = _checks.named_choice("study", options.study, studies)
    _refuse_foreign_options(options, study, studies)
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
    """The line that makes the record anew: where data, runs and record lie on this machine is left out.

    So are the address of a cluster and the number of its workers: like the speed of the machines, that number
    decides how many epochs fit into a budget, and changes no bit of those that do. The record's settings
    hold it, beside the speed.

    Example:
        >>> command_of(argparse.Namespace(study="clip", data="anywhere", tasks=["dtd", "cars"], gpu=True))
        'python -m taskvec_mini.benchmarks record clip --gpu --tasks dtd cars'
    """
    words = ["record", options.study]
    for name, value in _given(options).items():
        if name not in _PLACES:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [_option(name), *(str(each).removesuffix(".0") for each in values)]
    return f"{PROGRAM} {shlex.join(words)}"


def _given(options: argparse.Namespace) -> dict[str, Any]:
    found = {name: getattr(options, name, None) for name in OWN_OPTIONS}
    return {name: value for name, value in found.items() if value is not None and value is not False}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse_foreign_options(options: argparse.Namespace, study: Any, studies: Mapping[str, Any]) -> None:
    for name in _given(options):
        if name not in getattr(study, "own_options", ()):
            takes = [each for each, other in studies.items() if name in getattr(other, "own_options", ())]
            raise UserError(
                f"the study {options.study!r} takes no {_option(name)}, only {', '.join(takes) or 'none'} "
                "does; leave it out: what a recorded study does is fixed"
            )


def _default_path(study: str) -> Path:
    """In the book's folder of records where this is the book's repository, else where the user stands."""
    book = _REPOSITORY / "book" / "recorded"
    return (book if book.is_dir() else Path()) / f"{study}.json"
