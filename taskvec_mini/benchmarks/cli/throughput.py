"""`throughput`: how fast finetuning is on this machine."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from taskvec_mini import _checks, records
from taskvec_mini.benchmarks.cli.parser import command_of
from taskvec_mini.benchmarks.cli.record import check_place, write_record
from taskvec_mini.benchmarks.cli.requests import ThroughputRequest
from taskvec_mini.benchmarks.encoders import device_of
from taskvec_mini.benchmarks.evaluation import throughput as measurement
from taskvec_mini.benchmarks.training import Settings


def throughput(request: ThroughputRequest) -> dict[str, Any]:
    """Measure, print, and write the record that was asked for.

    Returns:
        What was measured; see `evaluation.throughput.measure`.

    Raises:
        UserError: if there is no such encoder or device, a number is out of range, the options do not go
            together, so many images at a time do not fit the GPU, or the record cannot be written.
    """
    passes = _checks.whole_number("passes", request.passes)
    images = _checks.whole_number("images", request.images)
    settings = Settings(learning_rate=1e-5, epochs=passes + 1, batch_size=request.batch_size)
    device = device_of(request.device)
    if request.workers is not None:
        workers = _checks.whole_number("workers", request.workers, minimum=0)
    elif device.type == "cuda":
        has_affinity = hasattr(os, "sched_getaffinity")
        workers = min(8, len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)
    else:
        workers = 0
    request.speed.check(settings, device)
    if request.out:
        check_place(request.out)
    begun, origin = time.perf_counter(), records.provenance(device)
    backbone = measurement.untrained(request.backbone)
    task = measurement.noise_task(images, backbone.image_size)
    found = measurement.measure(
        backbone, task, settings=settings, speed=request.speed, device=device, workers=workers
    )
    parameters = sum(part.numel() for part in backbone.model.parameters())
    print(f"{request.backbone}, {parameters:,} parameters, random weights; {origin['device']}")
    print(text(found, request))
    if request.out:
        write_record(
            request.out,
            {"parameters": parameters, **found},
            command=command_of(request),
            seeds=[0],
            seconds=round(time.perf_counter() - begun, 1),
            settings={
                "backbone": request.backbone,
                "images": images,
                "batch_size": request.batch_size,
                **asdict(request.speed),
            },
            origin=origin,
        )
        print(f"record: {request.out}")
    return found


def text(found: dict[str, Any], request: ThroughputRequest) -> str:
    """What was measured, in a few lines."""
    speed = request.speed
    how = [speed.precision]
    if speed.compile:
        how.append("compile")
    if speed.channels_last:
        how.append("channels last")
    workers = f"{found['workers']} workers" if found["workers"] else "no workers"
    done = found["images_per_second"] * found["flops_per_image"]
    passes = f"medians of {request.passes} passes in turn, after one"
    return "\n".join(
        [
            found["memory"],
            f"finetuning  {found['images_per_second']:10,.1f} images/s  {', '.join(how)}",
            f"plain loop  {found['plain_images_per_second']:10,.1f} images/s  float32, DataLoader, {workers}",
            f"ratio       {found['ratio']:10.2f}           {passes}",
            f"utilisation {found['utilisation']:10.1%}           {done / 1e12:.3g} of "
            f"{found['peak_flops'] / 1e12:.3g} TFLOP/s ({found['peak_source']}); "
            f"{found['flops_per_image'] / 1e9:.3g} GFLOP an image, forth and back",
        ]
    )
