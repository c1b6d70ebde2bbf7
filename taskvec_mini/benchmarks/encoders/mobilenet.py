"""The first twelve blocks of MobileNetV1 (Howard et al. 2017, arXiv:1704.04861), without batch statistics.

A batch normalisation with frozen statistics is a scale and a shift of each channel: the convolution before
    it can do both. So a kernel here is the published kernel times the scale, and its bias is the shift. The
    function is the same, with fewer parameters and no statistics that a merged model would have to compute
    anew.
"""

from __future__ import annotations

import os
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini.errors import UserError

WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024)  # output channels of the blocks
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2)
FEATURES = WIDTHS[-1]
_STEM = 32  # channels after the first convolution
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
        blocks = zip((_STEM, *WIDTHS[:-1]), WIDTHS, STRIDES, strict=True)
        pairs = chain.from_iterable(_block(*each) for each in blocks)
        self.layers = nn.ModuleList([nn.Conv2d(3, _STEM, 3, 2), *pairs])

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (N, 1024) of images (N, 3, H, W)."""
        hidden = images
        for layer in self.layers:
            if layer.stride == (2, 2):  # TensorFlow's "same" padding: only right and below
                hidden = F.pad(hidden, (0, 1, 0, 1))
            hidden = F.relu6(layer(hidden))
        return hidden.mean((2, 3))


def _block(inputs: int, outputs: int, stride: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The two convolutions of a block; where it halves the picture, `forward` does the padding."""
    each = nn.Conv2d(inputs, inputs, 3, stride, padding=1 if stride == 1 else 0, groups=inputs)
    return each, nn.Conv2d(inputs, outputs, 1)


def load_mobilenet(path: str | os.PathLike[str]) -> MobileNet:
    """The network with the weights of a `.npz` file in Keras' names and order of axes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if an array is missing or has another shape.
    """
    with torch.device("meta"):  # no weights are drawn, because all are read
        model = MobileNet()
    with np.load(path) as stored:  # arrays only: numpy refuses pickles unless asked
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    names = ["conv1", *(f"conv_{kind}_{i + 1}" for i in range(len(WIDTHS)) for kind in ("dw", "pw"))]
    state = {}
    for i, name in enumerate(names):
        try:
            state[f"layers.{i}.weight"], state[f"layers.{i}.bias"] = _folded(arrays, name)
        except KeyError as error:
            raise UserError(
                f"{path} has no array {error}; give MobileNetV1's weights in Keras' names"
            ) from None
    for key, value in model.state_dict().items():
        if value.shape != state[key].shape:
            raise UserError(
                f"{path} gives {key} the shape {tuple(state[key].shape)}, not {tuple(value.shape)}"
            )
    model.load_state_dict(state, assign=True)
    return model


def _folded(arrays: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Kernel and bias of one convolution in torch's order of axes, its batch normalisation folded in."""
    if name.startswith("conv_dw"):
        kernel = arrays[f"{name}.depthwise_kernel"].permute(2, 3, 0, 1)
    else:
        kernel = arrays[f"{name}.kernel"].permute(3, 2, 0, 1)
    gamma, beta, mean, variance = (
        arrays[f"{name}_bn.{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    gain = gamma / (variance + _EPSILON).sqrt()
    return (kernel * gain[:, None, None, None]).contiguous(), beta - mean * gain
