"""How fast encoders are finetuned here, beside a plain loop over a DataLoader, on images of noise.

Model FLOP utilisation is the share of the device's peak that the arithmetic of the model itself takes
(Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

import copy
import math
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from taskvec_mini import _checks, _imports
from taskvec_mini.benchmarks.data import ImageTask
from taskvec_mini.benchmarks.encoders import Backbone, clip, load_backbone
from taskvec_mini.benchmarks.heads import Head, PrototypeHead
from taskvec_mini.benchmarks.training.settings import Settings, Speed
from taskvec_mini.benchmarks.training.trainer import Trainer

ENCODERS = ("pocket", *clip.PARAMETERS)
CLASSES = 10
DATA_SHEET = "NVIDIA's data sheet, without sparsity"
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (  # TFLOP/s, by what the device's name contains
    (r"\bH[12]00 NVL", {"bfloat16": 835, "tf32": 418, "float32": 60}),
    (r"\bH200\b", {"bfloat16": 989, "tf32": 494, "float32": 67}),
    (r"\bH100 PCIe", {"bfloat16": 756, "tf32": 378, "float32": 51}),
    (r"\bH100\b", {"bfloat16": 989, "tf32": 494, "float32": 67}),
    (r"\bA100\b", {"bfloat16": 312, "tf32": 156, "float32": 19.5}),
    (r"\bL4\b", {"bfloat16": 121, "tf32": 60, "float32": 30.3}),
    (r"\bT4\b", {"float32": 8.1}),
)


def untrained(name: str) -> Backbone:
    """An encoder of which only the speed counts: its weights are random, and nothing is downloaded.

    Raises:
        UserError: if there is no such encoder without weights; near names are suggested.
        MissingPackageError: if open_clip is needed and not installed.

    Example:
        >>> untrained("pocket").features
        256
    """
    clip.refuse_gelu(name)
    _checks.named_choice("backbone", name, dict.fromkeys(ENCODERS))
    if name == "pocket":
        return cast(Backbone, load_backbone("random-pocket"))
    model: Any = clip.without_weights(name)
    model.visual.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for path, part in model.visual.named_parameters():
        if path.endswith("bias"):
            nn.init.zeros_(part)
        elif "ln_" in path:
            nn.init.ones_(part)
        else:
            nn.init.normal_(part, 0.0, part[0].numel() ** -0.5, generator=generator)
    return clip.visual_backbone(name, model)


def noise_task(images: int, side: int, *, seed: int = 0) -> ImageTask:
    """Ten classes of uint8 colour images (N, side, side, 3) of noise, all of them training images.

    Validation and test have one image each, for form's sake.

    Example:
        >>> noise_task(20, 8)
        ImageTask('noise', 10 classes, 8x8x3, 20 train, 1 val, 1 test)
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, Any] = {}
    for part, count in (("train", images), ("val", 1), ("test", 1)):
        shape = (count, side, side, 3)
        parts[f"{part}_images"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        parts[f"{part}_labels"] = torch.arange(count) % CLASSES
    names = tuple(f"class {label}" for label in range(CLASSES))
    return ImageTask(name="noise", class_names=names, sha256="0" * 64, **parts)


def random_head(backbone: Backbone, classes: int) -> Head:
    """A head with random directions, as fast as any other."""
    rows = torch.randn(classes, backbone.features, generator=torch.Generator().manual_seed(0))
    return PrototypeHead(F.normalize(rows, dim=1), torch.zeros(backbone.features), 16.0)


# --- the plain way ---------------------------------------------------------------------------------------


class ImageByImage(Dataset[tuple[Tensor, int]]):
    """The usual data set: one image at a time, through Pillow and the transforms of torchvision."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], backbone: Backbone):
        transforms = _imports.load(  # takes seconds
            "torchvision.transforms", needed_for="the plain loop", install="torchvision"
        )
        self.images = images
        self.labels = labels
        side = backbone.image_size
        self.transform = transforms.Compose(
            [
                transforms.Resize((side, side), transforms.InterpolationMode(backbone.interpolation)),
                transforms.ToTensor(),
                transforms.Normalize(backbone.mean, backbone.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index]).convert("RGB")
        prepared: Tensor = self.transform(image)
        return prepared, int(self.labels[index])


class PlainLoop:
    """What most people write: a model, a DataLoader, an optimiser of torch, all in float32."""

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        task: ImageTask,
        *,
        settings: Settings,
        device: torch.device,
        workers: int,
    ):
        data = ImageByImage(task.train_images.numpy(), task.train_labels.numpy(), backbone)
        self.loader = DataLoader(
            data,
            batch_size=settings.batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(settings.seed),
        )
        self.model, self.head = copy.deepcopy(backbone.model).to(device), copy.deepcopy(head).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate)
        self.device = device

    def epoch(self) -> tuple[float, float]:
        """One pass over the images: images a second, and the mean loss of the steps."""
        begin = time.perf_counter()
        seen = 0
        losses = []
        for images, labels in self.loader:
            self.optimizer.zero_grad()
            logits = self.head(self.model(images.to(self.device)))
            loss = F.cross_entropy(logits, labels.to(self.device))
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses.append(loss.item())
            seen += len(labels)
        return seen / (time.perf_counter() - begin), statistics.fmean(losses)


# --- arithmetic ------------------------------------------------------------------------------------------


def flops_per_image(backbone: Backbone) -> int:
    """Floating-point operations of the encoder on one image, forth and back; a product and a sum are two.

    Matrix products and convolutions are counted, attention as the matrix products that it is made of.

    Example:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False))
        >>> shape = {"image_size": 2, "mean": (0, 0, 0), "std": (1, 1, 1), "features": 5}
        >>> flops_per_image(Backbone("linear", encoder, **shape))  # 2 x 60, twice
        240
    """
    side = backbone.image_size
    inputs = backbone.prepare(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    trained = [part for part in backbone.model.parameters() if part.requires_grad]
    grouped = {torch.ops.aten.convolution_backward: _convolution_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=grouped) as counter:
        torch.autograd.grad(backbone.model(inputs).sum(), trained)
    return int(counter.get_total_flops())


def _convolution_backward(
    grad: Sequence[int], inputs: Sequence[int], weight: Sequence[int], *others: Any, **_: Any
) -> int:
    """As often as forth for each gradient that is wanted; torch's own formula takes all groups for one."""
    transposed, wanted = others[4], others[7][:2]
    positions = math.prod(inputs if transposed else grad)
    return 2 * positions * math.prod(weight[1:]) * int(sum(wanted))


