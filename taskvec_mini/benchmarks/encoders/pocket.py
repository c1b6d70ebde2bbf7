"""`pocket`, a small image encoder without batch statistics: 32 x 32 pixels in, 256 numbers out.

A residual network of two million parameters with pre-activation (He et al. 2016, arXiv:1603.05027) and group
normalisation (Wu & He 2018, arXiv:1803.08494). Nothing in it depends on the other images of a batch, so that
a merged model needs no statistics computed anew. `scripts/pretrain_pocket.py` made its weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini.benchmarks.encoders import _weights
from taskvec_mini.benchmarks.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from taskvec_mini.errors import UserError

POCKET_WEIGHTS = _weights.FOLDER / "pocket.safetensors"
WIDTHS = (32, 64, 128, 384)  # channels at 16 x 16, 8 x 8, 4 x 4 and 2 x 2 positions
EMBEDDING = 256
_GROUPS = 8


class Pocket(nn.Module):
    """Embeddings (N, 256) of images (N, 3, 32, 32), normalised as ImageNet's.

    Args:
        widths: channels of the four stages, multiples of 8; more width, more parameters.
        embedding: length of the embedding.

    Example:
        >>> Pocket()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 256])
    """

    def __init__(self, *, widths: tuple[int, ...] = WIDTHS, embedding: int = EMBEDDING):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False)
        sizes = zip((widths[0], *widths[:-1]), widths, (1, 2, 2, 2), strict=True)
        self.blocks = nn.Sequential(*(_Block(*each) for each in sizes))
        self.norm = nn.GroupNorm(_GROUPS, widths[-1])
        self.project = nn.Linear(widths[-1], embedding)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (N, embedding) of images (N, 3, H, W)."""
        hidden = F.relu(self.norm(self.blocks(self.stem(images))))
        embedded: Tensor = self.project(hidden.mean((2, 3)))
        return embedded


class _Block(nn.Module):
    """Two convolutions beside a short cut; the first one may halve the picture."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(images))
        beside = images if self.shortcut is None else self.shortcut(hidden)
        changed: Tensor = self.conv2(F.relu(self.norm2(self.conv1(hidden))))
        return beside + changed


def load_pocket(weights: Path | None = None) -> Backbone:
    """The pretrained encoder; the record beside the weights says how it was made, and which bytes it is.

    Args:
        weights: another weights file X.safetensors, with its record X.json beside it.

    Raises:
        MissingFileError: if one of the two files is not there.
        UserError: if the checksum does not fit, or the file does not hold these weights.
    """
    remedy = "scripts/pretrain_pocket.py makes weights and record"
    model, _ = _weights.read_recorded(Pocket, weights or POCKET_WEIGHTS, name="pocket", remedy=remedy)
    return _backbone("pocket", model)


def random_pocket(weights: Path | None = None) -> Backbone:
    """The same encoder, untrained: He et al.'s initial weights (2015, arXiv:1502.01852), always the same.

    Raises:
        UserError: if `weights` are given.
    """
    if weights is not None:
        raise UserError(f'"random-pocket" reads no weights, got {weights}; ask for "pocket"')
    with torch.device("meta"):
        model = Pocket()
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GroupNorm):
            layer.reset_parameters()
    return _backbone("random-pocket", model)


def _backbone(name: str, model: Pocket) -> Backbone:
    return Backbone(
        name,
        model,
        image_size=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        features=EMBEDDING,
        memory_format=torch.contiguous_format,
    )
