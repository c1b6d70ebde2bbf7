"""Validation splits that do not leak: what belongs together stays on one side.

Two images belong together if they are of one group (frames of one track, crops of one photo) or equal in
every pixel. A random split would put some of them on both sides, and validation would flatter the model.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from taskvec_mini.errors import UserError

VALIDATION_SHARE = 0.1
VALIDATION_MOST = 5_000


def contents(images: Tensor) -> list[bytes]:
    """A fingerprint of each image (N, ...): equal for images that are equal in every pixel."""
    pixels = images.contiguous().numpy()
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels]


def without_test_copies(train: list[bytes], test: list[bytes]) -> Tensor:
    """The positions (M,) of the training images of which no exact copy stands in the test part."""
    seen = set(test)
    return torch.tensor([i for i, each in enumerate(train) if each not in seen], dtype=torch.int64)


def validation_split(fingerprints: list[bytes], groups: Tensor | None, *, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the images to train on and of those to validate on, each in a shuffled order.

    Args:
        fingerprints: N of them, from `contents`.
        groups: (N,) integers, equal for images of one group; None where every image stands alone.
        seed: decides which images validate, and both orders.

    Returns:
        Positions (N - V,) and (V,): V is a tenth of N, at most 5,000; a little less where no group fits in.

    Raises:
        ValueError: if every group is larger than the validation part.

    Example:
        >>> train, val = validation_split([bytes([i]) for i in range(40)], torch.arange(40) // 2, seed=0)
        >>> len(train), len(val), {i // 2 for i in train.tolist()} & {i // 2 for i in val.tolist()}
        (36, 4, set())
    """
    # Units are the images that belong together, be it through others: every image hands the smallest position
    # it knows of to its copies and to its group, until nothing changes.
    numbers: dict[bytes, int] = {}
    links = [torch.tensor([numbers.setdefault(each, len(numbers)) for each in fingerprints])]
    if groups is not None:
        links.append(_numbered(groups))
    units = torch.arange(len(fingerprints))
    before = torch.empty(0)
    while not torch.equal(units, before):
        before = units
        for link in links:
            smallest = torch.full_like(units, len(units)).scatter_reduce(0, link, units, "amin")
            units = smallest[link]
    units = _numbered(units)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.bincount(units)
    room = min(max(1, round(VALIDATION_SHARE * len(units))), VALIDATION_MOST)
    if len(units) < 2 or int(sizes.min()) > room:
        raise UserError(
            f"no validation part of at most {room} of {len(units)} images can be split off without tearing a "
            f"group apart (the smallest has {int(sizes.min())} images); give more images or smaller groups"
        )
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    for unit in torch.randperm(len(sizes), generator=generator).tolist():  # each where it still fits in
        if int(sizes[unit]) <= room:
            chosen[unit] = True
            room -= int(sizes[unit])
        if room == 0:
            break
    validates = chosen[units]
    order = torch.randperm(len(units), generator=generator)
    return order[~validates[order]], order[validates[order]]


def _numbered(values: Tensor) -> Tensor:
    """(N,) integers with the same equalities, counted from 0."""
    return torch.unique(values, return_inverse=True)[1]  # type: ignore[no-any-return]
