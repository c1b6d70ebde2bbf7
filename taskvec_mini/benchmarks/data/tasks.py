"""An image classification task: three parts of uint8 images and their labels, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class ImageTask:
    """A classification task on images: what to learn from, what to tune on, what to be judged on.

    Attributes:
        name: a short name, unique in its suite.
        class_names: the meaning of each label.
        train_images, val_images, test_images: uint8, (N, H, W) grey or (N, H, W, 3) colour, of one size.
        train_labels, val_labels, test_labels: (N,) int64 from 0.
        sha256: the checksum of the data all this came from.

    Raises:
        TypeError: if images are not uint8 or labels not int64.
        ValueError: if a part is empty, lengths or image shapes differ, or a label has no class name.
    """

    name: str
    class_names: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    sha256: str

    def __post_init__(self) -> None:
        for part in PARTS:
            images, labels = self.part(part)
            check_part(f"task {self.name!r}, {part}", images, labels, classes=len(self.class_names))
            if images.shape[1:] != self.train_images.shape[1:]:
                raise UserError(
                    f"task {self.name!r} has {part} images of shape {tuple(images.shape[1:])} and train "
                    f"images of shape {tuple(self.train_images.shape[1:])}; resize them to one size"
                )

    def part(self, part: str) -> tuple[Tensor, Tensor]:
        """Images and labels of "train", "val" or "test".

        Raises:
            ValueError: for another part.
        """
        _checks.named_choice("part", part, dict.fromkeys(PARTS))
        return getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self.part(part)[1])} {part}" for part in PARTS)
        shape = "x".join(map(str, self.train_images.shape[1:]))
        return f"ImageTask({self.name!r}, {len(self.class_names)} classes, {shape}, {sizes})"


def check_part(what: str, images: Tensor, labels: Tensor, *, classes: int) -> None:
    """Refuse what is not uint8 images, grey or colour, each with an int64 label below `classes`.

    Raises:
        TypeError: if images are not uint8 or labels not int64.
        ValueError: if the images have another shape, lengths differ, or a label has no class.
    """
    if images.dtype != torch.uint8 or labels.dtype != torch.int64:
        raise InputTypeError(
            f"{what}: images must be uint8 and labels int64, got {images.dtype} and {labels.dtype}; "
            "convert them with .to(dtype), images to the range 0-255"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise UserError(
            f"{what}: images must have shape (N, H, W) or (N, H, W, 3), got {tuple(images.shape)}; "
            "put the colours last"
        )
    if len(labels) == 0 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{what}: {len(images)} images and labels of shape {tuple(labels.shape)}; "
            "give one label for each image, and at least one"
        )
    check_labels(what, labels, classes)


def check_labels(what: str, labels: Tensor, classes: int) -> None:
    """A ValueError where a label has no class."""
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(
            f"{what}: labels run from {int(labels.min())} to {int(labels.max())} for {classes} classes; "
            "number the classes from 0 and name each"
        )
