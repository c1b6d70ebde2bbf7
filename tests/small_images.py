"""Small image tasks for tests: noise with a brighter quarter that tells the class; nothing is downloaded."""

import torch

from taskvec_mini.benchmarks.data import ImageTask


def images_of(labels, *, seed, size=32):
    """Colour images (N, size, size, 3) whose class shows as a brighter quarter and a tint."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (len(labels), size, size, 3), generator=generator)
    half = size // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = divmod(label % 4, 2)
        image[top * half : (top + 1) * half, left * half : (left + 1) * half] += 60
        image[..., label % 3] += 30
    return images.to(torch.uint8)


def quarters(classes=4, *, train=40, val=12, test=16, seed=0):
    """A task of `classes` classes, which follow one another in turn."""
    parts = {}
    for offset, (part, count) in enumerate((("train", train), ("val", val), ("test", test))):
        labels = torch.arange(count) % classes
        parts |= {f"{part}_labels": labels, f"{part}_images": images_of(labels, seed=seed + offset)}
    names = tuple(f"class {i}" for i in range(classes))
    return ImageTask(name="quarters", class_names=names, sha256="0" * 64, **parts)
