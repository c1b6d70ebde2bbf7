"""Recorded results: what a long run found, with all that is needed to run it again, in one JSON file.

A record has ten fields, and `read` refuses a file that lacks one:

| field | what it holds |
| --- | --- |
| command | the line that makes the record anew |
| commit | of this repository; `+changes` behind it where the source differed from that commit |
| date, device, versions | the day (UTC), what it ran on, the versions of Python and of the libraries |
| seeds, seconds | every seed that was used, and how long the run took |
| data | the SHA-256 of each data file, by the file's name |
| settings, results | what was chosen, and what came out |
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import taskvec_mini
from taskvec_mini import _files
from taskvec_mini.errors import FileError, InputTypeError, UserError

FIELDS = (
    "command",
    "commit",
    "date",
    "device",
    "versions",
    "seeds",
    "seconds",
    "data",
    "settings",
    "results",
)
_PACKAGE = Path(__file__).resolve().parent
_MACHINE_PATH = re.compile(r"(?<![\w.:/~])(?:~?(?:/[\w.+-]+){2,}|[A-Za-z]:\\)")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record in a file: a dictionary with the ten fields, all there and each of its kind.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON, a field is missing or of the wrong kind, a number is NaN or infinite, or
            a text names a path of one machine.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sums.json"
        >>> found = write(path, {"sum": 3}, command="python sums.py", seeds=[], seconds=0.1)
        >>> read(path)["results"]
        {'sum': 3}
    """
    record = _files.read_json(
        path, what="record", remedy="run the command that makes it, or load_or_run with rerun=True"
    )
    try:
        return _complete(record)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def write(
    path: str | os.PathLike[str],
    results: Any,
    *,
    command: str,
    seeds: Sequence[int],
    seconds: float,
    settings: Mapping[str, Any] | None = None,
    data: Mapping[str, str] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a complete record, whole or not at all: an older file stays until then.

    Args:
        path: the JSON file; its folder has to exist.
        results: numbers, texts, lists and dictionaries with texts as keys; every float finite.
        command: the line that makes this record anew, without a path of this machine.
        seeds: every seed that was used; none for a run that draws nothing.
        seconds: how long the run took.
        settings: what was chosen.
        data: the SHA-256 of each data file, by the file's name (`sha256sum` prints it).
        origin: what `provenance` said before the run began; by default what it says now.

    Returns:
        The record as `read` gives it back.

    Raises:
        TypeError: if something is no JSON; the message names its place, as in results['mnist'][2].
        ValueError: if a float is NaN or infinite, a field is wrong, or a text names a path of this machine.
        OSError: if the folder does not exist, may not be written to, or is full.
    """
    record = _complete(
        {
            **(provenance() if origin is None else origin),
            "command": command,
            "seeds": seeds,
            "seconds": seconds,
            "settings": settings or {},
            "data": data or {},
            "results": results,
        }
    )
    _files.write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record


def load_or_run(
    path: str | os.PathLike[str],
    compute: Callable[[], Any],
    *,
    rerun: bool = False,
    command: str | None = None,
    seeds: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    data: Mapping[str, str] | None = None,
) -> Any:
    """The results in a record; with `rerun`, or without a record, those of `compute()`, which are recorded.

    What describes the run is taken from the older record where it is not given. What is given and differs
    from the record that is read is an error: the results would be those of something else.

    Args:
        path: the record.
        compute: a function without arguments that returns the results.
        rerun: compute even where a record exists, and replace it.
        command, seeds, settings, data: as in `write`.

    Raises:
        ValueError: if the record is not complete or tells of another run, or `command` or `seeds` is needed.
        TypeError: if the results are no JSON.
        OSError: if the record cannot be written; nothing is computed where its folder is not there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sums.json"
        >>> load_or_run(path, lambda: [1 + 1], command="python sums.py", seeds=[])
        [2]
        >>> load_or_run(path, lambda: 1 / 0)  # the record is there, so nothing is computed
        [2]
    """
    given = {"command": command, "seeds": seeds, "settings": settings, "data": data}
    given = {name: value for name, value in given.items() if value is not None}
    older = read(path) if Path(path).exists() else {}
    if older and not rerun:
        for name, value in given.items():
            asked = _plain(value, name)
            if older[name] != asked:
                raise UserError(
                    f"{path} tells of another run: its {name!r} is {_short(older[name])}, asked for is "
                    f"{_short(asked)}; use rerun=True to record anew"
                )
        return older["results"]
    about: dict[str, Any] = {
        name: given.get(name, older.get(name)) for name in ("command", "seeds", "settings", "data")
    }
    for name in ("command", "seeds"):
        if about[name] is None:
            raise UserError(f"there is no record {path} yet, and {name} is missing; give {name}=...")
    if not os.access(Path(path).parent, os.W_OK):  # said before the hours, not after
        raise FileError(f"{path} cannot be written: {Path(path).parent} is no folder that you may write into")
    origin = provenance()
    begun = time.perf_counter()
    results = compute()
    return write(path, results, **about, seconds=time.perf_counter() - begun, origin=origin)["results"]


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Where results come from: commit, date (UTC), device and versions, as in a record.

    Args:
        device: what the run computes on.

    Example:
        >>> sorted(provenance())
        ['commit', 'date', 'device', 'versions']
    """
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "taskvec_mini": taskvec_mini.__version__,
    }
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        commit = f"no repository, taskvec_mini {taskvec_mini.__version__}"
    elif _git("status", "--porcelain", "--", "taskvec_mini", "scripts"):
        commit += "+changes"
    place = torch.device(device)
    if place.type == "cuda":
        computer = f"{torch.cuda.get_device_name(place)} (CUDA {torch.version.cuda})"
    else:
        threads = torch.get_num_threads()
        instructions = torch.backends.cpu.get_cpu_capability()
        plural = "s" if threads > 1 else ""
        computer = f"{platform.machine()} CPU ({instructions}), {threads} thread{plural}"
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"commit": commit, "date": date, "device": computer, "versions": versions}


