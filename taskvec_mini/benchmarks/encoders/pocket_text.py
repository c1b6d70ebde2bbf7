"""`pocket-text`, a small text encoder: token ids in, one embedding of 128 numbers for each text out.

A transformer of 1.6 million parameters (Vaswani et al. 2017, arXiv:1706.03762) with the normalisation in
front of each part (Xiong et al. 2020, arXiv:2002.04745); the embedding is the mean over a text's tokens.
Nothing in it depends on the other texts of a batch. `scripts/pretrain_pocket_text.py` made its weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import _files
from taskvec_mini.benchmarks.data import MAX_LENGTH, PADDING, VOCABULARY, VOCABULARY_SIZE
from taskvec_mini.benchmarks.encoders import _weights
from taskvec_mini.benchmarks.encoders.base import TextBackbone
from taskvec_mini.errors import UserError

POCKET_TEXT_WEIGHTS = _weights.FOLDER / "pocket_text.safetensors"
WIDTH = 128  # numbers of a token's state, and of the embedding
LAYERS = 3
HEADS = ((-1, 2.0), (1, 2.0), (0, 0.25), (0, 1 / 64))  # each: where it looks first, and how near it stays

_REMEDY = "scripts/pretrain_pocket_text.py makes weights, vocabulary and record"


class PocketText(nn.Module):
    """Embeddings (N, width) of token ids (N, L), in which 0 is padding and counts for nothing.

    Args:
        vocabulary_size: ids are below it.
        width: numbers of a token's state, a multiple of 4; also of the embedding.
        layers: how many times tokens look at each other.
        max_length: the most tokens of a text.

    Example:
        >>> PocketText(vocabulary_size=50)(torch.tensor([[7, 9, 0], [4, 0, 0]])).shape
        torch.Size([2, 128])
    """

    def __init__(
        self,
        *,
        vocabulary_size: int = VOCABULARY_SIZE,
        width: int = WIDTH,
        layers: int = LAYERS,
        max_length: int = MAX_LENGTH,
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Parameter(0.1 * torch.randn(max_length, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (N, width) of int64 token ids (N, L), at least one of each row no padding."""
        kept = (tokens != PADDING)[:, :, None]
        hidden = self.states(tokens)
        return (hidden * kept).sum(1) / kept.sum(1)

    def states(self, tokens: Tensor) -> Tensor:
        """The state (N, L, width) of every token; that of padding means nothing."""
        kept = tokens != PADDING
        hidden = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        bias = nearness(tokens.shape[1]).to(hidden)
        if not bool(kept.all()):
            bias = bias.masked_fill(~kept[:, None, None, :], -torch.inf)
        for block in self.blocks:
            hidden = block(hidden, bias)
        normed: Tensor = self.norm(hidden)
        return normed


def nearness(length: int) -> Tensor:
    """What is added to attention before the softmax, (1, heads, L, L): less, the further a token is away.

    After Press et al. (2022, arXiv:2108.12409), but two of the heads begin at the token before and the one
    behind: without that, a small network learns order late.

    Example:
        >>> nearness(3)[0, 0]  # from each token, the one before counts most
        tensor([[-2., -4., -6.],
                [-0., -2., -4.],
                [-2., -0., -2.]])
    """
    places = torch.arange(length, dtype=torch.float32)
    ahead = places[None, :] - places[:, None]  # how far the token that is looked at is ahead
    return torch.stack([-slope * (ahead - first).abs() for first, slope in HEADS])[None]


class _Block(nn.Module):
    """Attention between the tokens of a text, then a small network for each token alone."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        parts = self.mix(self.norm1(hidden)).unflatten(2, (3, len(HEADS), -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)  # (N, heads, L, width / heads) each
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        hidden = hidden + self.join(seen.transpose(1, 2).flatten(2))
        changed: Tensor = self.narrow(F.gelu(self.widen(self.norm2(hidden))))
        return hidden + changed


def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Initial weights in place, normal: tokens of deviation 1, positions 0.1, matrices 0.5 / √fan-in.

    Tokens are that large so that they stay apart while an optimiser with steps of equal size begins to learn.

    Example:
        >>> model = PocketText(vocabulary_size=50)
        >>> draw_weights(model, torch.Generator().manual_seed(0))
        >>> [round(float(part.detach().std()), 2) for part in (model.tokens.weight, model.positions)]
        [1.01, 0.1]
    """
    for layer in model.modules():
        if isinstance(layer, PocketText):
            nn.init.normal_(layer.positions, 0.0, 0.1, generator=generator)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.5 * layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


def load_pocket_text(weights: Path | None = None) -> TextBackbone:
    """The pretrained encoder; the record beside the weights says how it was made, and which bytes it is.

    Args:
        weights: another weights file X.safetensors, with X.json and X_vocabulary.json beside it.

    Raises:
        MissingFileError: if one of the three files is not there.
        UserError: if a checksum does not fit, or the file does not hold these weights.
    """
    vocabulary = VOCABULARY if weights is None else weights.with_name(f"{weights.stem}_vocabulary.json")
    _weights.check_exists(vocabulary, remedy=_REMEDY)
    model, results = _weights.read_recorded(
        PocketText, weights or POCKET_TEXT_WEIGHTS, name="pocket-text", remedy=_REMEDY
    )
    checksum = str(results.get("vocabulary_sha256"))
    _files.check_sha256(vocabulary, checksum, remedy=_REMEDY)
    return _backbone("pocket-text", model, vocabulary=vocabulary, checksum=checksum)


def random_pocket_text(weights: Path | None = None) -> TextBackbone:
    """The same encoder, not pretrained, with the same numbers at every call and the same vocabulary.

    Raises:
        MissingFileError: if the vocabulary is not there.
        UserError: if `weights` are given.
    """
    if weights is not None:
        raise UserError(f'"random-pocket-text" reads no weights, got {weights}; ask for "pocket-text"')
    _weights.check_exists(VOCABULARY, remedy=_REMEDY)
    with torch.device("meta"):
        model = PocketText()
    model.to_empty(device="cpu")
    draw_weights(model, torch.Generator().manual_seed(0))
    return _backbone("random-pocket-text", model, vocabulary=VOCABULARY, checksum=_files.sha256(VOCABULARY))


def _backbone(name: str, model: PocketText, *, vocabulary: Path, checksum: str) -> TextBackbone:
    return TextBackbone(
        name,
        model,
        features=WIDTH,
        max_length=MAX_LENGTH,
        vocabulary=vocabulary,
        vocabulary_sha256=checksum,
    )
