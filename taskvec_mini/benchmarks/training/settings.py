"""The settings of a finetuning run: what is written into its folder, and what makes it the same run again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from taskvec_mini import _checks
from taskvec_mini.errors import UserError

OPTIMIZERS = ("adamw", "sgd", "gd")
SCHEDULES = ("constant", "cosine")
CENTRES = ("frozen", "batch")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an encoder is finetuned. Nothing that changes the outcome is left to a default elsewhere.

    Attributes:
        learning_rate: the highest rate, reached after the warm-up.
        epochs: passes over the training images, at least 1.
        optimizer: "adamw"; "sgd"; or "gd", one exact full-batch step an epoch (batch_size then only says how
            many images are in memory at a time).
        batch_size: images a step; the partial last batch of an epoch is kept.
        weight_decay: decoupled for "adamw", a part of the gradient for the others.
        momentum: of "sgd" and "gd".
        schedule: "constant", or "cosine": after the warm-up down to zero at the last step of all epochs.
        warmup_steps: the rate rises linearly, step s of w at s/w of it.
        clip_norm: longer gradients are scaled down to this norm; None leaves them.
        centre: "frozen", the head's own, or "batch": every batch of embeddings is moved so that its mean lies
            at the head's centre, and a common shift of all embeddings is neither learnt nor punished. An
            encoder trained so is judged with `recentre` in `evaluation`. A batch of one image teaches
            nothing; a bias at the end has no slope, and what "adamw" does to it is rounding, blown up.
        seed: of the order of the images; the order of epoch e comes from (seed, e) alone.

    Raises:
        ValueError: if a value is out of range or a name is unknown.
        TypeError: if a value is of the wrong kind.

    Example:
        >>> Settings(learning_rate=1e-4, epochs=2).optimizer
        'adamw'
    """

    learning_rate: float
    epochs: int
    optimizer: str = "adamw"
    batch_size: int = 128
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    centre: str = "frozen"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check, and turn the numbers of other libraries into Python's, which JSON can hold."""
        object.__setattr__(
            self, "learning_rate", _checks.positive_number("learning_rate", self.learning_rate)
        )
        _checks.named_choice("optimizer", self.optimizer, dict.fromkeys(OPTIMIZERS))
        _checks.named_choice("schedule", self.schedule, dict.fromkeys(SCHEDULES))
        _checks.named_choice("centre", self.centre, dict.fromkeys(CENTRES))
        if self.optimizer == "gd" and self.centre != "frozen":
            raise UserError(
                f'"gd" needs centre="frozen", got {self.centre!r}: its loss is a mean over single images'
            )
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("warmup_steps", 0), ("seed", 0)):
            object.__setattr__(self, name, _checks.whole_number(name, getattr(self, name), minimum=minimum))
        for name in ("weight_decay", "momentum"):
            number = _checks.finite_number(name, getattr(self, name))
            if number < 0:
                raise UserError(f"{name} must be at least 0, got {number}")
            object.__setattr__(self, name, number)
        if self.clip_norm is not None:
            object.__setattr__(self, "clip_norm", _checks.positive_number("clip_norm", self.clip_norm))
        if self.optimizer == "adamw" and self.momentum:
            raise UserError(f'"adamw" takes no momentum, got {self.momentum}; it is for "sgd" and "gd"')

    def make_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of torch that these settings name."""
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "adamw":  # fused: one pass over the memory, a third of the time on a CPU
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=self.momentum, fused=True)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one step, counted from 1, of a run with so many steps in all.

        Example:
            >>> cosine = Settings(learning_rate=1.0, epochs=1, schedule="cosine", warmup_steps=2)
            >>> [round(cosine.rate(step, 6), 2) for step in range(1, 7)]
            [0.5, 1.0, 0.85, 0.5, 0.15, 0.0]
        """
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.schedule == "constant" or steps <= self.warmup_steps:
            return self.learning_rate
        share = (step - self.warmup_steps) / (steps - self.warmup_steps)
        return self.learning_rate * (1 + math.cos(math.pi * share)) / 2
