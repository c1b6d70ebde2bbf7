"""Small text tasks for tests: words as numbers, a tiny encoder, and texts whose words tell the class."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskvec_mini.benchmarks.data import TextTask, texts
from taskvec_mini.benchmarks.heads import Head, PrototypeHead

VOCABULARY, LENGTH = 60, 7
ROWS = [
    (f"text {i} is {('bad', 'good')[i % 3 == 0]}", ("negative", "positive")[i % 3 == 0]) for i in range(60)
]
TEST_ROWS = [(f"another {i}", ("positive", "negative")[i % 2]) for i in range(8)]


class Words:
    """A tokenizer: every word becomes a number from 1 on, whatever its case."""

    sha256 = "0" * 64

    def encode(self, texts: Sequence[str]) -> Tensor:
        tokens = torch.zeros(len(texts), LENGTH, dtype=torch.int32)
        for row, text in zip(tokens, texts, strict=True):
            for place, word in enumerate(text.lower().split()[:LENGTH]):
                digest = hashlib.sha256(word.encode()).digest()
                row[place] = 1 + int.from_bytes(digest[:4], "big") % (VOCABULARY - 1)
        return tokens


class MeanOfWords(nn.Module):
    """Embeddings (N, 6): the mean of the words' states through a layer; padding counts for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(VOCABULARY, 5), nn.Linear(5, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        kept = (tokens > 0)[:, :, None]
        mean = (self.words(tokens) * kept).sum(1) / kept.sum(1)
        return torch.tanh(self.mix(mean))


@dataclass
class TinyTextEncoder:
    """An encoder as the pipeline asks for it."""

    name: str
    model: nn.Module
    features: int = 6

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def preparation(self) -> list[Any]:
        return [Words.sha256]

    def prepare(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.device).long()


def tiny_text_encoder(seed: int = 0) -> TinyTextEncoder:
    model, generator = MeanOfWords(), torch.Generator().manual_seed(seed)
    for part in model.parameters():
        nn.init.normal_(part, 0.0, 0.5, generator=generator)
    return TinyTextEncoder("tiny-text", model)


def texts_of(labels: Sequence[int], *, start: int = 0) -> list[str]:
    """A different text for each label, from two to seven words, some of which belong to the class."""
    fillers = ["red", "green", "blue", "seven", "boats", "sail", "under", "old", "bridges"]
    found = []
    for number, label in enumerate(labels, start):
        words = [fillers[(number * step) % len(fillers)] for step in range(1, 1 + number % 5)]
        found.append(" ".join([f"kind{label}", *words, f"n{number}"]))
    return found


def tiny_text_task(name: str = "kinds", *, classes: int = 3, train: int = 31) -> TextTask:
    tensors, words = {}, Words()
    for part, start, count in (("train", 0, train), ("val", 100, 9), ("test", 200, 14)):
        labels = [i % classes for i in range(count)]
        tensors[f"{part}_tokens"] = words.encode(texts_of(labels, start=start))
        tensors[f"{part}_labels"] = torch.tensor(labels)
    names = tuple(f"kind {i}" for i in range(classes))
    return TextTask(name=name, class_names=names, sha256="1" * 64, **tensors)


def tiny_text_head(classes: int = 3, seed: int = 0) -> Head:
    rows = torch.randn(classes, 6, generator=torch.Generator().manual_seed(seed))
    return PrototypeHead(nn.functional.normalize(rows, dim=1), torch.full((6,), 0.1), 5.0)


def as_read(rows: Sequence[tuple[str, str]]) -> str:
    """What a file with these texts and classes holds."""
    return "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that writes the two files of a task, makes their checksums known, and gives the folder."""

    def write(train: Any = ROWS, test: Any = TEST_ROWS, *, name: str = "sst2") -> Path:
        (tmp_path / "text").mkdir(exist_ok=True)
        sums = {}
        for part, rows in (("train", train), ("test", test)):
            content = (rows if isinstance(rows, str) else as_read(rows)).encode()
            (tmp_path / "text" / f"{name}.{part}.tsv").write_bytes(content)
            sums[f"{part}_sha256"] = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(texts.sources(), name, replace(texts.sources()[name], **sums))  # type: ignore
        return tmp_path

    return write
