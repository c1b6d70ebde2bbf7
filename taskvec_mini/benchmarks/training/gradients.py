"""The exact gradient of a task's mean loss over all its training images."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.benchmarks.encoders import Encoder, Parameters, holding, trained_parameters
from taskvec_mini.benchmarks.heads import Head


def full_batch_gradient(
    backbone: Encoder,
    head: Head,
    task: Task,
    *,
    state: Parameters | None = None,
    batch_size: int = 500,
) -> Tensor:
    """The gradient (D,) of the mean training loss at the given parameters, float64, on the CPU.

    Batches only bound the memory: each is weighted with its number of images, a partial last one too, and the
    sum is taken in float64. Each batch is computed in the model's own dtype, float64 too.

    Args:
        backbone: the encoder; it has its own parameters again afterwards.
        head: the frozen head of the task.
        task: its training images are used.
        state: named parameters or one flat vector; None for the backbone's own.
        batch_size: images in memory at a time.

    Returns:
        The entries in the order of `TaskVector`: that of the trained parameters.

    Raises:
        UserError: if names or sizes of the parameters differ, or `batch_size` is below 1.
    """
    size = _checks.whole_number("batch_size", batch_size)
    images, labels = task.part("train")
    parameters = list(trained_parameters(backbone.model).values())
    device, dtype = backbone.device, parameters[0].dtype
    head = copy.deepcopy(head).to(device, dtype)
    sum_on = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    total = torch.zeros(sum(part.numel() for part in parameters), dtype=torch.float64, device=sum_on)
    with holding(backbone.model, state):
        for rows, classes in zip(torch.split(images, size), torch.split(labels, size), strict=True):
            inputs = backbone.prepare(rows)
            if inputs.is_floating_point():  # the numbers of tokens stay whole
                inputs = inputs.to(dtype)
            loss = F.cross_entropy(head(backbone.model(inputs)), classes.to(device))
            slopes = torch.autograd.grad(loss, parameters)
            flat = torch.cat([slope.reshape(-1) for slope in slopes]).to(sum_on).double()
            total += flat * (len(rows) / len(images))
    return total.cpu()
