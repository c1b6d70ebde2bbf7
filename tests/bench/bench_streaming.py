"""Merging from files at the scale of CLIP: seconds and peak memory, beside the plain way. Prints a table.

Files shaped like visual encoders are made in a temporary folder and deleted afterwards: for ViT-B/32 nine of
351 MB with eight tasks. Every measurement is a process of its own, after all files were read once, so that
disks play no part. The plain way of a mean loads all state dicts and makes dictionaries: one of differences
for each task, a new one for every sum. The plain way of the other rules is `merging` on whole vectors: about
7 GB for eight tasks of ViT-B/32. TSV-M takes minutes there; leave it out with --rules mean,ties.

usage: OMP_NUM_THREADS=2 python tests/bench/bench_streaming.py [--width small|vit-b-32] [--tasks 8]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskvec_mini import TaskVector, _files, merging, records, scores
from taskvec_mini.merging import merge_files

Shapes = dict[str, tuple[int, ...]]
WIDTHS = {  # width, layers, patch, image size, length of an embedding
    "small": (64, 2, 32, 224, 32),
    "vit-b-32": (768, 12, 32, 224, 512),
}
RULES = {
    "mean": ("mean", {}),
    "ties": ("ties", {"density": 0.2}),
    "tsv": ("tsv", {"kernels": "matrix"}),
}
WAYS = ("streamed", "plain")
KIBIBYTES = 1 if sys.platform == "darwin" else 1024  # the unit of getrusage


def shapes(width: int, layers: int, patch: int, image_size: int, features: int) -> Shapes:
    """The state dict of open_clip's visual transformer, by name."""
    named: Shapes = {
        "class_embedding": (width,),
        "positional_embedding": ((image_size // patch) ** 2 + 1, width),
        "proj": (width, features),
        "conv1.weight": (width, 3, patch, patch),
    }
    for norm in ("ln_pre", "ln_post"):
        named |= _affine(norm, (width,))
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        named |= {
            block + "attn.in_proj_weight": (3 * width, width),
            block + "attn.in_proj_bias": (3 * width,),
        }
        named |= _affine(block + "attn.out_proj", (width, width))
        named |= _affine(block + "mlp.c_fc", (4 * width, width))
        named |= _affine(block + "mlp.c_proj", (width, 4 * width))
        named |= _affine(block + "ln_1", (width,)) | _affine(block + "ln_2", (width,))
    return named


def _affine(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def make_files(folder: Path, named: Shapes, tasks: int) -> None:
    """Write one pretrained and `tasks` finetuned state dicts of random numbers."""
    numbers = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=numbers).mul_(0.02) for name, shape in named.items()}
    save_file(start, folder / "pretrained.safetensors")
    for task in range(tasks):
        moved = {name: torch.randn(part.shape, generator=numbers) for name, part in start.items()}
        for name, part in moved.items():
            part.mul_(1e-3).add_(start[name])
        save_file(moved, folder / f"task_{task}.safetensors")


def files_of(folder: Path) -> tuple[Path, list[Path]]:
    return folder / "pretrained.safetensors", sorted(folder.glob("task_*.safetensors"))


# one measurement, in a process of its own


def plain(rule: str, pretrained: Path, finetuned: list[Path]) -> dict[str, Tensor]:
    """What most people write: everything is loaded, and everything is a new dictionary."""
    start, ends = load_file(pretrained), [load_file(file) for file in finetuned]
    name, options = RULES[rule]
    if name != "mean":
        vectors = [TaskVector.between(start, end) for end in ends]
        return getattr(merging, name)(vectors, **options).apply_to(start)
    differences = [{key: end[key] - start[key] for key in start} for end in ends]
    total = differences[0]
    for each in differences[1:]:
        total = {key: total[key] + each[key] for key in total}
    mean = {key: part / len(ends) for key, part in total.items()}
    return {key: start[key] + mean[key] for key in start}


def measure(way: str, rule: str, folder: Path) -> None:
    """Print seconds, gigabytes before and at the peak, and the length of what was added, as JSON."""
    pretrained, finetuned = files_of(folder)
    before, begin, busy = peak(), time.perf_counter(), time.process_time()
    if way == "streamed":
        name, options = RULES[rule]
        state = merge_files(pretrained, finetuned, rule=name, **options)
    else:
        state = plain(rule, pretrained, finetuned)
    found = {
        "clock, s": time.perf_counter() - begin,
        "CPU, s": time.process_time() - busy,
        "peak, GB": peak(),
        "of it before, GB": before,
    }
    start = load_file(pretrained)
    squares = (float((state[key] - start[key]).double().square().sum()) for key in sorted(start))
    print(json.dumps({**found, "norm": sum(squares) ** 0.5}))


def peak() -> float:
    """The most memory this process has held so far, mapped files included, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTES / 1e9


# the table


def best(way: str, rule: str, folder: Path, runs: int) -> dict[str, float]:
    """The quickest of a few processes, with the lowest peak."""
    found = [json.loads(in_a_process("--measure", way, rule, str(folder))) for _ in range(runs)]
    return {name: min(each[name] for each in found) for name in found[0]}


def in_a_process(*words: str) -> str:
    """What this program prints with these words. A process starts with its parent's peak: keep that low."""
    command = [sys.executable, __file__, *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def show(options: argparse.Namespace, folder: Path) -> None:
    """Make the files, measure, print."""
    in_a_process("--make", str(folder), "--width", options.width, "--tasks", str(options.tasks))
    pretrained, finetuned = files_of(folder)
    for file in (pretrained, *finetuned):  # from here on in the memory of the operating system
        _files.sha256(file)
    origin = records.provenance()
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    print(f"{origin['device']}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {versions}")
    entries = sum(math.prod(shape) for shape in shapes(*WIDTHS[options.width]).values())
    size = pretrained.stat().st_size / 1e6
    print(f"{options.tasks} tasks of {entries:,} entries, {size:,.1f} MB a file; best of {options.runs}")
    rows = []
    for rule in options.rules:
        found = {way: best(way, rule, folder, options.runs) for way in WAYS}
        apart = abs(found["streamed"].pop("norm") / found["plain"].pop("norm") - 1)
        rows += [{"rule": rule, "way": way, **found[way]} for way in WAYS]
        print(f"{rule}: the norms of what the two ways add differ by {apart:.0e} of themselves", flush=True)
    print(scores.table(rows))


def main() -> None:
    """Print the table, or take one of its measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", choices=WIDTHS, default="vit-b-32", help="the shapes")
    parser.add_argument("--tasks", type=int, default=8, help="finetuned files")
    parser.add_argument(
        "--rules", type=lambda text: text.split(","), default=list(RULES), help="mean,ties,tsv"
    )
    parser.add_argument("--runs", type=int, default=3, help="processes for each measurement")
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "RULE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--make", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, rule, folder = options.measure
        measure(way, rule, Path(folder))
        return
    if options.make:
        make_files(Path(options.make), shapes(*WIDTHS[options.width]), options.tasks)
        return
    for rule in options.rules:
        if rule not in RULES:
            parser.error(f"unknown rule {rule!r}; choose from {', '.join(RULES)}")
    with tempfile.TemporaryDirectory() as folder:
        show(options, Path(folder))


if __name__ == "__main__":
    main()
