"""What the pipeline asks of an encoder: one of images is one kind, one of texts another."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


class Encoder(Protocol):
    """An encoder with the preparation of its inputs; a dataclass, such as `backbones.Backbone`.

    Attributes:
        name: what it was loaded as.
        model: prepared inputs, N of them, to embeddings (N, features), float32.
        features: the length of an embedding.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str
    model: nn.Module
    features: int

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""

    @property
    def preparation(self) -> list[Any]:
        """What `prepare` depends on, as JSON: with other values a run is another run."""

    def prepare(self, inputs: Tensor) -> Tensor:
        """Inputs as a task holds them, made what the model wants, on the model's device."""
