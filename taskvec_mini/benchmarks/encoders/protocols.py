"""What the pipeline asks of an encoder and of a task: images are one kind, texts another."""

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


class Task(Protocol):
    """A classification task in three parts, such as `image_tasks.ImageTask`; made once and never changed."""

    @property
    def name(self) -> str:
        """A short name, unique in its suite."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The meaning of each label."""

    @property
    def sha256(self) -> str:
        """The checksum of the data it came from."""

    def part(self, part: str) -> tuple[Tensor, Tensor]:
        """Inputs (N, ...) and int64 labels (N,) of "train", "val" or "test"; else a ValueError."""
