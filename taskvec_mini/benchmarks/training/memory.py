"""How much memory a finetuning run takes, counted and measured before it starts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from taskvec_mini.benchmarks.training.settings import Settings
from taskvec_mini.errors import UserError

MARGIN = 0.05  # of the free memory: what the allocator cannot use, because its blocks do not fit


class TooLittleMemoryError(UserError, RuntimeError):
    """A run does not fit the device. `fits` is the number of images at a time that would, 0 if none does."""

    def __init__(self, message: str, fits: int):
        super().__init__(message, fits)  # both, so that the error survives a way to another process
        self.message = message
        self.fits = fits

    def __str__(self) -> str:
        return self.message


class DeviceMemory(Protocol):
    """What can be asked of a device about its memory, in bytes."""

    def free(self) -> int:
        """What this process could still take."""

    def peak(self, call: Callable[[], object]) -> int | None:
        """The most that a call takes beyond what was taken before it; None where it does not fit."""


class CudaMemory:
    """The memory of one CUDA device, as its driver and torch's allocator see it."""

    def __init__(self, device: torch.device):
        self.device = device

    def free(self) -> int:
        """Free for everyone, and what torch's allocator has reserved but not given out."""
        free, _ = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(free + unused)

    def peak(self, call: Callable[[], object]) -> int | None:
        """Measured by torch's allocator while the call runs."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            call()
            torch.cuda.synchronize(self.device)
            return int(torch.cuda.max_memory_allocated(self.device) - before)
        except torch.OutOfMemoryError:
            pass  # the error holds the call's tensors; they are let go only after this block
        gc.collect()
        torch.cuda.empty_cache()
        return None


def device_memory(device: torch.device) -> DeviceMemory | None:
    """The memory of a device; None where there is no way to ask, as on a CPU.

    Example:
        >>> device_memory(torch.device("cpu")) is None
        True
    """
    return CudaMemory(device) if device.type == "cuda" else None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a run takes, in bytes.

    Attributes:
        device: where it runs.
        parameters: of the encoder, frozen ones and buffers too. They are float32, in bfloat16 as well.
        gradients: of those that are trained.
        optimizer: what the optimiser keeps beside them.
        data: the training images as uint8 and their labels.
        images: how many are in memory at a time.
        activations: what a forward and a backward pass of so many take beyond the gradients, measured; None
            where it cannot be measured.
        free: what was free on the device with the parameters on it; None where it cannot be asked.
        data_on_device: whether all data lie on the device, or every batch is moved there.
    """

    device: str
    parameters: int
    gradients: int
    optimizer: int
    data: int
    images: int
    activations: int | None = None
    free: int | None = None
    data_on_device: bool = True

    @property
    def total(self) -> int:
        """All that was counted or measured on the device."""
        data = self.data if self.data_on_device else 0
        return self.parameters + self.gradients + self.optimizer + data + (self.activations or 0)

    def __str__(self) -> str:
        place = "there" if self.data_on_device else "in main memory, moved batch by batch"
        activations = "not counted" if self.activations is None else amount(self.activations)
        parts = [
            f"parameters {amount(self.parameters)}",
            f"gradients {amount(self.gradients)}",
            f"optimiser {amount(self.optimizer)}",
            f"data {amount(self.data)} {place}",
            f"activations of {self.images} at a time {activations}",
        ]
        room = "" if self.free is None else f" of {amount(self.free + self.parameters)}"
        return f"memory on {self.device}: {amount(self.total)}{room} ({', '.join(parts)})"


def amount(size: int) -> str:
    """Bytes in a unit that is easy to read.

    Example:
        >>> amount(999), amount(351_000_000), amount(12_340_000_000)
        ('999 B', '351 MB', '12.3 GB')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            number = size / factor
            return f"{number:.1f} {unit}" if number < 100 else f"{number:.0f} {unit}"
    return f"{size} B"


def estimate(
    model: nn.Module,
    data: list[Tensor],
    *,
    settings: Settings,
    images: int,
    probe: Callable[[int], object],
    device: torch.device,
    measured: DeviceMemory | None = None,
) -> Memory:
    """The memory of a run whose model is on the device already; also decides where the data go.

    Args:
        model: the encoder.
        data: all training images and labels.
        settings: of the run; the optimiser decides what is kept beside the parameters.
        images: how many go through the encoder at a time.
        probe: takes so many images through a forward and a backward pass and lets all go again.
        device: where the run is.
        measured: the memory of the device; None where only counting is possible.

    Raises:
        TooLittleMemoryError: if so many images do not fit; the message names a number that does.
    """
    trained = sum(part.nbytes for part in model.parameters() if part.requires_grad)
    copies = 2 if settings.optimizer == "adamw" else 1 if settings.momentum else 0
    counted = Memory(
        device=str(device),
        parameters=sum(part.nbytes for part in (*model.parameters(), *model.buffers())),
        gradients=trained,
        optimizer=copies * trained,
        data=sum(part.nbytes for part in data),
        images=images,
    )
    if measured is None:
        return counted
    free = measured.free()
    room = int(free * (1 - MARGIN)) - counted.optimizer
    fits = images
    peak = measured.peak(partial(probe, fits))
    while fits and (peak is None or peak > room):
        fits //= 2
        peak = measured.peak(partial(probe, fits)) if fits else None
    if peak is None or fits < images:
        raise too_little(f"{device} has {amount(free)} free", images, smaller=fits, settings=settings)
    return replace(
        counted,
        activations=max(0, peak - counted.gradients),
        free=free,
        data_on_device=peak + counted.data <= room,
    )


def too_little(
    why: str, images: int, *, smaller: int, settings: Settings, fits: str = "fits"
) -> TooLittleMemoryError:
    """The error that names a smaller number: of a micro-batch, where the step can stay what it is.

    Example:
        >>> error = too_little("cuda:0 has 900 MB free", 64, smaller=16, settings=Settings())
        >>> str(error).partition(" (")[0]
        'cuda:0 has 900 MB free, too little for 64 at a time; micro_batch_size=16 fits'
    """
    if smaller == 0:
        what = "even one at a time; use a smaller encoder or another device"
    elif settings.centre == "batch":
        what = f"{images} at a time; batch_size={smaller} {fits}"
    else:
        what = (
            f"{images} at a time; micro_batch_size={smaller} {fits} (--micro-batch-size {smaller}), "
            "and a step is still the mean over its whole batch"
        )
    return TooLittleMemoryError(f"{why}, too little for {what}", smaller)