def _git(*arguments: str) -> str | None:
    """What git says about the repository of this package; None where the package lies in none."""
    root = _PACKAGE.parent
    if not (root / ".git").exists():  # else git would look further up, and find somebody else's
        return None
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


# what a complete record is


def _complete(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` as plain JSON in the order of the fields; an error that names the first field in want."""
    for name in FIELDS:
        if name not in record:
            raise UserError(f"the field {name!r} is missing; record it anew, or add it from the run's notes")
    for name in record:
        if name not in FIELDS:
            raise UserError(f"unknown field {name!r}; put it into 'settings' or 'results'")
    plain = {name: _plain(record[name], name) for name in FIELDS}
    for name, (fits, wanted) in _KINDS.items():
        if not fits(plain[name]):
            raise UserError(f"the field {name!r} must be {wanted}, got {_short(plain[name])}")
    return plain


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(_text(item) for item in value.values())


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "command": (_text, "the line that makes the record anew"),
    "commit": (_text, "the commit of the repository"),
    "date": (lambda v: _text(v) and bool(re.fullmatch(r"\d{4}-\d\d-\d\d", v)), "a day such as 2026-01-31"),
    "device": (_text, "what the run computed on"),
    "versions": (lambda v: _texts(v) and bool(v), "the version of each library, by its name"),
    "seeds": (lambda v: isinstance(v, list) and all(type(s) is int for s in v), "a list of whole numbers"),
    "seconds": (lambda v: type(v) in (int, float) and v >= 0, "a number of at least 0"),
    "data": (
        lambda v: _texts(v) and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in v.values()),
        "64 hexadecimal digits (SHA-256) for each file, by its name",
    ),
    "settings": (lambda v: isinstance(v, dict), "a dictionary"),
    "results": (lambda v: v not in (None, {}, [], ""), "what came out"),
}


def _plain(value: Any, place: str) -> Any:
    """`value` as JSON would give it back; an error that names the place of what JSON cannot hold."""
    if isinstance(value, str):
        return _portable(value, place)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(
                f"{place} is {value}, which no record may hold; leave it out or find what diverged"
            )
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        plain = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputTypeError(f"{place} has the key {key!r}, but keys must be texts; use str(...)")
            plain[_portable(key, f"a key of {place}")] = _plain(item, f"{place}[{key!r}]")
        return plain
    remedy = "use .tolist()" if hasattr(value, "tolist") else "use numbers, texts, lists and dictionaries"
    raise InputTypeError(f"{place} is of type {type(value).__name__}, which JSON cannot hold; {remedy}")


def _portable(text: str, place: str) -> str:
    """`text` itself; an error where it names a path that only one machine has."""
    if found := _MACHINE_PATH.search(text):
        raise UserError(
            f"{place} names a path of this machine ({text[found.start() :].split()[0]}); "
            "use a path relative to the repository, or the file's name"
        )
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
