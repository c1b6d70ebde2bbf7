"""Two tasks on short texts in which the last layer of MiniLM learns, to try the theory on."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.networks import FlatLoss, flat_loss, flatten

TOKENS = 6  # of each text, so that nothing is padding
WEATHER = ("It will rain all day tomorrow", "The sun shines on the hills", "Snow fell on the town at night")
MONEY = ("My card was charged twice today", "How can I open an account", "The bank raised its rates again")
ASKED = (
    "Where is the nearest station now",
    "When does the last train leave",
    "Who wrote this book for us",
)
TOLD = ("The station is behind the park", "The last train leaves at ten", "A teacher wrote this book alone")


class LastBlock(nn.Module):
    """Class logits (N, C) of the states (N, L, F) before the last layer; the prototypes (C, F) are frozen."""

    def __init__(self, layer: nn.Module, prototypes: Tensor):
        super().__init__()
        self.layer = layer
        self.register_buffer("prototypes", prototypes)

    def forward(self, states: Tensor) -> Tensor:
        found = self.layer(states)
        hidden = found if isinstance(found, Tensor) else found[0]
        return 10 * F.normalize(hidden.mean(1), dim=1) @ self.prototypes.T


def last_block_losses(*, dtype: torch.dtype = torch.float64) -> tuple[list[FlatLoss], Tensor]:
    """The losses of the two tasks, and the pretrained parameters of the layer (D,)."""
    encoder = load_backbone("minilm")
    transformer = encoder.model.transformer
    losses, start = [], torch.empty(0)
    for classes in ((WEATHER, MONEY), (ASKED, TOLD)):
        tokens = encoder.tokenize([text for texts in classes for text in texts])[:, :TOKENS]
        assert tokens.count_nonzero() == tokens.numel()
        labels = torch.arange(2).repeat_interleave(len(WEATHER))
        with torch.no_grad():
            states = transformer(input_ids=tokens, output_hidden_states=True).hidden_states
        means = F.normalize(states[-1].mean(1), dim=1).view(2, len(WEATHER), -1).mean(1)
        layer = copy.deepcopy(transformer.encoder.layer[-1])
        block = LastBlock(layer, F.normalize(means, dim=1)).to(dtype).eval()
        losses.append(flat_loss(block, states[-2].to(dtype), labels))
        start = flatten(block)
    return losses, start
