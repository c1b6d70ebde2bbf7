"""Pretrain the `pocket` encoder on Tiny ImageNet at 32 x 32 pixels, and write its weights and their record.

    python scripts/pretrain_pocket.py --images tinyimagenet32_jpeg.npz --teacher MOBILENET.npz --work FOLDER

It learns two things at once: the 200 class names (cross-entropy with label smoothing on cosine logits), and
the features of an ImageNet MobileNet, one prediction per image (Hinton et al. 2015, arXiv:1503.02531). Its
images are moved, scaled, mirrored and recoloured, and for the first two thirds of the epochs they are smaller
(24 x 24), which costs half as much. What is shipped is a running average of the weights.

A run that stops is taken up again at its last epoch by the same command. One core needs about an hour.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from taskvec_mini import _files, records
from taskvec_mini.benchmarks.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from taskvec_mini.benchmarks.encoders.mobilenet import read_keras
from taskvec_mini.benchmarks.encoders.pocket import Pocket

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "taskvec_mini" / "benchmarks" / "encoders" / "weights"
SMALL, SMALL_SHARE = 24, 2 / 3  # the first two thirds of the epochs see images of 24 x 24, at half the cost
AVERAGE, SMOOTHING, DISTIL, LOGIT_SCALE = 0.998, 0.1, 4.0, 16.0


def main() -> None:
    """Read the images, compute the teacher's features once, train, write."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    images, labels, test_images, test_labels = read_images(options.images)
    teacher = _cached(options.work / "teacher.pt", lambda: teacher_features(images, options.teacher))
    student = Student(int(labels.max()) + 1, teacher.shape[1], options.seed)
    progress = train(student, images, labels, teacher, options)
    scores = {"top1": top1(progress["average"], test_images, test_labels)}
    write(progress, scores, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="tinyimagenet32_jpeg.npz")
    parser.add_argument("--teacher", type=Path, required=True, help="the MobileNetV1 backbone as .npz")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, to take up again")
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser


# --- data ------------------------------------------------------------------------------------------------


