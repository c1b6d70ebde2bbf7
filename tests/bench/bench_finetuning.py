"""How fast encoders are finetuned, and merged ones evaluated, beside the plain way. Prints; asserts nothing.

The plain way of finetuning is a loop over a DataLoader whose data set opens every image by itself, as
tutorials do: Pillow and the transforms of torchvision. The plain way of evaluating a merge builds the
model, loads the checkpoints and the data, and uses a DataLoader, for every scaling coefficient again.

How much faster anything could be is printed as well: what the arithmetic alone takes at the speed that large
products of matrices reach on this machine.

usage: OMP_NUM_THREADS=1 python tests/bench/bench_finetuning.py [--data FOLDER] [--images N]
           [--backbone pocket|random-pocket|mobilenet] [--channels-last] [--micro-batch-size N]
Without a folder of data (--data, or the environment variable TASKVEC_MINI_DATA) it makes images of noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from taskvec_mini.benchmarks.data import ImageTask, load_tasks
from taskvec_mini.benchmarks.encoders import Backbone, load_backbone
from taskvec_mini.benchmarks.evaluation import forget_prepared_images, sweep, throughput
from taskvec_mini.benchmarks.heads import Head
from taskvec_mini.benchmarks.training import Settings, Speed
from taskvec_mini.vectors import TaskVector

COEFS = [i / 20 for i in range(1, 21)]
PASSES = 3


def plain_sweep(folder: Path, name: str, heads: dict[str, Head]) -> list[list[float]]:
    """Everything anew for each scaling coefficient: model, checkpoints, data."""
    rows = []
    for coef in COEFS:
        backbone, row = load_backbone(name), []
        state = torch.load(folder / "pretrained.pt", weights_only=True)
        merged = TaskVector.load(folder / "merged.safetensors")
        backbone.model.load_state_dict(merged.apply_to(state, coef))
        for task, head in heads.items():
            stored = np.load(folder / f"{task}.npz")
            data = throughput.ImageByImage(stored["images"], stored["labels"], backbone)
            row.append(plain_accuracy(backbone, head, data))
        rows.append(row)
    return rows


@torch.no_grad()
def plain_accuracy(backbone: Backbone, head: Head, data: throughput.ImageByImage) -> float:
    right = 0
    for images, labels in DataLoader(data, batch_size=128):
        right += int((head(backbone.model(images)).argmax(1) == labels).sum())
    return right / len(data)


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the clock and seconds of this process's CPU: the second does not count other programs."""
    begin = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - begin[0], time.process_time() - begin[1], result


def show_finetuning(backbone: Backbone, task: ImageTask, speed: Speed) -> None:
    """Images a second, the two ways in turn, as `python -m taskvec_mini.benchmarks throughput` has it."""
    found = throughput.measure(
        backbone,
        task,
        settings=Settings(learning_rate=1e-4, epochs=PASSES + 1),
        speed=speed,
        device=torch.device("cpu"),
    )
    fastest = found["peak_flops"] / found["flops_per_image"]
    print(
        f"finetuning, {len(task.train_labels):,} images of {task.name}: {found['images_per_second']:,.0f} "
        f"images/s, plain loop {found['plain_images_per_second']:,.0f} images/s, {found['ratio']:.2f}x; at "
        f"the peak {fastest:,.0f} images/s, {fastest / found['plain_images_per_second']:.2f}x "
        f"({found['peak_flops'] / 1e9:.0f} GFLOP/s, {found['peak_source']})"
    )


def show_evaluation(backbone: Backbone, tasks: dict[str, ImageTask], *, channels_last: bool) -> None:
    """All scaling coefficients on all tasks, the first preparation of the images included."""
    heads = {name: throughput.random_head(backbone, len(task.class_names)) for name, task in tasks.items()}
    pretrained = {name: part.detach() for name, part in backbone.model.named_parameters()}
    moved = {name: part * 1.01 for name, part in pretrained.items()}
    merged = TaskVector.between(pretrained, moved)
    forget_prepared_images()
    if channels_last:
        backbone.model.to(memory_format=torch.channels_last)
    fast = timed(
        lambda: sweep(
            backbone, heads, tasks, pretrained=pretrained, merged=merged, scaling_coefs=COEFS, split="test"
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, task in tasks.items():
            images, labels = task.test_images.numpy(), task.test_labels.numpy()
            np.savez_compressed(Path(folder) / f"{name}.npz", images=images, labels=labels)
        torch.save(pretrained, Path(folder) / "pretrained.pt")
        merged.save(Path(folder) / "merged.safetensors")
        slow = timed(lambda: plain_sweep(Path(folder), backbone.name, heads))
    apart = float((torch.tensor(slow[2]) - fast[2]).abs().max())
    count = sum(len(task.test_labels) for task in tasks.values())
    for which, clock in enumerate(("clock", "CPU time")):
        print(
            f"{len(COEFS)} scaling coefficients x {len(tasks)} tasks, {count:,} test images, by {clock}: "
            f"{fast[which]:.1f} s, plain way {slow[which]:.1f} s, {slow[which] / fast[which]:.2f}x"
        )
    flops, (peak, _) = forward_flops(backbone), throughput.peak_flops(torch.device("cpu"), "float32")
    least = len(COEFS) * count * flops / peak
    print(f"the arithmetic alone, at the peak: {least:.1f} s, {slow[0] / least:.2f}x the plain way")
    print(f"largest difference of an accuracy between the two ways: {apart:.4f}")


def forward_flops(backbone: Backbone) -> int:
    """Floating-point operations of the encoder on one image."""
    side = backbone.image_size
    inputs = backbone.prepare(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.model(inputs)
    return int(counter.get_total_flops())


def noise_tasks(count: int) -> dict[str, ImageTask]:
    """Eight tasks of noise, 32 x 32 pixels in colour."""
    tasks = {}
    for number in range(8):
        name, noise = f"noise {number}", throughput.noise_task(count, 32, seed=number)
        test = {"test_images": noise.train_images, "test_labels": noise.train_labels}
        tasks[name] = dataclasses.replace(noise, name=name, **test)
    return tasks


def shortened(task: ImageTask, count: int) -> ImageTask:
    """The first test images alone."""
    return dataclasses.replace(
        task, test_images=task.test_images[:count], test_labels=task.test_labels[:count]
    )


def main() -> None:
    """Print the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("TASKVEC_MINI_DATA"), help="the folder of the data")
    parser.add_argument("--images", type=int, default=1000, help="training images, and test images a task")
    parser.add_argument("--backbone", default="random-pocket", help='"pocket", "random-pocket", "mobilenet"')
    parser.add_argument(
        "--channels-last", action="store_true", help="for our way; the plain way stays as it is"
    )
    parser.add_argument("--micro-batch-size", type=int, help="images at a time when we finetune")
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.backbone}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    if options.data is None:
        tasks = noise_tasks(options.images)
    else:
        tasks = load_tasks(folder=options.data, limit=options.images)
    backbone = load_backbone(options.backbone)
    speed = Speed(channels_last=options.channels_last, micro_batch_size=options.micro_batch_size)
    show_finetuning(backbone, next(iter(tasks.values())), speed)
    few = {name: shortened(task, options.images) for name, task in tasks.items()}
    show_evaluation(backbone, few, channels_last=options.channels_last)


if __name__ == "__main__":
    main()
