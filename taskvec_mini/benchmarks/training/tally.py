"""What is added up over the steps of an epoch, and the error where one of the numbers is not finite."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskvec_mini import descent


class DivergedError(descent.DivergedError):
    """Finetuning left the finite numbers. `epoch`, `step` (both counted from 1) and `loss` say where."""

    def __init__(self, title: str, epoch: int, step: int, loss: float, learning_rate: float):
        super().__init__(epoch, loss, learning_rate)
        self.step, self.learning_rate = step, learning_rate
        self.args = (
            f"finetuning on {title} diverged in epoch {epoch}, step {step} of it (loss {loss}) at "
            f"learning_rate {learning_rate:g}; lower the learning rate, or clip the gradients (the "
            "checkpoints of the epochs before are untouched)",
        )


@dataclass
class Part:
    """A micro-batch that went through: its number of images, their mean loss, how many were right."""

    images: int
    loss: Tensor
    hits: Tensor


@dataclass
class Tally:
    """The sums of an epoch.

    To look at a GPU's number is to wait until it has been computed. So the numbers of a step may wait until
    `unseen` later steps were queued.

    Attributes:
        title: what is finetuned, for the error.
        epoch: counted from 1.
        unseen: how many steps may wait; 0 where nothing is gained by it.
        loss: the sum over images; also hits.
        norms: the sum over steps of the gradients' norms.
        steps: how many were looked at; begun: how many were added.

    Example:
        >>> tally = Tally("cars", 1, 0)
        >>> tally.add([Part(4, torch.tensor(0.5), torch.tensor(3))], torch.tensor(2.0), 0.1)
        >>> tally.loss, tally.hits, tally.norms, tally.steps
        (2.0, 3, 2.0, 1)
    """

    title: str
    epoch: int
    unseen: int
    loss: float = 0.0
    hits: int = 0
    norms: float = 0.0
    steps: int = 0
    begun: int = 0
    _waiting: deque[tuple[list[Part], Tensor, float]] = field(default_factory=deque)

    def add(self, parts: list[Part], norm: Tensor, rate: float) -> None:
        """The micro-batches of a step, the norm of its gradient, its learning rate.

        Raises:
            DivergedError: if a number of a step that was looked at is not finite.
        """
        self.begun += 1
        self._waiting.append((parts, norm, rate))
        self.look(self.unseen)

    def look(self, leave: int = 0) -> None:
        """Add up the numbers of the steps that wait, but for the last few.

        Raises:
            DivergedError: if one of them is not finite.
        """
        while len(self._waiting) > leave:
            parts, norm, rate = self._waiting.popleft()
            losses, hits = [part.loss for part in parts], [part.hits.to(norm.dtype) for part in parts]
            numbers = torch.stack([*losses, *hits, norm]).tolist()  # one look, not one for each
            pairs = list(zip(parts, numbers, strict=False))  # the losses come first
            loss = sum(value * part.images for part, value in pairs)
            self.steps += 1
            if not all(map(math.isfinite, numbers)):
                mean = loss / sum(part.images for part in parts)
                raise DivergedError(self.title, self.epoch, self.steps, mean, rate)
            self.loss += loss
            self.hits += round(sum(numbers[len(parts) : -1]))
            self.norms += numbers[-1]
