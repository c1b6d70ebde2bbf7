"""The first twelve blocks of MobileNetV1 (Howard et al. 2017, arXiv:1704.04861), without batch statistics.

A batch normalisation with frozen statistics is a scale and a shift of each channel: the convolution before
it can do both. So a kernel here is the published kernel times the scale, and its bias is the shift. The
function is the same, with fewer parameters and no statistics that a merged model would have to compute anew.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import _files
from taskvec_mini.benchmarks.data import DATA_VARIABLE
from taskvec_mini.benchmarks.encoders import _weights
from taskvec_mini.benchmarks.encoders.base import Backbone, Channels
from taskvec_mini.errors import UserError

MOBILENET_WEIGHTS = "mobilenet_v1_1.0_224_imagenet_backbone12.npz"  # in the folder `weights` of the data
WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024)  # output channels of the blocks
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2)
FEATURES = WIDTHS[-1]
_STEM = 32  # channels after the first convolution
_HALF: Channels = (0.5, 0.5, 0.5)
_SHA256 = "9b2fdb9810d6bc78c92f6df16178e88031c4c97d39646be978ee0c76a13ad0bd"
_EPSILON = 1e-3  # what the published batch normalisation adds to a variance


class MobileNet(nn.Module):
    """Embeddings (N, 1024) of images (N, 3, H, W) with values from -1 (black) to 1 (white).

    Each block is a 3 x 3 convolution of every channel by itself and a 1 x 1 convolution across channels, with
    ReLU6 after each of them. The picture is halved five times; its positions are averaged at the end. Images
    in `torch.channels_last` order are faster on a CPU.

    Example:
        >>> import torch
        >>> MobileNet()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1024])
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, _STEM, 3, 2)])
        inputs = _STEM
        for outputs, stride in zip(WIDTHS, STRIDES, strict=True):
            around = 1 if stride == 1 else 0  # where the picture is halved, `forward` does the padding
            self.layers.append(nn.Conv2d(inputs, inputs, 3, stride, around, groups=inputs))
            self.layers.append(nn.Conv2d(inputs, outputs, 1))
            inputs = outputs

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (N, 1024) of images (N, 3, H, W)."""
        hidden = images
        for layer in self.layers:
            if layer.stride == (2, 2):  # TensorFlow's "same" padding: only right and below
                hidden = F.pad(hidden, (0, 1, 0, 1))
            hidden = F.relu6(layer(hidden))
        return hidden.mean((2, 3))


def load_mobilenet(weights: Path) -> Backbone:
    """The encoder with ImageNet's weights.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if it is not the published one.
    """
    _weights.check_exists(weights, remedy=f"pass weights=, or set {DATA_VARIABLE} to the folder of the data")
    _files.check_sha256(weights, _SHA256, remedy="copy it again")
    model = read_keras(weights)
    return Backbone("mobilenet", model, image_size=64, mean=_HALF, std=_HALF, features=FEATURES)


def read_keras(path: str | os.PathLike[str]) -> MobileNet:
    """The network with the weights of a `.npz` file in Keras' names and order of axes.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if it cannot be read, an array is missing or has another shape.
    """
    with torch.device("meta"):  # no weights are drawn, because all are read
        model = MobileNet()
    try:
        with np.load(path) as stored:  # arrays only: numpy refuses pickles unless asked
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as arrays ({error}); copy it again") from error
    names = ["conv1", *(f"conv_{kind}_{i + 1}" for i in range(len(WIDTHS)) for kind in ("dw", "pw"))]
    state = {}
    for i, name in enumerate(names):
        try:
            if name.startswith("conv_dw"):
                kernel = arrays[f"{name}.depthwise_kernel"].permute(2, 3, 0, 1)  # torch's order of axes
            else:
                kernel = arrays[f"{name}.kernel"].permute(3, 2, 0, 1)
            gamma = arrays[f"{name}_bn.gamma"]
            beta = arrays[f"{name}_bn.beta"]
            mean = arrays[f"{name}_bn.moving_mean"]
            variance = arrays[f"{name}_bn.moving_variance"]
        except KeyError as error:
            raise UserError(
                f"{path} has no array {error}; give MobileNetV1's weights in Keras' names"
            ) from None
        gain = gamma / (variance + _EPSILON).sqrt()
        state[f"layers.{i}.weight"] = (kernel * gain[:, None, None, None]).contiguous()
        state[f"layers.{i}.bias"] = beta - mean * gain
    for key, value in model.state_dict().items():
        if value.shape != state[key].shape:
            raise UserError(
                f"{path} gives {key} the shape {tuple(state[key].shape)}, not {tuple(value.shape)}"
            )
    model.load_state_dict(state, assign=True)
    return model
