"""Image encoders, each with the preparation that its pretraining used: uint8 images in, embeddings out.

No encoder here computes statistics of a batch. `pocket` has group normalisation; in the others the batch
normalisation keeps the statistics of pretraining as constants, so that a merged model needs none computed
anew.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from taskvec_mini import _checks, records
from taskvec_mini.benchmarks import mobilenet
from taskvec_mini.benchmarks.pocket import EMBEDDING, Pocket
from taskvec_mini.benchmarks.protocols import Encoder

Channels = tuple[float, float, float]
Source = str | os.PathLike[str] | None
DATA_VARIABLE = "TASKVEC_MINI_DATA"  # the environment variable with the folder of data and weights
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
POCKET_WEIGHTS = Path(__file__).parent / "weights" / "pocket.safetensors"
MOBILENET_WEIGHTS = "mobilenet_v1_1.0_224_imagenet_backbone12.npz"
_MOBILENET_SHA256 = "9b2fdb9810d6bc78c92f6df16178e88031c4c97d39646be978ee0c76a13ad0bd"
_HALF: Channels = (0.5, 0.5, 0.5)
TORCHVISION = {  # the layer that is taken away, and the length of the embedding
    "resnet18": ("fc", 512),
    "resnet50": ("fc", 2048),
    "mobilenet_v3_small": ("classifier", 576),
    "vit_b_16": ("heads", 768),
    "vit_b_32": ("heads", 768),
}


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

    Example:
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

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    @property
    def preparation(self) -> list[Any]:
        """What `prepare` depends on, as JSON."""
        return [self.image_size, list(self.mean), list(self.std)]

    def prepare(self, images: Tensor) -> Tensor:
        """Images as the model wants them: (N, 3, S, S) float32, on the model's device.

        Grey becomes three equal channels. An image of another size is resized bilinearly, with antialiasing
        where it shrinks; one that is not square is stretched. Images of S x S pixels are not resampled at
        all.

        Args:
            images: uint8, (N, H, W) grey or (N, H, W, 3) colour.

        Raises:
            TypeError: if the images are not uint8.
            ValueError: if they have another shape.
        """
        _check_images(images)
        pixels = images.to(self.device)
        planes = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        values = planes.float() / 255
        if values.shape[2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            values = F.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (values.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        return ((values - mean) / std).contiguous(memory_format=self.memory_format)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a tensor of torch.uint8 (0 to 255), got {what}")
    shape = tuple(images.shape)
    if not (images.ndim == 3 or (images.ndim == 4 and shape[3] == 3)) or 0 in shape:
        raise ValueError(
            f"images must be (N, H, W) grey or (N, H, W, 3) colour, at least one, got the shape {shape}"
        )


@torch.no_grad()
def embed(backbone: Encoder, inputs: Tensor, *, batch_size: int = 256) -> Tensor:
    """Embeddings (N, F) of a task's inputs under the encoder as it is now, without gradients, on its device.

    Raises:
        TypeError: if the encoder's `prepare` takes no such inputs, or `batch_size` is not a whole number.
        ValueError: if the inputs have no shape that it takes, or `batch_size` is below 1.

    Example:
        >>> embed(load_backbone("random-pocket"), torch.zeros(3, 32, 32, 3, dtype=torch.uint8)).shape
        torch.Size([3, 256])
    """
    size = _checks.whole_number("batch_size", batch_size)
    batches = [inputs[i : i + size] for i in range(0, max(len(inputs), 1), size)]
    return torch.cat([backbone.model(backbone.prepare(batch)) for batch in batches])


def load_backbone(name: str = "pocket", *, weights: Source = None, image_size: int | None = None) -> Backbone:
    """A pretrained encoder with its preparation, on the CPU.

    "pocket" is this project's small encoder (32 pixels, 256 features), and "random-pocket" is the same, not
    pretrained, with the same numbers at every call. "mobilenet" is an ImageNet MobileNetV1 without its last
    block (64 pixels, 1024 features). "resnet18", "resnet50", "mobilenet_v3_small", "vit_b_16" and "vit_b_32"
    are torchvision's (224 pixels), without their classifier; the first use downloads them.

    Args:
        name: one of the above.
        weights: the weights file. By default pocket's own; for mobilenet the one in the folder `weights` of
            the folder that the environment variable TASKVEC_MINI_DATA names; for torchvision's the download.
        image_size: another side of the prepared images, in pixels; vision transformers take 224 only.

    Raises:
        ValueError: if the name is unknown (near names are suggested), or the checksum of the file does not
            fit.
        FileNotFoundError: if the weights are not there.
        OSError: if a download fails.

    Example:
        >>> load_backbone("random-pocket").features
        256
    """
    backbone = _checks.named_choice("backbone", name, _MAKERS)(weights)
    if image_size is None:
        return backbone
    size = _checks.whole_number("image_size", image_size)
    if name.startswith("vit") and size != backbone.image_size:
        raise ValueError(
            f"{name} takes images of {backbone.image_size} pixels, not {size}; leave image_size out"
        )
    return replace(backbone, image_size=size)


# --- ours ------------------------------------------------------------------------------------------------


def _pocket(weights: Source) -> Backbone:
    """Pretrained; the record beside the weights says how, and which bytes they are."""
    path = Path(weights) if weights is not None else POCKET_WEIGHTS
    remedy = "scripts/pretrain_pocket.py makes both"
    record = path.with_suffix(".json")
    for each in (path, record):
        _check_exists(each, f"pocket's weights are {path.name} with the record {record.name}: {remedy}")
    _check_sha256(path, str(records.read(record)["results"].get("sha256")), remedy)
    with torch.device("meta"):  # no weights are drawn, because all are read
        model = Pocket()
    try:
        state = {name: value.float() for name, value in load_file(path).items()}
        model.load_state_dict(state, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the weights of pocket ({error}); {remedy}") from error
    return _pocket_backbone("pocket", model)


def _random_pocket(weights: Source) -> Backbone:
    """Untrained: He et al.'s initial weights (2015, arXiv:1502.01852) from a generator of its own."""
    if weights is not None:
        raise ValueError(f'"random-pocket" reads no weights, got {weights}; ask for "pocket"')
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
    return _pocket_backbone("random-pocket", model)


