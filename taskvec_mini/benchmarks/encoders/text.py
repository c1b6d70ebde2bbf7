"""The text encoder `pocket-text`, with the vocabulary that its pretraining used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskvec_mini import records
from taskvec_mini.benchmarks import _weights
from taskvec_mini.benchmarks.data import (
    MAX_LENGTH,
    PADDING,
    VOCABULARY,
    VOCABULARY_SIZE,
    load_tokenizer,
)
from taskvec_mini.benchmarks.encoders.pocket_text import WIDTH, PocketText, draw_weights
from taskvec_mini.errors import InputTypeError, UserError

Source = str | os.PathLike[str] | None
WEIGHTS = Path(__file__).parent / "weights" / "pocket_text.safetensors"
_REMEDY = "scripts/pretrain_pocket_text.py makes weights, vocabulary and record"
_WHOLE = (torch.int16, torch.int32, torch.int64)


# --- token ids to embeddings -----------------------------------------------------------------------------


@dataclass
class TextBackbone:
    """A text encoder and the vocabulary it expects; an `Encoder` as images have one.

    Attributes:
        name: what `load_backbone` was asked for.
        model: prepared token ids (N, L) to embeddings (N, features), float32.
        features: F, the length of an embedding.
        max_length: the most tokens of a text that it looks at.
        vocabulary: the file of the vocabulary.
        vocabulary_sha256: its checksum.

    Example:
        >>> backbone = random_pocket_text()
        >>> backbone.model(backbone.prepare(backbone.tokenize(["a text", "another one"]))).shape
        torch.Size([2, 128])
    """

    name: str
    model: nn.Module
    features: int
    max_length: int
    vocabulary: Path
    vocabulary_sha256: str

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    @property
    def preparation(self) -> list[Any]:
        """What `tokenize` and `prepare` depend on, as JSON."""
        return [self.max_length, self.vocabulary_sha256]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, L) int32 of N texts: what `prepare` takes. See `Tokenizer.encode`."""
        return load_tokenizer(self.vocabulary).encode(texts)

    def prepare(self, tokens: Tensor) -> Tensor:
        """Token ids as the model wants them: (N, L') int64, on the model's device.

        Tokens beyond `max_length` are cut, and so are columns at the right that hold nothing but padding.

        Args:
            tokens: (N, L) int16, int32 or int64, where 0 is padding.

        Raises:
            TypeError: if the tokens are no whole numbers.
            ValueError: if they have another shape, a row is all padding, or an id is not in the vocabulary.
        """
        _check_tokens(tokens)
        kept = tokens[:, : self.max_length]
        used = (kept != PADDING).any(0).nonzero()
        empty = (kept == PADDING).all(1).nonzero()
        if len(empty):
            raise UserError(f"text {int(empty[0])} is all padding; leave texts without a token out")
        return kept[:, : int(used[-1]) + 1].to(self.device).long()


def _check_tokens(tokens: Tensor) -> None:
    if not isinstance(tokens, Tensor) or tokens.dtype not in _WHOLE:
        what = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputTypeError(
            f"tokens must be a tensor of whole numbers, got {what}; tokenize(texts) makes one"
        )
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise UserError(f"tokens must be (N, L), at least one, got the shape {tuple(tokens.shape)}")
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high >= VOCABULARY_SIZE:
        raise UserError(
            f"token ids run from {low} to {high}, but the vocabulary from 0 to {VOCABULARY_SIZE - 1}; "
            "they come from another tokenizer"
        )


# --- loading ---------------------------------------------------------------------------------------------


def pocket_text(weights: Source = None) -> TextBackbone:
    """The pretrained encoder; the record beside the weights says how it was made, and which bytes it is.

    Args:
        weights: another weights file X.safetensors, with X.json and X_vocabulary.json beside it.

    Raises:
        FileNotFoundError: if one of the three files is not there.
        ValueError: if a checksum does not fit, or the file does not hold these weights.

    Example:
        >>> pocket_text().features
        128
    """
    path = Path(weights) if weights is not None else WEIGHTS
    vocabulary = VOCABULARY if weights is None else path.with_name(f"{path.stem}_vocabulary.json")
    record = path.with_suffix(".json")
    for each in (path, vocabulary, record):
        _weights.check_exists(each, _REMEDY)
    results = records.read(record)["results"]
    for each, key in ((path, "sha256"), (vocabulary, "vocabulary_sha256")):
        _weights.check_sha256(each, str(results.get(key)), _REMEDY)
    with torch.device("meta"):  # no weights are drawn, because all are read
        model = PocketText()
    model = _weights.read_into(model, path, name="pocket-text", remedy=_REMEDY)
    return TextBackbone("pocket-text", model, WIDTH, MAX_LENGTH, vocabulary, results["vocabulary_sha256"])


def random_pocket_text(weights: Source = None) -> TextBackbone:
    """The same encoder, not pretrained, with the same numbers at every call and the same vocabulary.

    Raises:
        FileNotFoundError: if the vocabulary is not there.
        ValueError: if `weights` are given.

    Example:
        >>> random_pocket_text().name
        'random-pocket-text'
    """
    if weights is not None:
        raise UserError(f'"random-pocket-text" reads no weights, got {weights}; ask for "pocket-text"')
    _weights.check_exists(VOCABULARY, _REMEDY)
    with torch.device("meta"):
        model = PocketText()
    model.to_empty(device="cpu")
    draw_weights(model, torch.Generator().manual_seed(0))
    checksum = records.checksum(VOCABULARY)
    return TextBackbone("random-pocket-text", model, WIDTH, MAX_LENGTH, VOCABULARY, checksum)
