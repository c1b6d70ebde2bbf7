"""Texts as token ids: sub-words of the vocabulary that an encoder was pretrained with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import _checks, _files, _imports
from taskvec_mini.errors import InputTypeError, MissingFileError, UserError

VOCABULARY = Path(__file__).with_name("pocket_text_vocabulary.json")
VOCABULARY_SIZE = 8000
MAX_LENGTH = 48  # tokens
PADDING = 0  # the token that counts for nothing
SPECIAL = ("[PAD]", "[UNK]", "[MASK]")  # the first three of the vocabulary, so that padding is 0
_REMEDY = "scripts/pretrain_pocket_text.py makes weights, vocabulary and record"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Lower-cased texts as numbers of sub-words (WordPiece: Wu et al. 2016, arXiv:1609.08144).

    Attributes:
        wordpiece: the tokenizer of the library `tokenizers`.
        sha256: the checksum of the vocabulary's file.
        max_length: L, the most tokens that are kept of a text.

    Example:
        >>> tokens = load_tokenizer().encode(["How far is it?", "Far."])
        >>> tokens.shape, tokens.dtype, (tokens > 0).sum(1).tolist()
        (torch.Size([2, 48]), torch.int32, [5, 2])
    """

    wordpiece: Any
    sha256: str
    max_length: int = MAX_LENGTH

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, L) int32 of N texts, cut to L tokens and filled up with zeros.

        Raises:
            TypeError: if `texts` is one text rather than a sequence of them, or holds something else.
            ValueError: if a text has no token at all, because it is empty or only white space.
        """
        if isinstance(texts, str):
            raise InputTypeError("texts must be a sequence of strings, got one string; put it into a list")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputTypeError(f"text {i} must be a string, got {type(text).__name__}")
        tokens = torch.full((len(texts), self.max_length), PADDING, dtype=torch.int32)
        self.wordpiece.no_padding()
        self.wordpiece.enable_truncation(self.max_length)  # marks at both ends of a text are kept
        marks = self.wordpiece.num_special_tokens_to_add(is_pair=False)
        for i, encoding in enumerate(self.wordpiece.encode_batch_fast(list(texts))):
            ids = encoding.ids
            if len(ids) <= marks:
                raise UserError(f"text {i} has no token ({texts[i]!r}); leave empty texts out")
            tokens[i, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        return tokens


def load_tokenizer(
    vocabulary: str | os.PathLike[str] = VOCABULARY, *, max_length: int = MAX_LENGTH
) -> Tokenizer:
    """The tokenizer of `pocket-text`, or of another vocabulary file of the library `tokenizers`.

    Args:
        vocabulary: the file, such as the tokenizer.json of a model in Hugging Face's layout.
        max_length: L, the most tokens that are kept of a text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such vocabulary.
        ImportError: if the library is not installed.

    Example:
        >>> load_tokenizer().wordpiece.id_to_token(0)
        '[PAD]'
    """
    tokenizers = _imports.load(
        "tokenizers", needed_for="cutting texts into tokens", install="taskvec-mini[text]"
    )
    if not os.path.isfile(vocabulary):
        raise MissingFileError(f"there is no file {vocabulary}; {_REMEDY}")
    try:
        wordpiece = tokenizers.Tokenizer.from_file(os.fspath(vocabulary))
    except Exception as error:  # of no narrower kind: the library raises Exception itself
        raise UserError(f"{vocabulary} is no vocabulary of tokenizers ({error}); {_REMEDY}") from error
    if wordpiece.id_to_token(PADDING) != SPECIAL[PADDING]:
        raise UserError(
            f"the vocabulary {vocabulary} does not begin with {SPECIAL[PADDING]}, which fills up texts here; "
            f"take another model, or, for pocket-text: {_REMEDY}"
        )
    wordpiece.encode_special_tokens = True  # "[PAD]" in a text is text, not padding
    return Tokenizer(
        wordpiece, _files.sha256(vocabulary), _checks.whole_number("max_length", max_length, minimum=3)
    )
