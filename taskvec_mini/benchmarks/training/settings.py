"""What a finetuning run is, and how fast it is: `Settings` decide the result, `Speed` its rounding.

The metadata of a field are what `--help` says about the option of its name.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError

OPTIMIZERS = ("adamw", "sgd", "gd")
SCHEDULES = ("constant", "cosine")
CENTRES = ("frozen", "batch")
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an encoder is finetuned. Nothing that changes the outcome is left to a default elsewhere.

    Attributes:
        learning_rate: the highest rate, reached after the warm-up.
        epochs: passes over the training images, at least 1; with `parts`, parts of a pass.
        parts: every pass over the training images is cut into so many parts with equally many steps, each of
            which counts as an epoch, with a checkpoint and a record of its own: 4 for what happens within the
            first pass. The steps are those of the whole pass, so four parts end where one epoch ends.
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
        UserError: if a value is out of range, of the wrong kind, or a name is unknown.

    Example:
        >>> settings = Settings(epochs=2)
        >>> settings.optimizer, settings.learning_rate, settings.batch_size
        ('adamw', 0.0001, 128)
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "step size"})
    epochs: int = field(default=1, metadata={"help": "passes over the training part"})
    parts: int = field(
        default=1, metadata={"help": "cut every pass into so many parts, each of which counts as an epoch"}
    )
    optimizer: str = field(
        default="adamw", metadata={"help": "gd: one full-batch step an epoch", "choices": OPTIMIZERS}
    )
    batch_size: int = field(default=128, metadata={"help": "images, or texts, in a step"})
    weight_decay: float = field(
        default=0.0, metadata={"help": "decoupled for adamw, added to the gradient for the others"}
    )
    momentum: float = field(default=0.0, metadata={"help": "of sgd and gd"})
    schedule: str = field(default="constant", metadata={"help": "of the learning rate", "choices": SCHEDULES})
    warmup_steps: int = field(default=0, metadata={"help": "steps until the learning rate is full"})
    clip_norm: float | None = field(
        default=None, metadata={"help": "gradients longer than this are scaled down to it (default: none)"}
    )
    centre: str = field(
        default="frozen",
        metadata={"help": "of the heads; batch: judge with `evaluate --recentre`", "choices": CENTRES},
    )
    seed: int = field(default=0, metadata={"help": "of splits and of the order in training"})

    def __post_init__(self) -> None:
        """Check, and turn the numbers of other libraries into Python's, which JSON can hold."""
        rate = _checks.positive_number("learning_rate", self.learning_rate, example=1e-4)
        object.__setattr__(self, "learning_rate", rate)
        _checks.named_choice("optimizer", self.optimizer, dict.fromkeys(OPTIMIZERS))
        _checks.named_choice("schedule", self.schedule, dict.fromkeys(SCHEDULES))
        _checks.named_choice("centre", self.centre, dict.fromkeys(CENTRES))
        for name, minimum in (("epochs", 1), ("parts", 1), ("batch_size", 1), ("warmup_steps", 0)):
            object.__setattr__(self, name, _checks.whole_number(name, getattr(self, name), minimum=minimum))
        object.__setattr__(self, "seed", _checks.seed("seed", self.seed))
        for name in ("weight_decay", "momentum"):
            number = _checks.finite_number(name, getattr(self, name))
            if number < 0:
                raise UserError(f"{name} must be at least 0, got {number}")
            object.__setattr__(self, name, number)
        if self.clip_norm is not None:
            norm = _checks.positive_number("clip_norm", self.clip_norm, example=1.0)
            object.__setattr__(self, "clip_norm", norm)
        if self.optimizer == "adamw" and self.momentum:
            raise UserError(f'"adamw" takes no momentum, got {self.momentum}; it is for "sgd" and "gd"')
        if self.optimizer == "gd" and self.parts != 1:
            raise UserError(f'"gd" takes one step a pass, which has no {self.parts} parts; leave parts out')
        if self.optimizer == "gd" and self.centre != "frozen":
            raise UserError(
                f'"gd" needs centre="frozen", got {self.centre!r}: its loss is a mean over single images'
            )

    def make_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of torch that these settings name."""
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "adamw":  # fused: one pass over the memory, a third of the time on a CPU
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=self.momentum, fused=True)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one step, counted from 1, of a run with so many steps in all.

        Example:
            >>> cosine = Settings(learning_rate=1.0, schedule="cosine", warmup_steps=2)
            >>> [round(cosine.rate(step, 6), 2) for step in range(1, 7)]
            [0.5, 1.0, 0.85, 0.5, 0.15, 0.0]
        """
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.schedule == "constant" or steps <= self.warmup_steps:
            return self.learning_rate
        share = (step - self.warmup_steps) / (steps - self.warmup_steps)
        return self.learning_rate * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What makes a run faster or smaller, and changes its result by rounding only.

    The parameters, their gradients and the optimiser stay float32 with every choice, and so do checkpoints.

    Attributes:
        precision: "float32", with torch's own flags; "tf32", on an NVIDIA GPU, where the matrix products of
            the run may round their factors to ten bits; or "bfloat16", torch's automatic mixed precision: the
            products of the forward and the backward pass in bfloat16, the head and the loss in float32. GPUs
            older than Ampere (a T4, for instance) only emulate it.
        micro_batch_size: so many images are in memory at a time; the gradients of a step are summed over
            them, each micro-batch weighted with its number of images, so that the step is the mean over its
            whole batch. None for all of a batch at once.
        compile: whether torch.compile translates the encoder, which takes a minute or so. It works on whole
            micro-batches; the rest of an epoch goes through the encoder as it is, so that a run that was
            interrupted and one that was not do the same arithmetic.
        channels_last: whether images and convolutions lie in memory with the channels last, which is what a
            GPU's matrix units want.

    Raises:
        UserError: if the precision is unknown, the micro-batch is smaller than one image, or a value is of
            the wrong kind.

    Example:
        >>> Speed(precision="bfloat16", micro_batch_size=32).changes(Settings())
        {'precision': 'bfloat16', 'micro_batch_size': 32}
    """

    precision: str = field(
        default="float32",
        metadata={"help": "of matrix products; the parameters stay float32", "choices": PRECISIONS},
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "so many in memory at a time; a step is still the mean over its batch "
            "(default: all of it)"
        },
    )
    compile: bool = field(default=False, metadata={"help": "translate the encoder with torch.compile first"})
    channels_last: bool = field(
        default=False, metadata={"help": "order of images and convolutions that suits GPUs"}
    )

    def __post_init__(self) -> None:
        _checks.named_choice("precision", self.precision, dict.fromkeys(PRECISIONS))
        if self.micro_batch_size is not None:
            size = _checks.whole_number("micro_batch_size", self.micro_batch_size)
            object.__setattr__(self, "micro_batch_size", size)
        for name in ("compile", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise InputTypeError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def images_at_a_time(self, settings: Settings) -> int:
        """How many images go through the encoder together.

        Example:
            >>> Speed(micro_batch_size=500).images_at_a_time(Settings(batch_size=128))
            128
        """
        return min(settings.batch_size, self.micro_batch_size or settings.batch_size)

    def changes(self, settings: Settings) -> dict[str, Any]:
        """What differs from the default and changes the rounding of a run with these settings."""
        default = asdict(Speed())
        found = {name: value for name, value in asdict(self).items() if value != default[name]}
        if self.images_at_a_time(settings) == settings.batch_size:
            found.pop("micro_batch_size", None)  # nothing is split
        return found

    def check(self, settings: Settings, device: torch.device) -> None:
        """Refuse what cannot go together.

        Raises:
            UserError: for "tf32" on another device than an NVIDIA GPU, and for micro-batches where the loss
                depends on the whole batch.
        """
        if self.precision == "tf32" and device.type != "cuda":
            raise UserError(f'precision "tf32" needs an NVIDIA GPU, not the device {device}; use "float32"')
        if settings.centre == "batch" and "micro_batch_size" in self.changes(settings):
            raise UserError(
                f'centre="batch" takes the mean of a whole batch of {settings.batch_size}, so it cannot be '
                f"split into {self.micro_batch_size} at a time; leave that out, or lower batch_size"
            )

    def lay_out(self, tensors: Any) -> Any:
        """A module, or a batch of images, in the order in memory that was asked for; texts stay."""
        if not self.channels_last or (isinstance(tensors, Tensor) and tensors.ndim != 4):
            return tensors
        return tensors.to(memory_format=torch.channels_last)

    def encode(self, model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Embeddings of prepared inputs; the products in bfloat16 if that was asked for, the result not."""
        if self.precision != "bfloat16":
            return model(inputs)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            embedded = model(inputs)
        return embedded.float() if embedded.dtype == torch.bfloat16 else embedded

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """Around a run: torch's flag for float32 products is set for "tf32", and put back afterwards."""
        if self.precision != "tf32":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