def peak_flops(device: torch.device, precision: str, *, name: str | None = None) -> tuple[float, str]:
    """The most that a device can do, in FLOP/s, and how that is known.

    From the data sheet of a few GPUs, else measured by large products of matrices, which gives less than a
    data sheet would.

    Args:
        device: the device.
        precision: as in `Speed`.
        name: of the device; by default what CUDA calls it.

    Example:
        >>> peak_flops(torch.device("cuda"), "bfloat16", name="NVIDIA A100-SXM4-40GB")
        (312000000000000.0, "NVIDIA's data sheet, without sparsity")
    """
    if name is None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    for pattern, peaks in _PEAKS:
        if name and "MIG" not in name and re.search(pattern, name) and precision in peaks:
            return peaks[precision] * 1e12, DATA_SHEET
    size = 8192 if device.type == "cuda" else 1024
    return measured_peak(device, precision, size), f"measured, {size} x {size} matrices"


def measured_peak(device: torch.device, precision: str, size: int, *, runs: int = 50) -> float:
    """FLOP/s of the fastest of a few products of random square matrices of this size."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    first, second = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    seconds = []
    with Speed(precision=precision).products():
        for _ in range(runs + 1):
            begin = time.perf_counter()
            product = first @ second
            product[0, 0].item()  # waits for the device
            seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds[1:])


# --- the comparison --------------------------------------------------------------------------------------


def measure(
    backbone: Backbone,
    task: ImageTask,
    *,
    settings: Settings,
    speed: Speed,
    device: torch.device,
    workers: int = 0,
) -> dict[str, Any]:
    """Finetune and run the plain loop in turn, `settings.epochs` passes each; the first one is a warm-up.

    Args:
        backbone: the encoder; it is not changed.
        task: its training images are used.
        settings: at least two epochs.
        speed: of finetuning; the plain loop is float32.
        device: where both run.
        workers: processes of the plain loop's DataLoader.

    Returns:
        Images a second of both (medians of the passes) and their ratio; FLOPs an image, the device's peak and
        the utilisation; the memory in words; the number of workers.

    Raises:
        UserError: if there are fewer than two epochs, or settings and speed do not go together.
        TooLittleMemoryError: if so many images at a time do not fit.
    """
    _checks.whole_number("epochs (a warm-up and at least one more)", settings.epochs, minimum=2)
    head = random_head(backbone, len(task.class_names))
    trainer = Trainer(
        backbone, {task.name: head}, {task.name: task}, settings=settings, device=device, speed=speed
    )
    loop = PlainLoop(backbone, head, task, settings=settings, device=device, workers=workers)
    ours = []
    plain = []
    for epoch in range(1, settings.epochs + 1):
        ours.append(trainer.epoch(epoch)["images_per_second"])
        plain.append(loop.epoch()[0])
    fast = statistics.median(ours[1:])
    slow = statistics.median(plain[1:])
    flops = flops_per_image(backbone)
    peak, source = peak_flops(device, speed.precision)
    return {
        "images_per_second": fast,
        "plain_images_per_second": slow,
        "ratio": fast / slow,
        "flops_per_image": flops,
        "peak_flops": peak,
        "peak_source": source,
        "utilisation": fast * flops / peak,
        "memory": str(trainer.memory),
        "workers": workers,
    }
