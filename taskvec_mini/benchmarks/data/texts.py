"""Text classification tasks: token ids and labels in three parts that have no text in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from taskvec_mini import _checks, records
from taskvec_mini.benchmarks.data import splits, text_hub
from taskvec_mini.benchmarks.data.tasks import PARTS, check_labels
from taskvec_mini.benchmarks.data.text_hub import Rows
from taskvec_mini.benchmarks.data.text_tables import BUNDLE, CLASSES, CORE, same_texts
from taskvec_mini.benchmarks.encoders import text as text_encoder
from taskvec_mini.benchmarks.encoders.load import DATA_VARIABLE
from taskvec_mini.errors import InputTypeError, MissingFileError, UserError

_HEADER = "text\tlabel"


class TextTokenizer(Protocol):
    """What turns texts into numbers, such as `text_encoder.Tokenizer`."""

    @property
    def sha256(self) -> str:
        """The checksum of what it depends on."""

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids (N, L) int32 of N texts, where 0 is padding."""


@dataclass(frozen=True, eq=False)
class TextTask:
    """A classification task on texts: what to learn from, what to tune on, what to be judged on.

    Attributes:
        name: a short name.
        class_names: the meaning of each label.
        train_tokens, val_tokens, test_tokens: (N, L) int32 token ids, 0 where a text has ended.
        train_labels, val_labels, test_labels: (N,) int64 from 0.
        sha256: a checksum of the texts, their classes and the tokenizer.
        unit: what progress is counted in.

    Raises:
        TypeError: if tokens are not int32 or labels not int64.
        ValueError: if a part is empty, lengths differ, a token is negative, or a label has no class name.

    Example:
        >>> tokens, labels = torch.tensor([[5, 2, 0], [7, 0, 0]], dtype=torch.int32), torch.tensor([0, 1])
        >>> TextTask("tiny", ("no", "yes"), tokens, labels, tokens, labels, tokens, labels, "0" * 64)
        TextTask('tiny', 2 classes, 3 tokens, 2 train, 2 val, 2 test)
    """

    name: str
    class_names: tuple[str, ...]
    train_tokens: Tensor
    train_labels: Tensor
    val_tokens: Tensor
    val_labels: Tensor
    test_tokens: Tensor
    test_labels: Tensor
    sha256: str
    unit: ClassVar[str] = "texts"

    def __post_init__(self) -> None:
        for part in PARTS:
            tokens, labels = self.part(part)
            _check_part(f"task {self.name!r}, {part}", tokens, labels, classes=len(self.class_names))
            if tokens.shape[1] != self.train_tokens.shape[1]:
                raise UserError(
                    f"task {self.name!r} has {part} texts of {tokens.shape[1]} tokens and train texts of "
                    f"{self.train_tokens.shape[1]}; fill them up with zeros to one length"
                )

    def part(self, part: str) -> tuple[Tensor, Tensor]:
        """Token ids and labels of "train", "val" or "test".

        Raises:
            ValueError: for another part.
        """
        _checks.named_choice("part", part, dict.fromkeys(PARTS))
        return getattr(self, f"{part}_tokens"), getattr(self, f"{part}_labels")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self.part(part)[1])} {part}" for part in PARTS)
        length = self.train_tokens.shape[1]
        return f"TextTask({self.name!r}, {len(self.class_names)} classes, {length} tokens, {sizes})"


def _check_part(what: str, tokens: Tensor, labels: Tensor, *, classes: int) -> None:
    if tokens.dtype != torch.int32 or labels.dtype != torch.int64:
        raise InputTypeError(
            f"{what}: tokens must be int32 and labels int64, got {tokens.dtype} and {labels.dtype}; "
            "convert them with .to(dtype)"
        )
    if tokens.ndim != 2 or len(labels) == 0 or labels.shape != tokens.shape[:1]:
        raise UserError(
            f"{what}: tokens must be (N, L) and labels (N,), at least one, got {tuple(tokens.shape)} and "
            f"{tuple(labels.shape)}; give one row of tokens and one label for each text"
        )
    if int(tokens.min()) < 0:
        raise UserError(f"{what}: token ids must be at least 0, got {int(tokens.min())}; 0 is padding")
    check_labels(what, labels, classes)


