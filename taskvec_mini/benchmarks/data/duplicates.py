"""Near duplicates: images of two parts of a task that show the same in nearly the same pixels.

Exact copies are found by their bytes (see `splits`). Here are the others: a photo that was stored twice, an
image that was compressed anew, two frames of one scene. A model that saw one of them has as good as seen the
other, and an accuracy on both flatters it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data.tasks import ImageTask
from taskvec_mini.errors import UserError

CORRELATION = 0.995  # of two grey thumbnails, above which
DIFFERENCE = (
    8 / 255
)  # and of their mean absolute difference, of white, below which images are near duplicates
_SIDE = 16  # pixels of a thumbnail
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue in the luma of ITU-R BT.601
_BLOCK = 4096  # images a side that are compared at a time: 64 MiB of correlations
_ROUNDING = 1e-4  # far above what float32 rounds of a correlation


def near_pairs(
    images: Tensor, others: Tensor, *, correlation: float = CORRELATION, difference: float = DIFFERENCE
) -> Tensor:
    """Which images are near duplicates of which others.

    Both are made grey and 16 x 16 (bilinear, antialiased). Two are near duplicates if the correlation of
    these thumbnails is above `correlation` and their mean absolute difference below `difference`. An image
    without contrast has no correlation and no near duplicate.

    Every image is compared with every other, so nothing is missed; 10,000 with 50,000 take some seconds on a
    core, and 64 MiB of memory at a time.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) colour, uint8.
        others: (M, ...), of any size.
        correlation: between -1 and 1.
        difference: as a share of white, between 0 and 1.

    Returns:
        (P, 2) int64: a position in `images` and one in `others`, in rising order.

    Raises:
        UserError: if images are not uint8 or not of one of these shapes, or a number is not finite.

    Example:
        >>> images = torch.randint(0, 250, (20, 32, 32), dtype=torch.uint8)
        >>> near_pairs(images, images[3:5] + 5).tolist()
        [[3, 0], [4, 1]]
    """
    correlation = _checks.finite_number("correlation", correlation)
    difference = _checks.finite_number("difference", difference)
    first, second = _thumbnails("images", images), _thumbnails("others", others)
    patterns, other_patterns = _pattern(first), _pattern(second)
    found = [torch.empty(0, 2, dtype=torch.int64)]
    for start in range(0, len(first), _BLOCK):
        rows = patterns[start : start + _BLOCK].float()
        for other_start in range(0, len(second), _BLOCK):
            columns = other_patterns[other_start : other_start + _BLOCK].float()
            # quickly in float32, a little too many; then those few in float64
            near = (rows @ columns.T > correlation - _ROUNDING).nonzero()
            i, j = (near + torch.tensor([start, other_start])).T
            correlated = (patterns[i] * other_patterns[j]).sum(1) > correlation
            close = (first[i] - second[j]).abs().mean(1) < difference
            found.append(torch.stack([i, j], dim=1)[correlated & close])
    pairs = torch.cat(found)
    return pairs[torch.argsort(pairs[:, 0] * len(second) + pairs[:, 1])]


def near_duplicates(task: ImageTask) -> dict[str, Tensor]:
    """The images of a task that are near duplicates of an image that comes before them.

    Args:
        task: with all of its training images, or there is nothing to compare with.

    Returns:
        Under "val" the positions of the validation images that have a near duplicate in training, under
        "test" those of the test images that have one in training or validation; rising, int64.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> task = load_tasks(["digits"], suite="digits", limit=9)["digits"]
        >>> {part: len(found) for part, found in near_duplicates(task).items()}
        {'val': 0, 'test': 0}
    """
    learnt = torch.cat([task.train_images, task.val_images])
    return {
        "val": torch.unique_consecutive(near_pairs(task.val_images, task.train_images)[:, 0]),
        "test": torch.unique_consecutive(near_pairs(task.test_images, learnt)[:, 0]),
    }


def without_near_duplicates(task: ImageTask) -> ImageTask:
    """The task without its `near_duplicates`; how many were left out is in its `left_out`.

    Raises:
        UserError: if nothing is left to validate or to test on.
    """
    parts: dict[str, Any] = {}
    left_out: dict[str, int] = {}
    for part, positions in near_duplicates(task).items():
        images, labels = task.part(part)
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[positions] = False
        if not kept.any():
            raise UserError(
                f"task {task.name!r}: every {part} image is a near duplicate of an image to learn from; give "
                "other images to judge by"
            )
        parts[f"{part}_images"] = images[kept]
        parts[f"{part}_labels"] = labels[kept]
        left_out[part] = task.left_out.get(part, 0) + len(positions)
    return replace(task, left_out=left_out, **parts)


def _thumbnails(name: str, images: Tensor) -> Tensor:
    """Grey, 16 x 16, from 0 to 1: (N, 256) float64."""
    if (
        images.dtype != torch.uint8
        or images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] != 3)
    ):
        raise UserError(
            f"{name} must be uint8 of shape (N, H, W) or (N, H, W, 3), got {images.dtype} of shape "
            f"{tuple(images.shape)}; put the colours last and the values into 0-255"
        )
    pieces = [torch.empty(0, _SIDE**2, dtype=torch.float64)]
    for piece in torch.split(images, 256) if len(images) else ():  # float64 takes eight times the memory
        values = piece.double() / 255
        grey = values if values.ndim == 3 else values @ torch.tensor(_GREY, dtype=torch.float64)
        small = interpolate(grey[:, None], size=(_SIDE, _SIDE), mode="bilinear", antialias=True)
        pieces.append(small.flatten(1))
    return torch.cat(pieces)


def _pattern(thumbnails: Tensor) -> Tensor:
    """What of each is left without its brightness and contrast; 0 where that is only rounding."""
    centred = thumbnails - thumbnails.mean(1, keepdim=True)
    flat = centred.abs().amax(1, keepdim=True) < 1e-9
    return normalize(centred.masked_fill(flat, 0.0), dim=1)
