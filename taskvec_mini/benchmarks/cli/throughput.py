"""`throughput`: how fast finetuning is on this machine. And words that other commands share."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec_mini.benchmarks.cli.words import PROGRAM
from taskvec_mini.errors import FileError, UserError

if TYPE_CHECKING:
    from taskvec_mini.benchmarks.training.speed import Speed

WORDS = ("precision", "micro_batch_size", "compile", "channels_last")  # the fields of `Speed`


def add_speed(group: argparse._ArgumentGroup) -> None:
    """The options of `Speed`, for a group of a command."""
    group.add_argument(
        "--precision",
        choices=["float32", "tf32", "bfloat16"],
        default="float32",
        help="of matrix products; the parameters stay float32 (default: float32)",
    )
    add_micro_batch(group, "all of it")
    group.add_argument(
        "--compile", action="store_true", help="translate the encoder with torch.compile first"
    )
    group.add_argument(
        "--channels-last", action="store_true", help="order of images and convolutions that suits GPUs"
    )


def add_micro_batch(group: argparse._ArgumentGroup, default: str) -> None:
    """The option that splits a batch, with what happens without it."""
    group.add_argument(
        "--micro-batch-size",
        type=int,
        metavar="N",
        help=f"so many in memory at a time; a step is still the mean over its batch (default: {default})",
    )


def add_engine(group: argparse._ArgumentGroup) -> None:
    """The options of `engines.finetune_all`, for a group of a command."""
    group.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="local: one task after the other on this machine; ray: one task a worker of a Ray cluster, with "
        "the same result (default: local)",
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="of ray: tasks at a time (default: what there is room for)"
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of ray: the cluster's head (default: a cluster on this machine while the command runs)",
    )


def add_throughput(command: argparse.ArgumentParser) -> None:
    """The options of `throughput`, but for the device."""
    command.add_argument(
        "--backbone",
        default="pocket",
        metavar="NAME",
        help="pocket, tiny-clip, ViT-B-32-quickgelu ..., with random weights (default: pocket)",
    )
    for name, value, words in (
        ("images", 256, "images of noise in a pass"),
        ("batch-size", 64, "images in a step"),
        ("passes", 3, "passes over the images that count, after one that does not"),
    ):
        command.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{words} (default: {value})"
        )
    command.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes of the plain loop's DataLoader (default: up to 8, one a CPU, with a GPU; else 0)",
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="write a record there (default: none)")
    add_speed(command.add_argument_group("speed of finetuning"))


def speed_of(options: argparse.Namespace) -> Speed:
    """What the words about speed say."""
    from taskvec_mini.benchmarks.training.speed import Speed

    return Speed(**{name: getattr(options, name) for name in WORDS})


def throughput(options: argparse.Namespace) -> None:
    """Measure, print, and write the record that was asked for.

    Raises:
        ValueError: if there is no such encoder or device, a number is out of range, or the options do not go
            together.
        TooLittleMemoryError: if so many images at a time do not fit the GPU.
        OSError: if the record cannot be written.
    """
    from taskvec_mini import _checks, records
    from taskvec_mini.benchmarks.evaluation import throughput as module
    from taskvec_mini.benchmarks.training.experiment import device_of
    from taskvec_mini.benchmarks.training.settings import Settings

    if options.out and not options.out.absolute().parent.is_dir():
        raise FileError(f"there is no folder {options.out.absolute().parent} for the record; make it first")
    passes = _checks.whole_number("passes", options.passes)
    images = _checks.whole_number("images", options.images)
    settings = Settings(learning_rate=1e-5, epochs=passes + 1, batch_size=options.batch_size)
    device = device_of(options.device)
    speed, workers = speed_of(options), _workers(options.workers, device.type)
    speed.check(settings, device)
    begun, origin = time.perf_counter(), records.provenance(device)
    backbone = module.untrained(options.backbone)
    task = module.noise_task(images, backbone.image_size)
    found = module.measure(backbone, task, settings=settings, speed=speed, device=device, workers=workers)
    parameters = sum(part.numel() for part in backbone.model.parameters())
    print(f"{options.backbone}, {parameters:,} parameters, random weights; {origin['device']}")
    print(text(found, options))
    if options.out:
        records.write(
            options.out,
            {"parameters": parameters, **found},
            command=command_of(options),
            seeds=[0],
            seconds=round(time.perf_counter() - begun, 1),
            settings={name: getattr(options, name) for name in ("backbone", "images", "batch_size", *WORDS)},
            origin=origin,
        )
        print(f"record: {options.out}")


def _workers(asked: int | None, device: str) -> int:
    if asked is not None:
        if asked < 0:
            raise UserError(f"workers must be at least 0, got {asked}")
        return asked
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, there) if device == "cuda" else 0


def text(found: dict[str, Any], options: argparse.Namespace) -> str:
    """What `throughput.measure` found, in a few lines."""
    more = [word for word in ("compile", "channels_last") if getattr(options, word)]
    how = ", ".join([options.precision, *(word.replace("_", " ") for word in more)])
    done = found["images_per_second"] * found["flops_per_image"]
    workers = f"{found['workers']} workers" if found["workers"] else "no workers"
    lines = [
        found["memory"],
        f"finetuning  {found['images_per_second']:10,.1f} images/s  {how}",
        f"plain loop  {found['plain_images_per_second']:10,.1f} images/s  float32, DataLoader, {workers}",
        f"ratio       {found['ratio']:10.2f}           medians of {options.passes} passes in turn, after one",
        f"utilisation {found['utilisation']:10.1%}           {done / 1e12:.3g} of "
        f"{found['peak_flops'] / 1e12:.3g} TFLOP/s ({found['peak_source']}); "
        f"{found['flops_per_image'] / 1e9:.3g} GFLOP an image, forth and back",
    ]
    return "\n".join(lines)


def command_of(options: argparse.Namespace) -> str:
    """The line that makes the record anew; where the record lies is left out."""

    words = [f"--{name} {getattr(options, name)}" for name in ("backbone", "images")]
    words += [f"--batch-size {options.batch_size} --passes {options.passes} --precision {options.precision}"]
    for name in ("micro_batch_size", "device", "workers"):
        if getattr(options, name) is not None:
            words.append(f"--{name.replace('_', '-')} {getattr(options, name)}")
    words += [
        f"--{name.replace('_', '-')}" for name in ("compile", "channels_last") if getattr(options, name)
    ]
    return " ".join([f"{PROGRAM} throughput", *words])