def load_text_tasks(
    names: Iterable[str] | None = None,
    *,
    source: str = "files",
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    tokenizer: TextTokenizer | None = None,
) -> dict[str, TextTask]:
    """Text tasks by name, each in a train, a validation and a test part that have no text in common.

    A tenth of the training part, at most 5,000, validates. Texts that are equal but for letter case and white
    space stay on one side, and training texts that stand in the test part are left out. "sst2" and "subj"
    share sentences with different labels; where tasks should be independent, leave one of them out.

    Args:
        names: the tasks, keys of `text_sources.BUNDLE`; by default the first eight.
        source: "files" (tab-separated, checksums checked) or "hub" (Hugging Face, downloaded on first use by
            the package `datasets`; other subsets than the files', see `text_hub`).
        folder: its folder `text` has the files; by default the environment variable TASKVEC_MINI_DATA tells
            it. The hub keeps its own.
        seed: decides the validation part and the order.
        limit: keep at most that many training texts, the first of the shuffled order; nothing else changes.
        tokenizer: turns texts into token ids; by default that of the backbone "pocket-text".

    Returns:
        The tasks in the order asked.

    Raises:
        ValueError: for an unknown name or source, no folder, a file that is not as it was, a line that cannot
            be read, a label that is no class of the task.
        FileNotFoundError: if the folder, a file, a repository or the tokenizer is missing.
        OSError: if a download fails.
        ImportError: if a package is missing that is needed only here.
    """
    _checks.named_choice("source", source, dict.fromkeys(("files", "hub")))
    seed = _checks.whole_number("seed", seed, minimum=0)
    if limit is not None:
        limit = _checks.whole_number("limit", limit)
    wanted = [names] if isinstance(names, str) else names
    chosen = _checks.not_empty("names", CORE if wanted is None else wanted)
    for name in chosen:
        _checks.named_choice("task", name, BUNDLE)
    place = _folder(folder) if source == "files" else None
    words = text_encoder.load_tokenizer() if tokenizer is None else tokenizer
    tasks = {}
    for name in chosen:
        where, train, test, sha256 = text_hub.load(name) if place is None else _from_files(name, place)
        try:
            tasks[name] = _task(name, train, test, sha256, words, seed=seed, limit=limit)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error
    return tasks


# --- files -----------------------------------------------------------------------------------------------


def _folder(folder: str | os.PathLike[str] | None) -> Path:
    given = os.environ.get(DATA_VARIABLE) if folder is None else folder
    if not given:
        raise UserError(
            "the text tasks need a folder: give folder=... or set the environment variable "
            f"{DATA_VARIABLE} to the folder whose folder 'text' has their files; the suite 'text-hub' "
            "downloads them instead (on the command line: --data FOLDER, --suite text-hub)"
        )
    place = Path(given).expanduser() / "text"
    if not place.is_dir():
        raise MissingFileError(
            f"{place} is no folder; give the folder above it as folder=... or in the environment variable "
            f"{DATA_VARIABLE}, or take the suite 'text-hub', which downloads the tasks (on the command line: "
            "--data FOLDER, --suite text-hub)"
        )
    return place


def _from_files(name: str, place: Path) -> tuple[str, Rows, Rows, str]:
    """As `text_hub.load`: where the task came from, its two parts, and a checksum."""
    paths = [place / f"{name}.{part}.tsv" for part in ("train", "test")]
    for path, expected in zip(paths, BUNDLE[name], strict=True):
        if not path.is_file():
            raise MissingFileError(f"{path} is missing; copy it there, or leave the task {name!r} out")
        found = records.checksum(path)
        if found != expected:
            raise UserError(
                f"{path} is truncated or was changed ({path.stat().st_size:,} bytes): its sha256 should be "
                f"{expected} and is {found}; copy the file again from where it came from"
            )
    train, test = (_read(path, CLASSES[name]) for path in paths)
    return str(place / name), train, test, hashlib.sha256("".join(BUNDLE[name]).encode()).hexdigest()


def _read(path: Path, classes: tuple[str, ...]) -> Rows:
    """The rows of a file: a header, then in each line a text, a tab and the name of its class."""
    header, *lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    if header != _HEADER:
        raise UserError(f"{path} begins with {header[:80]!r}; its first line must be {_HEADER!r}")
    rows = Rows([], [])
    for number, line in enumerate(lines, start=2):
        text, tab, name = line.partition("\t")
        if not tab:
            raise UserError(
                f"{path}, line {number}: no tab in {line[:80]!r}; a line is a text, a tab and a class"
            )
        if name not in classes:
            raise UserError(
                f"{path}, line {number}: {name!r} is no class of the task; its {len(classes)} classes are "
                f"{', '.join(classes)}"
            )
        rows.texts.append(text)
        rows.names.append(name)
    return rows


# --- parts -----------------------------------------------------------------------------------------------


def _task(
    name: str, train: Rows, test: Rows, sha256: str, tokenizer: TextTokenizer, *, seed: int, limit: int | None
) -> TextTask:
    known = same_texts(train.texts)
    fresh = splits.without_test_images(known, same_texts(test.texts))
    learnt, val = splits.validation_split([known[i] for i in fresh.tolist()], None, seed=seed)
    parts = {
        "train": (train, fresh[learnt][:limit].tolist()),
        "val": (train, fresh[val].tolist()),
        "test": (test, list(range(len(test.texts)))),
    }
    numbers, tensors = {each: i for i, each in enumerate(CLASSES[name])}, {}
    for part, (rows, places) in parts.items():
        tensors[f"{part}_tokens"] = tokenizer.encode([rows.texts[i] for i in places])
        labels = [numbers[rows.names[i]] for i in places]
        tensors[f"{part}_labels"] = torch.tensor(labels, dtype=torch.int64)
    both = hashlib.sha256(f"{sha256} {tokenizer.sha256}".encode()).hexdigest()
    return TextTask(name=name, class_names=CLASSES[name], sha256=both, **tensors)
