"""Memory for vectors of a hundred megabytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LARGE = 1 << 22  # bytes from which numpy asks the system for huge pages


def empty(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`. A large tensor on a CPU lies in huge pages where the system has them.

    A fresh vector of 90 MB has 22,000 ordinary pages, and to be given them one by one takes several times as
    long as to fill them. numpy asks for huge ones, torch does not. (A virtual machine that has to ask its
    host for them first can make a fresh process wait longer, once.)

    Example:
        >>> empty((2, 3), dtype=torch.bfloat16, device=torch.device("cpu")).shape
        torch.Size([2, 3])
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


def copy(tensor: Tensor) -> Tensor:
    """A contiguous copy without a graph.

    Example:
        >>> copy(torch.arange(6.0).reshape(2, 3).T).is_contiguous()
        True
    """
    tensor = tensor.detach()
    return empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
