"""Frozen heads: how an embedding becomes an answer. Finetuning trains the encoder and leaves heads alone.

A head is a module with buffers and without parameters, so `.to`, `.double`, `state_dict` and `copy.deepcopy`
work as for any other, and no optimiser finds anything to train in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import _checks, _files
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.errors import InputTypeError, MissingFileError, UserError

_KIND = "taskvec_mini.Head/1"


class Head(nn.Module):
    """Embeddings (N, F) to logits (N, C); its tensors are buffers, and it stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """The head as it is: nothing in it is trained."""
        return super().train(False)


class PrototypeHead(Head):
    """Logits = logit_scale * normalised(embedding - centre) @ prototypes.T.

    Args:
        prototypes: (C, F) float32, one vector per class; of length one where they are class means, so that
            the inner products are cosines.
        centre: (F,) float32, subtracted first; zeros for none.
        logit_scale: factor of the logits; it changes no answer, but how steep the loss is.

    Raises:
        UserError: if shapes do not fit, a value is NaN or infinite, a prototype is zero, or the scale is not
            above 0.

    Example:
        >>> head = PrototypeHead(torch.eye(2), torch.zeros(2), 10.0)
        >>> head(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
        tensor([[10.,  0.],
                [ 0., 10.]])
        >>> head.double().prototypes.dtype
        torch.float64
    """

    prototypes: Tensor
    centre: Tensor

    def __init__(self, prototypes: Tensor, centre: Tensor, logit_scale: float):
        super().__init__()
        if prototypes.ndim != 2 or centre.shape != prototypes.shape[1:]:
            raise UserError(
                f"prototypes must be (C, F) and the centre (F,), got {tuple(prototypes.shape)} and "
                f"{tuple(centre.shape)}; both come from embeddings of one backbone"
            )
        _checks.check_finite("prototypes", prototypes)
        _checks.check_finite("centre", centre)
        zero = (prototypes == 0).all(1).nonzero()
        if len(zero):
            raise UserError(
                f"the prototype of class {int(zero[0])} is zero, so nothing points to this class; "
                "do its images differ from those of the other classes?"
            )
        self.register_buffer("prototypes", prototypes.detach())
        self.register_buffer("centre", centre.detach())
        self.logit_scale = _checks.positive_number("logit_scale", logit_scale)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (N, C) of embeddings (N, F)."""
        return self.logit_scale * F.normalize(embeddings - self.centre, dim=1) @ self.prototypes.T

    def get_extra_state(self) -> Tensor:
        """The scale for the state dict: no buffer, because `.to` would round it, and MPS has no float64."""
        return torch.tensor(self.logit_scale, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """The scale from a state dict."""
        self.logit_scale = float(state)


class LinearHead(Head):
    """Logits = embedding @ weight.T + bias.

    Args:
        weight: (C, F) float32.
        bias: (C,) float32.

    Raises:
        UserError: if shapes do not fit.

    Example:
        >>> LinearHead(torch.eye(2), torch.tensor([1.0, 0.0]))(torch.tensor([[3.0, 5.0]]))
        tensor([[4., 5.]])
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise UserError(
                f"weight must be (C, F) and bias (C,), got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", bias.detach())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (N, C) of embeddings (N, F)."""
        return F.linear(embeddings, self.weight, self.bias)


def centre_of(head: Head) -> Tensor:
    """The centre (F,) from which a head sees its directions.

    Raises:
        UserError: if it has none.

    Example:
        >>> centre_of(PrototypeHead(torch.eye(2), torch.zeros(2), 10.0))
        tensor([0., 0.])
    """
    if not isinstance(head, PrototypeHead):
        raise UserError(
            f"a {type(head).__name__} has no centre to move; use heads.prototype_head, or a frozen centre"
        )
    return head.centre


# --- files -----------------------------------------------------------------------------------------------


def save_head(head: Head, path: str | os.PathLike[str]) -> None:
    """Write a head to a safetensors file with a checksum, whole or not at all.

    Raises:
        InputTypeError: if it is neither a `PrototypeHead` nor a `LinearHead`.
        FileError: if the folder does not exist, may not be written to, or is full.
    """
    if type(head) not in (PrototypeHead, LinearHead):
        raise InputTypeError(
            f"save_head writes a PrototypeHead or a LinearHead, got {type(head).__name__}; keep the "
            "state_dict of another kind yourself"
        )
    _files.write_tensors(path, head.state_dict(), {"class": type(head).__name__}, kind=_KIND)


def load_head(path: str | os.PathLike[str], *, remedy: str = "write it again with save_head") -> Head:
    """Read what `save_head` wrote, onto the CPU.

    Args:
        path: the file.
        remedy: what to do about a missing or damaged file, for the message.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if it is truncated, corrupted or no head.
    """
    tensors, description = _files.read_tensors(path, kind=_KIND, what="head", remedy=remedy)
    if description["class"] == PrototypeHead.__name__:
        scale = float(tensors["_extra_state"])
        return PrototypeHead(tensors["prototypes"], tensors["centre"], scale)
    return LinearHead(tensors["weight"], tensors["bias"])


def kept_head(path: Path, task: Task, make: Callable[[Task], Head]) -> Head:
    """The head of a task in a file; where there is none yet, it is made and written there.

    A head is made once: on another machine it would differ in the last bits, and be another run's.

    Raises:
        FileError: if it cannot be written.
        UserError: if the file is damaged.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_head(make(task), path)
    return stored_head(path)


def stored_head(path: Path) -> Head:
    """The head in a folder of runs, which a command made there.

    Raises:
        MissingFileError: if it is gone.
        UserError: if the file is damaged; the message says how to get it back.
    """
    again = (
        "give the command that made the runs (`finetune` or `record`) again: on the same machine it makes "
        "the same head"
    )
    if not path.exists():
        raise MissingFileError(f"there is no head {path}; {again}")
    return load_head(path, remedy=f"delete this file and {again}")
