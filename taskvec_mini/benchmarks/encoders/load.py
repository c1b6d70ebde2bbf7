"""Encoders with the preparation that their pretraining used: uint8 images or token ids in, embeddings out.

No encoder here computes statistics of a batch. `pocket` has group normalisation; in the others the batch
normalisation keeps the statistics of pretraining as constants, so that a merged model needs none computed
anew.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import _checks, records
from taskvec_mini.benchmarks import _weights
from taskvec_mini.benchmarks.encoders import clip, mobilenet
from taskvec_mini.benchmarks.encoders import text as text_encoder
from taskvec_mini.benchmarks.encoders.base import Backbone, Channels, embed
from taskvec_mini.benchmarks.encoders.pocket import EMBEDDING, Pocket
from taskvec_mini.benchmarks.data import DATA_VARIABLE
from taskvec_mini.benchmarks.encoders.text import TextBackbone
from taskvec_mini.errors import FileError, MissingFileError, UserError

__all__ = ["Backbone", "embed", "load_backbone"]

Source = str | os.PathLike[str] | None
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


@overload
def load_backbone(
    name: Literal["pocket", "random-pocket", "mobilenet"] = ...,
    *,
    weights: Source = ...,
    image_size: int | None = ...,
) -> Backbone: ...


@overload
def load_backbone(
    name: Literal["pocket-text", "random-pocket-text"], *, weights: Source = ...
) -> TextBackbone: ...


@overload
def load_backbone(
    name: str, *, weights: Source = ..., image_size: int | None = ...
) -> Backbone | TextBackbone: ...


def load_backbone(
    name: str = "pocket", *, weights: Source = None, image_size: int | None = None
) -> Backbone | TextBackbone:
    """A pretrained encoder with its preparation, on the CPU.

    "pocket" is this project's small encoder (32 pixels, 256 features), and "random-pocket" is the same, not
    pretrained, with the same numbers at every call. "mobilenet" is an ImageNet MobileNetV1 without its last
    block (64 pixels, 1024 features). "resnet18", "resnet50", "mobilenet_v3_small", "vit_b_16" and "vit_b_32"
    are torchvision's (224 pixels), without their classifier; the first use downloads them.
    "ViT-B-32-quickgelu", "ViT-B-16-quickgelu" and "ViT-L-14-quickgelu" are CLIP's image encoders, and
    "tiny-clip" is a tiny one, not pretrained; see `clip.load_visual`. "pocket-text" is this project's small
    encoder of texts (48 tokens, 128 features), and "random-pocket-text" is the same, not pretrained.

    Args:
        name: one of the above.
        weights: the weights file. By default this project's own encoders have theirs; for mobilenet it is
            the one in the folder `weights` of the folder that the environment variable TASKVEC_MINI_DATA
            names; for torchvision's and CLIP's the download.
        image_size: another side of the prepared images, in pixels; vision transformers take one size only.

    Raises:
        ValueError: if the name is unknown (near names are suggested), or the checksum of the file does not
            fit.
        ImportError: if the library that a model comes from is not installed.
        FileNotFoundError: if the weights are not there.
        OSError: if a download fails.

    Example:
        >>> load_backbone("random-pocket").features
        256
    """
    clip.refuse_gelu(name)
    backbone = _checks.named_choice("backbone", name, _MAKERS)(weights)
    if image_size is None:
        return backbone
    if isinstance(backbone, TextBackbone):
        raise UserError(f"{name} takes texts, which have no image_size; leave it out")
    size = _checks.whole_number("image_size", image_size)
    if (name in clip.PARAMETERS or name.startswith("vit")) and size != backbone.image_size:
        raise UserError(
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
        _weights.check_exists(
            each, f"pocket's weights are {path.name} with the record {record.name}: {remedy}"
        )
    _weights.check_sha256(path, str(records.read(record)["results"].get("sha256")), remedy)
    with torch.device("meta"):  # no weights are drawn, because all are read
        model = Pocket()
    return _pocket_backbone("pocket", _weights.read_into(model, path, name="pocket", remedy=remedy))


def _random_pocket(weights: Source) -> Backbone:
    """Untrained: He et al.'s initial weights (2015, arXiv:1502.01852) from a generator of its own."""
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
    return _pocket_backbone("random-pocket", model)


def _pocket_backbone(name: str, model: Pocket) -> Backbone:
    return Backbone(name, model, 32, IMAGENET_MEAN, IMAGENET_STD, EMBEDDING, torch.contiguous_format)


def _mobilenet(weights: Source) -> Backbone:
    folder = os.environ.get(DATA_VARIABLE)
    if weights is None and folder is None:
        raise MissingFileError(
            f"mobilenet needs its weights {MOBILENET_WEIGHTS}: pass weights=, or set the environment "
            f"variable {DATA_VARIABLE} to the folder whose folder 'weights' holds them"
        )
    path = Path(weights) if weights is not None else Path(str(folder)) / "weights" / MOBILENET_WEIGHTS
    _weights.check_exists(
        path, f"mobilenet's weights: pass weights=, or set {DATA_VARIABLE} to the folder of the data"
    )
    _weights.check_sha256(path, _MOBILENET_SHA256, "copy it again")
    return Backbone("mobilenet", mobilenet.load_mobilenet(path), 64, _HALF, _HALF, mobilenet.FEATURES)


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
        raise UserError(
            f"{weights} does not hold the weights of {name} ({error}); {published.url} does"
        ) from error
    return model


def _downloaded(name: str, published: Any) -> Any:
    """Once: torchvision keeps the file and checks its hash."""
    try:
        return published.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise FileError(
            f"the weights of {name} could not be downloaded ({error}); try again with a network, or fetch "
            f"{published.url} elsewhere and pass its path as weights="
        ) from error


def _read_pickle(name: str, path: Path, url: str) -> Any:
    """A file in torchvision's format; nothing in it can run code, because only tensors are read."""
    _weights.check_exists(path, f"fetch {url} and pass its path as weights=")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as the weights of {name} ({error}); fetch {url} again"
        ) from error


_MAKERS: dict[str, Callable[[Source], Backbone | TextBackbone]] = {
    "pocket": _pocket,
    "random-pocket": _random_pocket,
    "mobilenet": _mobilenet,
    **{name: partial(_torchvision, name) for name in TORCHVISION},
    **{name: partial(clip.load_visual, name) for name in clip.PARAMETERS},
    "pocket-text": text_encoder.pocket_text,
    "random-pocket-text": text_encoder.random_pocket_text,
}
