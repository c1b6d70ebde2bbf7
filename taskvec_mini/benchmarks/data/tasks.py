"""Classification tasks on images and on texts: three parts of inputs and labels, checked when made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError

PARTS = ("train", "val", "test")
DATA_VARIABLE = "TASKVEC_MINI_DATA"  # the environment variable with the folder of data and weights


class Task(Protocol):
    """What all else asks of a classification task, such as an `ImageTask`; made once and never changed."""

    @property
    def name(self) -> str:
        """A short name, unique in its suite."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The meaning of each label."""

    @property
    def sha256(self) -> str:
        """The checksum of the data it came from."""

    def part(self, part: str) -> tuple[Tensor, Tensor]:
        """Inputs (N, ...) and int64 labels (N,) of "train", "val" or "test"; else a ValueError."""


@dataclass(frozen=True, eq=False)
class ImageTask:
    """A classification task on images: what to learn from, what to tune on, what to be judged on.

    Attributes:
        name: a short name, unique in its suite.
        class_names: the meaning of each label.
        train_images, val_images, test_images: uint8, (N, H, W) grey or (N, H, W, 3) colour, of one size.
        train_labels, val_labels, test_labels: (N,) int64 from 0.
        sha256: the checksum of the data all this came from.
        left_out: how many images of "val" and "test" were left out as near duplicates (see `duplicates`);
            empty where nobody looked.
        unit: what progress is counted in.

    Raises:
        TypeError: if images are not uint8 or labels not int64.
        ValueError: if a part is empty, lengths or image shapes differ, or a label has no class name.

    Example:
        >>> images, labels = torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
        >>> ImageTask("tiny", ("no", "yes"), images, labels, images, labels, images, labels, "0" * 64)
        ImageTask('tiny', 2 classes, 8x8, 2 train, 2 val, 2 test)
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
    left_out: Mapping[str, int] = field(default_factory=dict)
    unit: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        for part in PARTS:
            images, labels = self.part(part)
            check_images(f"task {self.name!r}, {part}", images, labels, classes=len(self.class_names))
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
        gone = " and ".join(f"{count} {part}" for part, count in self.left_out.items() if count)
        without = f"; {gone} left out as near duplicates" if gone else ""
        return f"ImageTask({self.name!r}, {len(self.class_names)} classes, {shape}, {sizes}{without})"


@dataclass(frozen=True, eq=False)
class TextTask:
    """A classification task on texts: what to learn from, what to tune on, what to be judged on.

    Attributes:
        name: a short name, unique in its suite.
        class_names: the meaning of each label.
        train_tokens, val_tokens, test_tokens: (N, L) int32 token ids, 0 where a text has ended.
        train_labels, val_labels, test_labels: (N,) int64 from 0.
        sha256: a checksum of the texts, their classes and the tokenizer.
        unit: what progress is counted in.

    Raises:
        TypeError: if tokens are not int32 or labels not int64.
        ValueError: if a part is empty, lengths differ, a token is negative, or a label has no class name.

    Example:
        >>> tokens, labels = torch.tensor([[5, 2, 0], [7, 0, 0]], dtype=torch.int32), torch.tensor([0, 1])
        >>> TextTask("tiny", ("no", "yes"), tokens, labels, tokens, labels, tokens, labels, "0" * 64)
        TextTask('tiny', 2 classes, 3 tokens, 2 train, 2 val, 2 test)
    """

    name: str
    class_names: tuple[str, ...]
    train_tokens: Tensor
    train_labels: Tensor
    val_tokens: Tensor
    val_labels: Tensor
    test_tokens: Tensor
    test_labels: Tensor
    sha256: str
    unit: ClassVar[str] = "texts"

    def __post_init__(self) -> None:
        for part in PARTS:
            tokens, labels = self.part(part)
            where = f"task {self.name!r}, {part}"
            if tokens.dtype != torch.int32 or labels.dtype != torch.int64:
                raise InputTypeError(
                    f"{where}: tokens must be int32 and labels int64, got {tokens.dtype} and "
                    f"{labels.dtype}; convert them with .to(dtype)"
                )
            if tokens.ndim != 2 or len(labels) == 0 or labels.shape != tokens.shape[:1]:
                raise UserError(
                    f"{where}: tokens must be (N, L) and labels (N,), at least one, got "
                    f"{tuple(tokens.shape)} and {tuple(labels.shape)}; give one row of tokens and one label "
                    "for each text"
                )
            if int(tokens.min()) < 0:
                raise UserError(
                    f"{where}: token ids must be at least 0, got {int(tokens.min())}; 0 is padding"
                )
            _check_labels(where, labels, classes=len(self.class_names))
            if tokens.shape[1] != self.train_tokens.shape[1]:
                raise UserError(
                    f"task {self.name!r} has {part} texts of {tokens.shape[1]} tokens and train texts of "
                    f"{self.train_tokens.shape[1]}; fill them up with zeros to one length"
                )

    def part(self, part: str) -> tuple[Tensor, Tensor]:
        """Token ids and labels of "train", "val" or "test".

        Raises:
            ValueError: for another part.
        """
        _checks.named_choice("part", part, dict.fromkeys(PARTS))
        return getattr(self, f"{part}_tokens"), getattr(self, f"{part}_labels")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self.part(part)[1])} {part}" for part in PARTS)
        length = self.train_tokens.shape[1]
        return f"TextTask({self.name!r}, {len(self.class_names)} classes, {length} tokens, {sizes})"


def check_images(where: str, images: Tensor, labels: Tensor, *, classes: int) -> None:
    """Refuse what is not uint8 images, grey or colour, each with an int64 label below `classes`.

    Raises:
        TypeError: if images are not uint8 or labels not int64.
        ValueError: if the images have another shape, lengths differ, or a label has no class.
    """
    if images.dtype != torch.uint8 or labels.dtype != torch.int64:
        raise InputTypeError(
            f"{where}: images must be uint8 and labels int64, got {images.dtype} and {labels.dtype}; "
            "convert them with .to(dtype), images to the range 0-255"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise UserError(
            f"{where}: images must have shape (N, H, W) or (N, H, W, 3), got {tuple(images.shape)}; "
            "put the colours last"
        )
    if len(labels) == 0 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{where}: {len(images)} images and labels of shape {tuple(labels.shape)}; "
            "give one label for each image, and at least one"
        )
    _check_labels(where, labels, classes=classes)


def _check_labels(where: str, labels: Tensor, *, classes: int) -> None:
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(
            f"{where}: labels run from {int(labels.min())} to {int(labels.max())} for {classes} classes; "
            "number the classes from 0 and name each"
        )


def unit_of(tasks: Iterable[object]) -> str:
    """What the examples of some tasks are called: "images", unless the tasks' `unit` says another word.

    Example:
        >>> unit_of([])
        'examples'
    """
    units = {getattr(task, "unit", "images") for task in tasks}
    return units.pop() if len(units) == 1 else "examples"
