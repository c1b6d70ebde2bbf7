"""How fast a finetuning run is: number format, images in memory at a time, compilation, order in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.benchmarks.training.settings import Settings
from taskvec_mini.errors import InputTypeError, UserError

PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What makes a run faster or smaller, and changes its result by rounding only.

    The parameters, their gradients and the optimiser stay float32 with every choice, and so do checkpoints.

    Attributes:
        precision: "float32", with torch's own flags; "tf32", on an NVIDIA GPU, where the matrix products of
            the run may round their factors to ten bits; or "bfloat16", torch's automatic mixed precision: the
            products of the forward and the backward pass in bfloat16, the head and the loss in float32. GPUs
            older than Ampere (a T4, for instance) only emulate it.
        micro_batch_size: so many images are in memory at a time; the gradients of a step are summed over
            them, each micro-batch weighted with its number of images, so that the step is the mean over its
            whole batch. None for all of a batch at once.
        compile: whether torch.compile translates the encoder, which takes a minute or so. It works on whole
            micro-batches; the rest of an epoch goes through the encoder as it is, so that a run that was
            interrupted and one that was not do the same arithmetic.
        channels_last: whether images and convolutions lie in memory with the channels last, which is what a
            GPU's matrix units want.

    Raises:
        ValueError: if the precision is unknown, or the micro-batch is smaller than one image.
        TypeError: if a value is of the wrong kind.

    Example:
        >>> Speed(precision="bfloat16", micro_batch_size=32).changes(Settings(learning_rate=0.1, epochs=1))
        {'precision': 'bfloat16', 'micro_batch_size': 32}
    """

    precision: str = "float32"
    micro_batch_size: int | None = None
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        _checks.named_choice("precision", self.precision, dict.fromkeys(PRECISIONS))
        if self.micro_batch_size is not None:
            size = _checks.whole_number("micro_batch_size", self.micro_batch_size)
            object.__setattr__(self, "micro_batch_size", size)
        for name in ("compile", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise InputTypeError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def images_at_a_time(self, settings: Settings) -> int:
        """How many images go through the encoder together.

        Example:
            >>> Speed(micro_batch_size=500).images_at_a_time(Settings(learning_rate=0.1, epochs=1))
            128
        """
        return min(settings.batch_size, self.micro_batch_size or settings.batch_size)

    def changes(self, settings: Settings) -> dict[str, Any]:
        """What differs from the default and changes the rounding of a run with these settings."""
        plain = asdict(PLAIN)
        found = {name: value for name, value in asdict(self).items() if value != plain[name]}
        if self.images_at_a_time(settings) == settings.batch_size:
            found.pop("micro_batch_size", None)  # nothing is split
        return found

    def check(self, settings: Settings, device: torch.device) -> None:
        """Refuse what cannot go together.

        Raises:
            ValueError: for "tf32" on another device than an NVIDIA GPU, and for micro-batches where the loss
                depends on the whole batch.
        """
        if self.precision == "tf32" and device.type != "cuda":
            raise UserError(f'precision "tf32" needs an NVIDIA GPU, not the device {device}; use "float32"')
        if settings.centre == "batch" and "micro_batch_size" in self.changes(settings):
            raise UserError(
                f'centre="batch" takes the mean of a whole batch of {settings.batch_size}, so it cannot be '
                f"split into {self.micro_batch_size} at a time; leave that out, or lower batch_size"
            )

    def lay_out(self, tensors: Any) -> Any:
        """A module, or a batch of images, in the order in memory that was asked for; texts stay."""
        if not self.channels_last or (isinstance(tensors, Tensor) and tensors.ndim != 4):
            return tensors
        return tensors.to(memory_format=torch.channels_last)

    def forward(self, device: torch.device) -> AbstractContextManager[object]:
        """Around a forward pass: its products in bfloat16, if that was asked for."""
        if self.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """Around a run: torch's flag for float32 products is set for "tf32", and put back afterwards."""
        if self.precision != "tf32":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


PLAIN = Speed()
