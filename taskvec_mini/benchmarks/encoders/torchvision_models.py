"""Models of torchvision without their classifiers, with the weights that torchvision publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import _imports
from taskvec_mini.benchmarks.encoders import _weights
from taskvec_mini.benchmarks.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from taskvec_mini.errors import FileError, UserError

CLASSIFIERS = {  # the layer that is taken away, and how many numbers go into it: the length of the embedding
    "resnet18": ("fc", 512),
    "resnet50": ("fc", 2048),
    "mobilenet_v3_small": ("classifier", 576),
    "vit_b_16": ("heads", 768),
    "vit_b_32": ("heads", 768),
}


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
        self.weight = trained.weight
        self.bias = trained.bias
        self.eps = trained.eps
        self.register_buffer("mean", trained.running_mean, persistent=False)
        self.register_buffer("variance", trained.running_var, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """The normalised channels, of the same shape."""
        return F.batch_norm(hidden, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps)


def load_torchvision(name: str, weights: Path | None = None) -> Backbone:
    """A model of torchvision without its classifier, its batch statistics frozen, for images of 224 pixels.

    Args:
        name: one of `CLASSIFIERS`.
        weights: torchvision's file, fetched elsewhere; by default it is downloaded on first use.

    Raises:
        MissingPackageError: if torchvision is not installed.
        MissingFileError: if there is no such file.
        FileError: if the download fails.
        UserError: if the file cannot be read or does not hold these weights.
    """
    models = _imports.load("torchvision.models", needed_for=name, install="torchvision")
    published: Any = models.get_model_weights(name)["IMAGENET1K_V1"]
    if weights is None:
        try:  # torchvision keeps the file and checks its hash
            state = published.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise FileError(
                f"the weights of {name} could not be downloaded ({error}); try again with a network, or "
                f"fetch {published.url} elsewhere and pass its path as weights="
            ) from error
    else:
        remedy = f"fetch {published.url} and pass its path as weights="
        state = _weights.read_state(weights, remedy=remedy)
    with torch.device("meta"):  # no weights are drawn, because all are read
        model: nn.Module = models.get_model(name, weights=None)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"{weights} does not hold the weights of {name} ({error}); {published.url} does"
        ) from error
    classifier, features = CLASSIFIERS[name]
    model.set_submodule(classifier, nn.Identity())
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            model.set_submodule(path, FrozenBatchNorm(layer))
    return Backbone(name, model, image_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, features=features)