def _pocket_backbone(name: str, model: Pocket) -> Backbone:
    return Backbone(name, model, 32, IMAGENET_MEAN, IMAGENET_STD, EMBEDDING, torch.contiguous_format)


def _mobilenet(weights: Source) -> Backbone:
    folder = os.environ.get(DATA_VARIABLE)
    if weights is None and folder is None:
        raise FileNotFoundError(
            f"mobilenet needs its weights {MOBILENET_WEIGHTS}: pass weights=, or set the environment "
            f"variable {DATA_VARIABLE} to the folder whose folder 'weights' holds them"
        )
    path = Path(weights) if weights is not None else Path(str(folder)) / "weights" / MOBILENET_WEIGHTS
    _check_exists(
        path, f"mobilenet's weights: pass weights=, or set {DATA_VARIABLE} to the folder of the data"
    )
    _check_sha256(path, _MOBILENET_SHA256, "copy it again")
    return Backbone("mobilenet", mobilenet.load_mobilenet(path), 64, _HALF, _HALF, mobilenet.FEATURES)


def _check_exists(path: Path, purpose: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; {purpose}")


def _check_sha256(path: Path, expected: str, remedy: str) -> None:
    found = records.checksum(path)
    if found != expected:
        raise ValueError(f"{path} has the sha256 {found}, expected {expected}; {remedy}")


# --- torchvision's -----------------------------------------------------------------------------------------


class FrozenBatchNorm(nn.Module):
    """A batch normalisation whose statistics are constants, in training too, and no part of the state dict.

    Scale and shift stay trainable.

    Example:
        >>> layer = FrozenBatchNorm(nn.BatchNorm2d(3))
        >>> list(layer.train().state_dict())
        ['weight', 'bias']
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, trained: nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps = trained.weight, trained.bias, trained.eps
        self.register_buffer("mean", trained.running_mean, persistent=False)
        self.register_buffer("variance", trained.running_var, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """The normalised channels, of the same shape."""
        return F.batch_norm(hidden, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps)


def _torchvision(name: str, weights: Source) -> Backbone:
    """A model of torchvision without its classifier, its batch statistics frozen."""
    model = _torchvision_model(name, weights)
    classifier, features = TORCHVISION[name]
    model.set_submodule(classifier, nn.Identity())
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            model.set_submodule(path, FrozenBatchNorm(layer))
    return Backbone(name, model, 224, IMAGENET_MEAN, IMAGENET_STD, features)


def _torchvision_model(name: str, weights: Source) -> nn.Module:
    """With the weights that torchvision publishes: downloaded now, or from a file fetched elsewhere."""
    try:
        models: Any = importlib.import_module(
            "torchvision.models"
        )  # here: it takes a second, and few need it
    except ImportError as error:
        raise ImportError(f"{name} comes from torchvision: python -m pip install torchvision") from error
    published: Any = models.get_model_weights(name)["IMAGENET1K_V1"]
    state = (
        _downloaded(name, published) if weights is None else _read_pickle(name, Path(weights), published.url)
    )
    with torch.device("meta"):  # no weights are drawn, because all are read
        model: nn.Module = models.get_model(name, weights=None)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} does not hold the weights of {name} ({error}); {published.url} does"
        ) from error
    return model


def _downloaded(name: str, published: Any) -> Any:
    """Once: torchvision keeps the file and checks its hash."""
    try:
        return published.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {name} could not be downloaded ({error}); try again with a network, or fetch "
            f"{published.url} elsewhere and pass its path as weights="
        ) from error


def _read_pickle(name: str, path: Path, url: str) -> Any:
    """A file in torchvision's format; nothing in it can run code, because only tensors are read."""
    _check_exists(path, f"fetch {url} and pass its path as weights=")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as the weights of {name} ({error}); fetch {url} again"
        ) from error


_MAKERS: dict[str, Callable[[Source], Backbone]] = {
    "pocket": _pocket,
    "random-pocket": _random_pocket,
    "mobilenet": _mobilenet,
    **{name: partial(_torchvision, name) for name in TORCHVISION},
}
