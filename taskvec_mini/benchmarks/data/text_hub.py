"""The text tasks from the Hugging Face hub: columns and class order checked, errors with their remedy.

The files that the recorded studies use are subsets, so results on these differ from the book's. The labels
of the test parts of SST-2 and CoLA are not public: their published validation part is used for testing. The
training part of SST-2 holds phrases, not whole sentences only; AG News comes with its headlines, and AG News
and DBpedia come whole. SMS Spam has no test part: a tenth is drawn, always the same. TREC, Banking77 and Subj
are copies that others made, because the authors' own repository needs a loading script, which `datasets` no
longer runs, or there is none.
"""

from __future__ import annotations

import hashlib
import importlib
from typing import Any, NamedTuple

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import splits
from taskvec_mini.benchmarks.data.text_tables import HUB, HubSource, same_texts
from taskvec_mini.errors import FileError, MissingFileError, UserError


class Rows(NamedTuple):
    """Texts with the name of their class, as they were read."""

    texts: list[str]
    names: list[str]


def load(name: str) -> tuple[str, Rows, Rows, str]:
    """A task from the hub; what was downloaded once is read from the cache of `datasets`, without a network.

    Rows without text, and rows of no class of the task (CLINC's out-of-scope queries), are left out.

    Returns:
        Where it came from, for messages; the rows to learn from; those to be judged on; a sha256 of both.

    Raises:
        ValueError: for an unknown task, or if split, columns or classes are not what they were.
        FileNotFoundError: if the repository is no longer there.
        OSError: if the hub cannot be reached.
        ImportError: if `datasets` is not installed.
    """
    source = _checks.named_choice("task", name, HUB)
    train = _rows(source, "train")
    if source.test is None:
        train, test = _drawn(train)
    else:
        test = _rows(source, source.test)
    return _where(source), train, test, _checksum(train, test)


def _where(source: HubSource) -> str:
    return source.repository if source.config is None else f"{source.repository} ({source.config})"


def _rows(source: HubSource, split: str) -> Rows:
    """The rows of one split; the errors name the repository."""
    data, where = _fetch(source, split), f"{_where(source)}, split {split!r}"
    for column in (source.text, source.label):
        if column not in data.column_names:
            raise UserError(
                f"{where} has no column {column!r}, only {', '.join(data.column_names)}; {_remedy(source)}"
            )
    names = _class_names(source, data, where)
    pairs = zip(data[source.text], names, strict=True)
    kept = [(words, name) for text, name in pairs if name is not None and (words := " ".join(text.split()))]
    return Rows([text for text, _ in kept], [name for _, name in kept])


def _class_names(source: HubSource, data: Any, where: str) -> list[str | None]:
    """Our class name of each row: through the column's own names of its numbers, or through its words."""
    column, expected = list(data[source.label]), list(source.classes)
    found = getattr(data.features[source.label], "names", None)
    if found is None:
        known = {name.lower(): ours for name, ours in source.classes.items()}
        words = [str(value).lower() for value in column]
        for word in words:
            if word not in known:
                raise UserError(
                    f"{where}: column {source.label!r} holds {word!r}, none of the classes "
                    f"{', '.join(expected)}; {_remedy(source)}"
                )
        return [known[word] for word in words]
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        wrong = (f"class {i} is {has!r}, expected {wanted!r}" for i, (has, wanted) in pairs if has != wanted)
        first = next(wrong, f"{len(found)} classes, expected {len(expected)}")
        raise UserError(f"{where} has other classes, or in another order: {first}; {_remedy(source)}")
    hidden = [number for number in column if not 0 <= number < len(found)]
    if hidden:
        raise UserError(
            f"{where}: {len(hidden)} of {len(column)} labels are no class, the first is {hidden[0]}, as "
            f"where labels are not public; {_remedy(source)}"
        )
    return [source.classes[found[number]] for number in column]


def _fetch(source: HubSource, split: str) -> Any:
    """One split as a `datasets.Dataset`."""
    library = _library()
    try:
        return library.load_dataset(source.repository, source.config, split=split)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{_where(source)} is not on the Hugging Face hub, or not open to you ({_line(error)}); "
            f"{_remedy(source)}"
        ) from error
    except OSError as error:
        raise FileError(
            f"{_where(source)} could not be read from the Hugging Face hub ({_line(error)}); look at the "
            "network connection and call again (what arrived whole is kept), or take suite='text', which "
            "reads files"
        ) from error
    except (ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        raise UserError(
            f"{_where(source)}, split {split!r}, cannot be read ({_line(error)}); {_remedy(source)}"
        ) from error


def _remedy(source: HubSource) -> str:
    return (
        f"see what became of it at https://huggingface.co/datasets/{source.repository} and put the task's "
        "entry in text_sources.HUB right, or take suite='text', which reads files"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _library() -> Any:
    """The package `datasets`, imported on use: few need it, and it takes seconds."""
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            f"tasks from the Hugging Face hub need the package datasets ({error}); install it with: "
            'python -m pip install "taskvec-mini[data]"'
        ) from error


def _drawn(rows: Rows) -> tuple[Rows, Rows]:
    """A tenth of the rows for testing, equal texts together, drawn with a fixed seed."""
    rest, drawn = splits.validation_split(same_texts(rows.texts), None, seed=0)
    first, second = (
        Rows([rows.texts[i] for i in part], [rows.names[i] for i in part])
        for part in (rest.tolist(), drawn.tolist())
    )
    return first, second


def _checksum(*parts: Rows) -> str:
    digest = hashlib.sha256()
    for rows in parts:
        for text, name in zip(*rows, strict=True):
            digest.update(f"{text}\t{name}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()
