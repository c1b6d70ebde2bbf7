"""The text tasks: files with their checksums, or Hugging Face; cut into tokens and split without a leak.

The files that the recorded studies use are subsets, so results on those of the Hub differ from the book's.
The labels of the test parts of SST-2 and CoLA are not public: their published validation part is used for
testing. The training part of SST-2 holds phrases, not whole sentences only; AG News comes with its headlines,
and AG News and DBpedia come whole. SMS Spam has no test part: a tenth is drawn, always the same. TREC,
Banking77 and Subj are copies that others made, because the authors' own repository needs a loading script,
which `datasets` no longer runs, or there is none. "sst2" and "subj" share sentences with different labels;
where tasks should be independent, leave one of them out.
"""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from taskvec_mini import _files, _imports
from taskvec_mini.benchmarks.data import splits
from taskvec_mini.benchmarks.data.tasks import TextTask
from taskvec_mini.errors import FileError, MissingFileError, UserError

_HEADER = "text\tlabel"


class TextTokenizer(Protocol):
    """What turns texts into numbers, such as a `Tokenizer`."""

    @property
    def sha256(self) -> str:
        """The checksum of what it depends on."""

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids (N, L) int32 of N texts, where 0 is padding."""


class Rows(NamedTuple):
    """Texts with the name of their class, as they were read."""

    texts: list[str]
    names: list[str]


@dataclass(frozen=True)
class Source:
    """What a task is, and where its texts are; the table `texts.toml` has one for each.

    Attributes:
        classes: their names; label i is the i-th.
        train_sha256, test_sha256: the checksums of its two files.
        repository: its id on the Hugging Face Hub, such as "nyu-mll/glue".
        text, label: the columns of the texts and of the classes.
        config: the part of the repository, or None where it has one only.
        test: the split to be judged on, or "" where there is none and a part is drawn.
        theirs: the repository's class names, in its order, and ours; "" for rows that are left out.
    """

    classes: tuple[str, ...]
    train_sha256: str
    test_sha256: str
    repository: str
    text: str
    label: str
    theirs: Mapping[str, str]
    config: str | None = None
    test: str = "test"

    @property
    def where(self) -> str:
        """The repository and its part, for messages."""
        return self.repository if self.config is None else f"{self.repository} ({self.config})"


@functools.cache
def sources() -> Mapping[str, Source]:
    """The text tasks by name; the first eight are the suite."""
    with open(Path(__file__).with_name("texts.toml"), "rb") as file:
        table = tomllib.load(file)
    for entry in table.values():
        theirs = entry.setdefault("theirs", entry["classes"])
        entry["theirs"] = theirs if isinstance(theirs, dict) else {name: name for name in theirs}
        entry["classes"] = tuple(entry["classes"])
    return {name: Source(**entry) for name, entry in table.items()}


def text_task(
    name: str,
    parts: tuple[Rows, Rows],
    *,
    classes: tuple[str, ...],
    sha256: str,
    tokenizer: TextTokenizer,
    limit: int | None,
    seed: int,
) -> TextTask:
    """The task of some rows: a part of the training rows split off to validate, the test part as it is.

    Args:
        name: of the task.
        parts: the rows to learn from, and those to be judged on.
        classes: their names; label i is the i-th.
        sha256: of what they came from.
        tokenizer: turns texts into token ids.
        limit: keep at most that many training texts, the first of the shuffled order.
        seed: decides the validation part and the order.

    Raises:
        TypeError: if the tokenizer gives something else than int32.
        ValueError: if there are too few rows, or a text has no token.
    """
    train, test = parts
    numbers = {each: i for i, each in enumerate(classes)}
    known = same_texts(train.texts)
    fresh = splits.without_test_copies(known, same_texts(test.texts))
    learnt, val = splits.validation_split([known[i] for i in fresh.tolist()], None, seed=seed)
    tensors = {}
    for part, rows, chosen in (
        ("train", train, fresh[learnt][:limit].tolist()),
        ("val", train, fresh[val].tolist()),
        ("test", test, range(len(test.texts))),
    ):
        tensors[f"{part}_tokens"] = tokenizer.encode([rows.texts[i] for i in chosen])
        labels = [numbers[rows.names[i]] for i in chosen]
        tensors[f"{part}_labels"] = torch.tensor(labels, dtype=torch.int64)
    both = hashlib.sha256(f"{sha256} {tokenizer.sha256}".encode()).hexdigest()
    return TextTask(name=name, class_names=classes, sha256=both, **tensors)


def same_texts(texts: list[str]) -> list[bytes]:
    """For each text what it is compared by: letter case and white space make no difference.

    Example:
        >>> same_texts(["Far  away."]) == same_texts(["far away. "])
        True
    """
    return [" ".join(text.casefold().split()).encode() for text in texts]


# --- files -----------------------------------------------------------------------------------------------


def file_checksums(name: str) -> dict[str, str]:
    """The files of a task, with the SHA-256 of each.

    Example:
        >>> list(file_checksums("sst2"))
        ['sst2.train.tsv', 'sst2.test.tsv']
    """
    source = sources()[name]
    return {f"{name}.train.tsv": source.train_sha256, f"{name}.test.tsv": source.test_sha256}


def read_files(name: str, folder: Path) -> tuple[str, tuple[Rows, Rows], str]:
    """The two parts of a task from its files in the folder `text` of `folder`.

    A file has a header, then in each line a text, a tab and the name of its class.

    Returns:
        Where they are, for messages; the rows to learn from and those to be judged on; a sha256 of both.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not as it was, a line cannot be read, or a label is no class of the task.
    """
    checksums, classes = file_checksums(name), sources()[name].classes
    parts = []
    for file, expected in checksums.items():
        path = folder / "text" / file
        if not path.is_file():
            raise MissingFileError(
                f"{path} is missing; make it with `python -m taskvec_mini.benchmarks data --tasks {name} "
                f"--out FOLDER`, or leave the task {name!r} out"
            )
        remedy = "delete it and make it anew with `python -m taskvec_mini.benchmarks data`"
        _files.check_sha256(path, expected, remedy=remedy)
        header, *lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
        if header != _HEADER:
            raise UserError(f"{path} begins with {header[:80]!r}; its first line must be {_HEADER!r}")
        rows = Rows([], [])
        for number, line in enumerate(lines, start=2):
            text, tab, label = line.partition("\t")
            if not tab:
                raise UserError(
                    f"{path}, line {number}: no tab in {line[:80]!r}; a line is a text, a tab and a class"
                )
            if label not in classes:
                raise UserError(
                    f"{path}, line {number}: {label!r} is no class of the task; its {len(classes)} classes "
                    f"are {', '.join(classes)}"
                )
            rows.texts.append(text)
            rows.names.append(label)
        parts.append(rows)
    both = hashlib.sha256("".join(checksums.values()).encode()).hexdigest()
    return str(folder / "text" / name), (parts[0], parts[1]), both


# --- the Hub ---------------------------------------------------------------------------------------------


def read_hub(name: str) -> tuple[str, tuple[Rows, Rows], str]:
    """The two parts of a task from the Hugging Face Hub.

    What was downloaded once is read from the cache of `datasets`, without a network. Rows without text, and
    rows of no class of the task (CLINC's out-of-scope queries), are left out.

    Returns:
        Where they are, for messages; the rows to learn from and those to be judged on; a sha256 of both.

    Raises:
        ValueError: if split, columns or classes are not what they were.
        FileNotFoundError: if the repository is no longer there.
        OSError: if the Hub cannot be reached.
        ImportError: if `datasets` is not installed.
    """
    source = sources()[name]
    train = _hub_rows(source, "train")
    if source.test:
        test = _hub_rows(source, source.test)
    else:
        rest, drawn = splits.validation_split(same_texts(train.texts), None, seed=0)
        train, test = (
            Rows([train.texts[i] for i in rows], [train.names[i] for i in rows])
            for rows in (rest.tolist(), drawn.tolist())
        )
    digest = hashlib.sha256()
    for rows in (train, test):
        for text, label in zip(rows.texts, rows.names, strict=True):
            digest.update(f"{text}\t{label}\n".encode())
        digest.update(b"\n")
    return source.where, (train, test), digest.hexdigest()


def _hub_rows(source: Source, split: str) -> Rows:
    """The rows of one split, with our names of their classes; errors name the repository and the remedy."""
    where = f"{source.where}, split {split!r}"
    remedy = (
        f"see what became of it at https://huggingface.co/datasets/{source.repository} and put the task's "
        "entry in benchmarks/data/texts.toml right, or take suite='text', which reads files"
    )
    library = _imports.load("datasets", needed_for="suite 'text-hub'", install="taskvec-mini[data]")
    try:
        data = library.load_dataset(source.repository, source.config, split=split)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{source.where} is not on the Hugging Face hub, or not open to you ({_line(error)}); {remedy}"
        ) from error
    except OSError as error:
        raise FileError(
            f"{source.where} could not be read from the Hugging Face hub ({_line(error)}); look at the "
            "network connection and call again (what arrived whole is kept), or take suite='text', which "
            "reads files"
        ) from error
    except (ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        raise UserError(f"{where}, cannot be read ({_line(error)}); {remedy}") from error
    for column in (source.text, source.label):
        if column not in data.column_names:
            known = ", ".join(data.column_names)
            raise UserError(f"{where} has no column {column!r}, only {known}; {remedy}")
    names = _our_names(source, data, where=where, remedy=remedy)
    rows = Rows([], [])
    for text, name in zip(data[source.text], names, strict=True):
        plain = " ".join(text.split())
        if plain and name:
            rows.texts.append(plain)
            rows.names.append(name)
    return rows


def _our_names(source: Source, data: Any, *, where: str, remedy: str) -> list[str]:
    """Our class name of each row, through the column's own names of its numbers, or through its words."""
    values, expected = list(data[source.label]), list(source.theirs)
    found = getattr(data.features[source.label], "names", None)
    if found is None:
        ours = {name.lower(): our for name, our in source.theirs.items()}
        labels = [str(value).lower() for value in values]
        for label in labels:
            if label not in ours:
                raise UserError(
                    f"{where}: column {source.label!r} holds {label!r}, none of the classes "
                    f"{', '.join(expected)}; {remedy}"
                )
        return [ours[label] for label in labels]
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        wrong = (f"class {i} is {has!r}, expected {asked!r}" for i, (has, asked) in pairs if has != asked)
        first = next(wrong, f"{len(found)} classes, expected {len(expected)}")
        raise UserError(f"{where} has other classes, or in another order: {first}; {remedy}")
    hidden = [number for number in values if not 0 <= number < len(found)]
    if hidden:
        raise UserError(
            f"{where}: {len(hidden)} of {len(values)} labels are no class, the first is {hidden[0]}, as "
            f"where labels are not public; {remedy}"
        )
    return [source.theirs[found[number]] for number in values]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
