"""What an encoder is: a model with the preparation of its inputs. One class for images, one for texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import MAX_LENGTH, PADDING, VOCABULARY_SIZE, Tokenizer, load_tokenizer
from taskvec_mini.errors import InputTypeError, UserError

Channels = tuple[float, float, float]
Resize = Literal["stretch", "crop"]
Interpolation = Literal["bilinear", "bicubic"]
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class Encoder(Protocol):
    """What finetuning and evaluation ask of an encoder; a dataclass, such as `Backbone`.

    Attributes:
        name: what it was loaded as.
        model: prepared inputs, N of them, to embeddings (N, features), float32.
        features: F, the length of an embedding.
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


@torch.no_grad()
def embed(backbone: Encoder, inputs: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Embeddings (N, F) of a task's inputs under the encoder as it is now, without gradients, on its device.

    Args:
        backbone: the encoder.
        inputs: N of them, as a task holds them.
        batch_size: so many at a time; by default 256 images, or as many texts as suit the device.

    Raises:
        InputTypeError: if the encoder's `prepare` takes no such inputs, or `batch_size` is no whole number.
        UserError: if the inputs have no shape that it takes, or `batch_size` is below 1.

    Example:
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> embed(load_backbone("random-pocket"), torch.zeros(3, 32, 32, 3, dtype=torch.uint8)).shape
        torch.Size([3, 256])
    """
    size = None if batch_size is None else _checks.whole_number("batch_size", batch_size)
    batches = row_batches(backbone, inputs, batch_size=size)
    embedded = torch.cat([backbone.model(backbone.prepare(inputs[rows])) for rows in batches])
    return embedded[torch.cat(batches).argsort().to(embedded.device)]


def row_batches(backbone: Encoder, inputs: Tensor, *, batch_size: int | None = None) -> list[Tensor]:
    """Which rows of inputs to take together, every row once; of texts those of like lengths.

    Little of such a batch is padding.

    Args:
        backbone: the encoder.
        inputs: as a task holds them.
        batch_size: rows in a batch; by default 256 images, or as many texts as suit the device.

    Example:
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> tokens = torch.tensor([[5, 6, 7], [5, 0, 0], [5, 6, 0]], dtype=torch.int32)
        >>> [rows.tolist() for rows in row_batches(load_backbone("random-pocket-text"), tokens, batch_size=2)]
        [[1, 2], [0]]
    """
    if isinstance(backbone, TextBackbone) and inputs.ndim == 2:
        order = (inputs != PADDING).sum(1).cpu().argsort(stable=True)
        size = 32 if backbone.device.type == "cpu" else 256  # few stay in a processor's cache
    else:
        order, size = torch.arange(len(inputs)), 256
    return list(torch.split(order, size if batch_size is None else batch_size))


# --- images ----------------------------------------------------------------------------------------------


@dataclass
class Backbone:
    """An encoder of images and the preparation it expects.

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
        UserError: for another `resize` or `interpolation`.

    Example:
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> backbone = load_backbone("random-pocket")
        >>> backbone.prepare(torch.zeros(5, 28, 28, dtype=torch.uint8)).shape
        torch.Size([5, 3, 32, 32])
    """

    name: str
    model: nn.Module
    _: KW_ONLY
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
        """What `prepare` depends on, as JSON."""
        return [self.image_size, list(self.mean), list(self.std), self.resize, self.interpolation]

    def prepare(self, images: Tensor) -> Tensor:
        """Images as the model wants them: (N, 3, S, S) float32, on the model's device.

        Grey becomes three equal channels. Images of another size are resized as `resize` and `interpolation`
        say; images of S x S pixels are not resampled at all.

        Args:
            images: uint8, (N, H, W) grey or (N, H, W, 3) colour.

        Raises:
            InputTypeError: if the images are not uint8.
            UserError: if they have another shape.
        """
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            what = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise InputTypeError(f"images must be a tensor of torch.uint8 (0 to 255), got {what}")
        if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)) or 0 in images.shape:
            raise UserError(
                "images must be (N, H, W) grey or (N, H, W, 3) colour, at least one, got the shape "
                f"{tuple(images.shape)}"
            )
        pixels = images.to(self.device)
        planes = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        values = planes.float() / 255
        size = self.image_size
        if self.resize == "stretch":
            values = _resampled(values, (size, size), self.interpolation)
        else:  # sizes and margins are rounded as torchvision rounds them
            height, width = values.shape[2:]
            short = min(height, width)
            shape = int(size * height / short), int(size * width / short)
            values = _resampled(values, shape, self.interpolation)
            top, left = (round((side - size) / 2) for side in shape)
            values = values[:, :, top : top + size, left : left + size]
        mean = _channels_on(values.device, self.mean)
        std = _channels_on(values.device, self.std)
        return ((values - mean) / std).contiguous(memory_format=self.memory_format)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept, and later used in training too
def _channels_on(device: torch.device, channels: Channels) -> Tensor:
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


# --- texts -----------------------------------------------------------------------------------------------


def tokenizer_of(backbone: Encoder) -> Tokenizer | None:
    """What cuts texts into the tokens of an encoder, for `load_tasks`; None for an encoder of images.

    Example:
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> print(tokenizer_of(load_backbone("random-pocket")))
        None
    """
    return backbone.tokenizer if isinstance(backbone, TextBackbone) else None


@dataclass
class TextBackbone:
    """An encoder of texts and the vocabulary it expects.

    Attributes:
        name: what `load_backbone` was asked for.
        model: prepared token ids (N, L) to embeddings (N, features), float32.
        features: F, the length of an embedding.
        max_length: the most tokens of a text that it looks at.
        vocabulary: the file of the vocabulary.
        vocabulary_sha256: its checksum.
        vocabulary_size: token ids are below it.
        longest: the most tokens that the model has places for.
        first_token: the id that every text begins with; None where there is none.

    Example:
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> backbone = load_backbone("random-pocket-text")
        >>> backbone.model(backbone.prepare(backbone.tokenize(["a text", "another one"]))).shape
        torch.Size([2, 128])
    """

    name: str
    model: nn.Module
    _: KW_ONLY
    features: int
    max_length: int
    vocabulary: Path
    vocabulary_sha256: str
    vocabulary_size: int = VOCABULARY_SIZE
    longest: int = MAX_LENGTH
    first_token: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    @property
    def preparation(self) -> list[Any]:
        """What `tokenize` and `prepare` depend on, as JSON."""
        return [self.max_length, self.vocabulary_sha256]

    @property
    def tokenizer(self) -> Tokenizer:
        """What cuts texts into the tokens that the encoder was pretrained with; for `load_tasks`."""
        return load_tokenizer(self.vocabulary, max_length=self.max_length)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, L) int32 of N texts: what `prepare` takes. See `Tokenizer.encode`."""
        return self.tokenizer.encode(texts)

    def prepare(self, tokens: Tensor) -> Tensor:
        """Token ids as the model wants them: (N, L') int64, on the model's device.

        Tokens beyond `max_length` are cut, and so are columns at the right that hold nothing but padding.

        Args:
            tokens: (N, L) int16, int32 or int64, where 0 is padding.

        Raises:
            InputTypeError: if the tokens are no whole numbers.
            UserError: if they have another shape, a row is all padding, an id is not in the vocabulary, or a
                text begins with another token than they all do.
        """
        whole = (torch.int16, torch.int32, torch.int64)
        if not isinstance(tokens, Tensor) or tokens.dtype not in whole:
            what = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise InputTypeError(
                f"tokens must be a tensor of whole numbers, got {what}; tokenize(texts) makes one"
            )
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise UserError(f"tokens must be (N, L), at least one, got the shape {tuple(tokens.shape)}")
        low, high = (int(end) for end in tokens.aminmax())
        if low < 0 or high >= self.vocabulary_size:
            raise UserError(
                f"token ids run from {low} to {high}, but the vocabulary from 0 to "
                f"{self.vocabulary_size - 1}; they come from another tokenizer"
            )
        kept = tokens[:, : self.max_length]
        used = (kept != PADDING).any(0).nonzero()
        empty = (kept == PADDING).all(1).nonzero()
        if len(empty):
            raise UserError(f"text {int(empty[0])} is all padding; leave texts without a token out")
        if self.first_token is not None and not bool((kept[:, 0] == self.first_token).all()):
            raise UserError(
                f"a text does not begin with token {self.first_token}, as all do that the tokenizer of "
                f"{self.name} makes; they come from another tokenizer, so give load_tasks the encoder's: "
                "tokenizer=tokenizer_of(backbone)"
            )
        return kept[:, : int(used[-1]) + 1].to(self.device).long()
