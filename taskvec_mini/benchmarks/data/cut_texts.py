"""The files of the suite "text", cut from files of public repositories, to the byte.

`rows.npz` says of each line which row of the source it is; the rows of a source are counted as `read` gives
them. Nothing of the texts themselves is part of this library.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from taskvec_mini.benchmarks.data.image_files import Array

Rows = list[tuple[str, str]]  # a text and the name of its class
Files = Mapping[str, bytes]  # by the last word of their paths

_TREC = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Source:
    """Where the texts of a task are; the table `text_sources.toml` has them.

    Attributes:
        repository, commit: on GitHub.
        megabytes: about what its files take.
        files: its files, with the SHA-256 of each.
        licence: what is known of it.
    """

    repository: str
    commit: str
    megabytes: int
    files: Mapping[str, str]
    licence: str

    def address(self, file: str) -> str:
        """The path of a file on GitHub."""
        return f"{self.repository}/raw/{self.commit}/{file}"


@functools.cache
def sources() -> Mapping[str, Source]:
    """The text tasks, by name."""
    with open(Path(__file__).with_name("text_sources.toml"), "rb") as file:
        return {name: Source(**entry) for name, entry in tomllib.load(file).items()}


def cut(name: str, files: Files, rows: Mapping[str, Array]) -> dict[str, str]:
    """The content of the two files of a task.

    Args:
        name: of the task.
        files: the files of its source, by the last word of their paths.
        rows: `train_rows` and `test_rows`, the numbers of rows in what `read` gives.

    Returns:
        By "train" and "test": a header and the lines, each a text, a tab and a class.
    """
    parts = dict(zip(("train", "test"), read(name, files), strict=True))
    contents = {}
    for part, found in parts.items():
        lines = ["text\tlabel"]
        for row in rows[f"{part}_rows"].tolist():
            text, label = found[row]
            lines.append(f"{plain(text)}\t{label}")
        contents[part] = "\n".join(lines) + "\n"
    return contents


def read(name: str, files: Files) -> tuple[Rows, Rows]:
    """The rows of a source as they are there: those from which the training file is taken, and the test file.

    Where the source has one part only, both are the same rows.
    """
    return _READERS[name](files)


def plain(text: str) -> str:
    """A text on one line: control characters are spaces, and runs of white space one space.

    Example:
        >>> plain(" two\\tlines\\n")
        'two lines'
    """
    return " ".join(_CONTROL.sub(" ", text).split())


# --- a reader for each source ----------------------------------------------------------------------------


def _lines(content: bytes, encoding: str = "utf-8") -> list[str]:
    return [line for line in content.decode(encoding).split("\n") if line.strip()]


def _sst2(files: Files) -> tuple[Rows, Rows]:
    names = {"0": "negative", "1": "positive"}
    train, test = (
        [(line[2:], names[line[0]]) for line in _lines(files[f"stsa.binary.{part}"])]
        for part in ("train", "test")
    )
    return train, test


def _subj(files: Files) -> tuple[Rows, Rows]:
    rows = [
        (line, label)
        for label in ("objective", "subjective")
        for line in _lines(files[f"subj.{label}"], "cp1252")
    ]
    return rows, rows


def _trec6(files: Files) -> tuple[Rows, Rows]:
    train, test = (
        [
            (line.partition(" ")[2], _TREC[line.partition(":")[0]])
            for line in _lines(files[f"TREC.{part}"], "cp1252")
        ]
        for part in ("train", "test")
    )
    return train, test


def _cola(files: Files) -> tuple[Rows, Rows]:
    names = {"0": "unacceptable", "1": "acceptable"}

    def rows(file: str) -> Rows:
        columns = [line.split("\t") for line in _lines(files[file])]
        return [(text, names[label]) for _, label, _, text in columns]

    return rows("in_domain_train.tsv"), rows("in_domain_dev.tsv") + rows("out_of_domain_dev.tsv")


def _agnews(files: Files) -> tuple[Rows, Rows]:
    def rows(file: str) -> Rows:
        columns = [line.rsplit("\t", 1) for line in _lines(files[file])]
        return [(_repaired(text), label) for text, label in columns]

    return rows("dev.tsv"), rows("test.tsv")


def _repaired(text: str) -> str:
    """A description of AG News with its broken HTML escapes put right; they have lost their ampersands."""
    text = text.replace("\\", " ")
    text = re.sub(r" ?#39;", "'", text)
    text = re.sub(r"quot; ?", '"', text)
    text = re.sub(r"amp;| ?#0?38;", "&", text)
    text = re.sub(r" ?#36;", "$", text)
    text = re.sub(r"&lt;.{0,200}?&gt;", " ", text)
    text = re.sub(r" ?#(\d{4});", lambda found: chr(int(found[1])), text)
    return re.sub(r"#\d+;", " ", text)


def _dbpedia14(files: Files) -> tuple[Rows, Rows]:
    names = dict(re.findall(r"(?m)^(\d+): (\w+)$", files["meta.txt"].decode()))
    train, test = (
        [(text, names[label]) for label, text in csv.reader(io.StringIO(files[file].decode()))]
        for file in ("val.csv", "test.csv")
    )
    return train, test


def _sms_spam(files: Files) -> tuple[Rows, Rows]:
    rows = []
    for line in _lines(files["SMSSpamCollection"])[1:]:
        label, _, text = line.partition("\t")
        rows.append((text, label))
    return rows, rows


def _banking77(files: Files) -> tuple[Rows, Rows]:
    train, test = (
        [(text, label) for text, label in list(csv.reader(io.StringIO(files[file].decode())))[1:]]
        for file in ("train.csv", "test.csv")
    )
    return train, test


def _clinc10(files: Files) -> tuple[Rows, Rows]:
    domains = json.loads(files["domains.json"])
    names = {intent: domain for domain, intents in domains.items() for intent in intents}
    content = json.loads(files["data_full.json"])
    train, test = ([(text, names[intent]) for text, intent in content[part]] for part in ("train", "test"))
    return train, test


def _emotion(files: Files) -> tuple[Rows, Rows]:
    names = dict(line.split("\t") for line in _lines(files["mapping.txt"]))
    train, test = (
        list(
            zip(
                _lines(files[f"{part}_text.txt"]),
                [names[label] for label in _lines(files[f"{part}_labels.txt"])],
                strict=True,
            )
        )
        for part in ("train", "test")
    )
    return train, test


_READERS: Mapping[str, Callable[[Files], tuple[Rows, Rows]]] = {
    "sst2": _sst2,
    "subj": _subj,
    "trec6": _trec6,
    "cola": _cola,
    "agnews": _agnews,
    "dbpedia14": _dbpedia14,
    "sms_spam": _sms_spam,
    "banking77": _banking77,
    "clinc10": _clinc10,
    "emotion": _emotion,
}
