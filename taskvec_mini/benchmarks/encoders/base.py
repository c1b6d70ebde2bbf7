"""An image encoder with the preparation of its images: uint8 pixels in, embeddings out."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import _checks
from taskvec_mini.benchmarks.encoders.protocols import Encoder
from taskvec_mini.errors import InputTypeError, UserError

Channels = tuple[float, float, float]
Resize = Literal["stretch", "crop"]
Interpolation = Literal["bilinear", "bicubic"]
_USUAL = ["stretch", "bilinear"]  # what every encoder did before there was a choice


@dataclass
class Backbone:
    """An encoder and the preparation it expects.

    Attributes:
        name: what `load_backbone` was asked for.
        model: prepared images (N, 3, S, S) to embeddings (N, features), float32.
        image_size: S, the side of a prepared image in pixels.
        mean, std: what the three channels, from 0 to 1, are normalised with.
        features: F, the length of an embedding.
        memory_format: the order of the prepared images in memory that the model is fastest with; its rounding
            may depend on it.
        resize: what becomes of an image of another size: "stretch" makes it a square of S pixels, "crop"
            first brings its shorter side to S pixels and then cuts the square in the middle out.
        interpolation: "bilinear", or "bicubic" in two steps, each rounded to whole levels from 0 to 255, as
            Pillow resizes images of 8 bits; both with antialiasing where the image shrinks.

    Raises:
        ValueError: for another `resize` or `interpolation`.

    Example:
        >>> from taskvec_mini.benchmarks.encoders.load import load_backbone
        >>> backbone = load_backbone("random-pocket")
        >>> backbone.prepare(torch.zeros(5, 28, 28, dtype=torch.uint8)).shape
        torch.Size([5, 3, 32, 32])
    """

    name: str
    model: nn.Module
    image_size: int
    mean: Channels
    std: Channels
    features: int
    memory_format: torch.memory_format = torch.channels_last
    resize: Resize = "stretch"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        _checks.named_choice("resize", self.resize, dict.fromkeys(("stretch", "crop")))
        _checks.named_choice("interpolation", self.interpolation, dict.fromkeys(("bilinear", "bicubic")))

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    @property
    def preparation(self) -> list[Any]:
        """What `prepare` depends on, as JSON; the way of resizing only where it is not the usual one."""
        how = [self.resize, self.interpolation]
        return [self.image_size, list(self.mean), list(self.std), *(how if how != _USUAL else [])]

    def prepare(self, images: Tensor) -> Tensor:
        """Images as the model wants them: (N, 3, S, S) float32, on the model's device.

        Grey becomes three equal channels. Images of another size are resized as `resize` and `interpolation`
        say; images of S x S pixels are not resampled at all.

        Args:
            images: uint8, (N, H, W) grey or (N, H, W, 3) colour.

        Raises:
            TypeError: if the images are not uint8.
            ValueError: if they have another shape.
        """
        _check_images(images)
        pixels = images.to(self.device)
        planes = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        values = self._resized(planes.float() / 255)
        mean, std = (_on_device(each, values.device) for each in (self.mean, self.std))
        return ((values - mean) / std).contiguous(memory_format=self.memory_format)

    def _resized(self, values: Tensor) -> Tensor:
        """Squares of S pixels a side; sizes and margins are rounded as torchvision rounds them."""
        size = self.image_size
        if self.resize == "stretch":
            return _resampled(values, (size, size), self.interpolation)
        height, width = values.shape[2:]
        short = min(height, width)
        shape = int(size * height / short), int(size * width / short)
        values = _resampled(values, shape, self.interpolation)
        top, left = (round((side - size) / 2) for side in shape)
        return values[:, :, top : top + size, left : left + size]


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept, and later used in training too
def _on_device(channels: Channels, device: torch.device) -> Tensor:
    """Three numbers as (3, 1, 1); kept, because a copy to a GPU waits for all the GPU has yet to do."""
    return torch.tensor(channels, device=device)[:, None, None]


def _resampled(values: Tensor, shape: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Images of another shape, antialiased where they shrink; those of this shape as they are."""
    if values.shape[2:] == shape:
        return values
    if interpolation == "bilinear":
        return F.interpolate(values, shape, mode="bilinear", antialias=True, align_corners=False)
    for step in ((values.shape[2], shape[1]), shape):  # across, then down
        values = F.interpolate(values, step, mode="bicubic", antialias=True, align_corners=False)
        values = (values * 255).round().clamp(0, 255) / 255  # it overshoots at edges
    return values


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputTypeError(f"images must be a tensor of torch.uint8 (0 to 255), got {what}")
    shape = tuple(images.shape)
    if not (images.ndim == 3 or (images.ndim == 4 and shape[3] == 3)) or 0 in shape:
        raise UserError(
            f"images must be (N, H, W) grey or (N, H, W, 3) colour, at least one, got the shape {shape}"
        )


@torch.no_grad()
def embed(backbone: Encoder, inputs: Tensor, *, batch_size: int = 256) -> Tensor:
    """Embeddings (N, F) of a task's inputs under the encoder as it is now, without gradients, on its device.

    Raises:
        TypeError: if the encoder's `prepare` takes no such inputs, or `batch_size` is not a whole number.
        ValueError: if the inputs have no shape that it takes, or `batch_size` is below 1.

    Example:
        >>> from taskvec_mini.benchmarks.encoders.load import load_backbone
        >>> embed(load_backbone("random-pocket"), torch.zeros(3, 32, 32, 3, dtype=torch.uint8)).shape
        torch.Size([3, 256])
    """
    size = _checks.whole_number("batch_size", batch_size)
    batches = [inputs[i : i + size] for i in range(0, max(len(inputs), 1), size)]
    return torch.cat([backbone.model(backbone.prepare(batch)) for batch in batches])