def read_images(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (N, 3, 32, 32) uint8 and labels (N,), then those of the test part."""
    with np.load(path) as stored:
        parts = {
            name: stored[name] for name in stored.files if name.endswith(("_jpeg", "_offsets", "_labels"))
        }
    decoded = []
    for part in ("train", "test"):
        bounds, data = parts[f"{part}_offsets"], parts[f"{part}_jpeg"].tobytes()
        pairs = itertools.pairwise(bounds)
        pixels = [np.asarray(Image.open(io.BytesIO(data[a:b])).convert("RGB")) for a, b in pairs]
        decoded += [torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(parts[f"{part}_labels"])]
    return decoded[0].contiguous(), decoded[1], decoded[2].contiguous(), decoded[3]


def augment(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Images (N, 3, size, size): random crops, mirror, contrast, brightness and, now and then, grey."""
    n = len(images)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    scale, stretch = draw(0.7, 1.05), draw(0.9, 1.1)
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    place = torch.zeros(n, 2, 3)
    place[:, 0, 0], place[:, 1, 1] = scale * stretch * mirror, scale / stretch
    place[:, :, 2] = draw(-1, 1, 2) * (1.1 - scale).clamp(min=0.05)[:, None]
    grid = F.affine_grid(place, [n, 3, size, size], align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    grey = moved.mean(1, keepdim=True)
    moved = torch.where(draw(0, 1, 1, 1, 1) < 0.15, grey, grey + (moved - grey) * draw(0.6, 1.4, 1, 1, 1))
    level = moved.mean((1, 2, 3), keepdim=True)
    return level + (moved - level) * draw(0.6, 1.4, 1, 1, 1) + draw(-0.15, 0.15, 1, 1, 1)


def normalise(images: Tensor) -> Tensor:
    """Images in 0..1 less ImageNet's channel means, divided by its standard deviations."""
    return (images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


# --- the teacher -----------------------------------------------------------------------------------------


@torch.no_grad()
def teacher_features(images: Tensor, weights: Path, size: int = 96) -> Tensor:
    """Centred unit features (N, 1024) in float16 of the MobileNet, on uint8 images enlarged to `size`."""
    teacher, features = read_keras(weights), []
    for chunk in images.split(256):
        large = F.interpolate(chunk.float(), size=(size, size), mode="bicubic", align_corners=False)
        values = large.clamp(0, 255) / 127.5 - 1
        features.append(teacher(values.contiguous(memory_format=torch.channels_last)))
    gathered = torch.cat(features)
    return F.normalize(gathered - gathered.mean(0), dim=1).half()


# --- the student -----------------------------------------------------------------------------------------


class Student(nn.Module):
    """The encoder with what only pretraining needs: a cosine classifier, a map to the teacher's features."""

    def __init__(self, classes: int, features: int, seed: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = Pocket()
            width = self.encoder.project.out_features
            self.classifier = nn.Parameter(torch.randn(classes, width) * width**-0.5)
            self.imitate = nn.Linear(width, features)

    def loss(self, images: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
        """Cross-entropy on the class names plus the cosine distance to the teacher."""
        embedded = self.encoder(images)
        named = F.cross_entropy(self.logits(embedded), labels, label_smoothing=SMOOTHING)
        likeness = F.cosine_similarity(self.imitate(embedded), teacher).mean()
        return named + DISTIL * (1 - likeness)

    def logits(self, embedded: Tensor) -> Tensor:
        """Scaled cosines (N, classes) between embeddings and one learnt direction per class."""
        return LOGIT_SCALE * F.normalize(embedded, dim=1) @ F.normalize(self.classifier, dim=1).T


def train(
    student: Student, images: Tensor, labels: Tensor, teacher: Tensor, options: argparse.Namespace
) -> dict:
    """Train to the last epoch, with a checkpoint after each; the running average and what it cost."""
    average = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    generator = torch.Generator().manual_seed(options.seed)
    done, seconds, path = 0, 0.0, options.work / "checkpoint.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        done, seconds = saved["done"], saved["seconds"]
        for part, name in ((student, "student"), (average, "average"), (optimizer, "optimizer")):
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
    for epoch in range(done, options.epochs):
        begun = time.perf_counter()
        mean_loss = train_epoch(
            student, average, optimizer, images, labels, teacher, generator, epoch, options
        )
        seconds += time.perf_counter() - begun
        state = {
            "student": student.state_dict(), "average": average.state_dict(),
            "optimizer": optimizer.state_dict(), "generator": generator.get_state(),
            "done": epoch + 1, "seconds": seconds,
        }  # fmt: skip
        with _files.replacing(path) as place:
            torch.save(state, place)
        print(f"epoch {epoch + 1}/{options.epochs}  loss {mean_loss:.3f}  {seconds:.0f} s", flush=True)
    return {"average": average, "seconds": seconds}


def train_epoch(student, average, optimizer, images, labels, teacher, generator, epoch, options) -> float:
    """One pass over the images; the mean loss."""
    size = SMALL if epoch < SMALL_SHARE * options.epochs else images.shape[-1]
    total, batches = 0.0, torch.randperm(len(images), generator=generator).split(options.batch_size)
    for i, index in enumerate(batches):
        _set_rate(optimizer, (epoch + i / len(batches)), options)
        inputs = normalise(augment(images[index].float() / 255, size, generator))
        value = student.loss(inputs, labels[index], teacher[index].float())
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), student.parameters(), strict=True):
                mine.lerp_(
                    theirs, 1 - min(AVERAGE, (1 + epoch * len(batches) + i) / (10 + epoch * len(batches) + i))
                )
        total += float(value.detach()) * len(index)
    return total / len(images)


def _set_rate(optimizer: torch.optim.Optimizer, epoch: float, options: argparse.Namespace) -> None:
    """One epoch of linear warm-up, then half a cosine down to zero."""
    share = (
        min(1.0, epoch + 0.01)
        if epoch < 1
        else 0.5 + 0.5 * np.cos(np.pi * (epoch - 1) / (options.epochs - 1))
    )
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * float(share)


@torch.no_grad()
def top1(student: Student, images: Tensor, labels: Tensor) -> float:
    """The share of images whose class name comes first."""
    chunks = [
        student.logits(student.encoder(normalise(part.float() / 255))).argmax(1) for part in images.split(500)
    ]
    return float((torch.cat(chunks) == labels).double().mean())


# --- what is written -------------------------------------------------------------------------------------


def write(progress: dict, scores: dict, options: argparse.Namespace) -> None:
    """The encoder in float16, and a record of how it was made."""
    OUT.mkdir(exist_ok=True)
    encoder = progress["average"].encoder.state_dict()
    state = {name: value.half().contiguous() for name, value in encoder.items()}
    with _files.replacing(OUT / "pocket.safetensors") as place:
        save_file(state, place)
    results = {
        "parameters": sum(value.numel() for value in state.values()),
        **scores,
        "sha256": _files.sha256(OUT / "pocket.safetensors"),
    }
    records.write(
        OUT / "pocket.json",
        results,
        command="python scripts/pretrain_pocket.py --images tinyimagenet32_jpeg.npz"
        f" --teacher {options.teacher.name} --work local/pocket --epochs {options.epochs}",
        seeds=[options.seed],
        seconds=round(progress["seconds"], 1),
        settings={k: v for k, v in vars(options).items() if k not in ("images", "teacher", "work")},
        data={path.name: _files.sha256(path) for path in (options.images, options.teacher)},
    )
    print(results)


def _cached(path: Path, compute) -> Tensor:
    if not path.exists():
        with _files.replacing(path) as place:
            torch.save(compute(), place)
    return torch.load(path, weights_only=True)


if __name__ == "__main__":
    main()
