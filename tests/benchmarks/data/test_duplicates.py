"""Near duplicates: held against Pillow and numpy, pair by pair; left out with their labels, and said."""

import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from taskvec_mini.benchmarks.data import (
    DATA_VARIABLE,
    ImageTask,
    duplicates,
    load_tasks,
    near_duplicates,
    near_pairs,
    without_near_duplicates,
)
from taskvec_mini.errors import UserError

NEARBY = Path(__file__).parents[4] / "shared" / "data"
FOLDER = Path(os.environ.get(DATA_VARIABLE) or NEARBY)
needs_large = pytest.mark.skipif(
    not (FOLDER / "large").is_dir(), reason=f"no large images; {DATA_VARIABLE} tells where they are"
)


def smooth(count, side, *, colours=True, seed=0):
    """Random images without fine grain, so that a little noise leaves them alike: uint8 tensor."""
    draw = np.random.default_rng(seed)
    shape = (count, 5, 5, 3) if colours else (count, 5, 5)
    coarse = draw.integers(60, 190, shape, dtype=np.uint8)
    return torch.from_numpy(
        np.stack([np.asarray(Image.fromarray(each).resize((side, side), Image.BICUBIC)) for each in coarse])
    )


def slow_values(image, other):
    """Correlation and mean absolute difference of two images, by Pillow and numpy."""
    thumbnails = []
    for each in (image, other):
        grey = each.numpy().astype(np.float32)
        if grey.ndim == 3:
            grey = grey @ np.array([0.299, 0.587, 0.114], np.float32)
        small = Image.fromarray(grey).resize((16, 16), Image.BILINEAR)
        thumbnails.append(np.asarray(small, dtype=np.float64) / 255)
    with np.errstate(invalid="ignore"):
        correlation = np.corrcoef(thumbnails[0].ravel(), thumbnails[1].ravel())[0, 1]
    return correlation, np.abs(thumbnails[0] - thumbnails[1]).mean()


@pytest.mark.parametrize("colours", [True, False])
def test_pairs_are_those_of_a_slow_comparison(colours):
    draw = torch.Generator().manual_seed(0)
    originals = smooth(12, 40, colours=colours)
    changed = []
    for strength in range(0, 60, 3):  # noise, brightness and contrast, from nothing to much
        noise = torch.randn(originals.shape, generator=draw) * strength
        changed += [originals + noise, originals + strength, (originals - 128.0) * (1 - strength / 90) + 128]
    others = torch.cat(changed).clamp(0, 255).to(torch.uint8)
    found = {tuple(pair) for pair in near_pairs(originals, others).tolist()}
    kinds = set()
    for i, image in enumerate(originals):
        for j, other in enumerate(others):
            correlation, difference = slow_values(image, other)
            if abs(correlation - 0.995) > 1e-4 and abs(difference - 8 / 255) > 1e-4:
                assert ((i, j) in found) == (correlation > 0.995 and difference < 8 / 255), (i, j)
                kinds.add((correlation > 0.995, difference < 8 / 255))
    assert len(kinds) == 4  # each of the two conditions decides somewhere
    assert 0 < len(found) < len(originals) * len(others)


def test_the_thresholds_are_sharp():
    image = smooth(1, 32)
    other = (image + torch.randn(image.shape, generator=torch.Generator().manual_seed(1)) * 9).clamp(0, 255)
    other = other.to(torch.uint8)
    correlation, difference = slow_values(image[0], other[0])
    for shift, found in ((-1e-5, 1), (1e-5, 0)):
        assert len(near_pairs(image, other, correlation=correlation + shift)) == found
        assert len(near_pairs(image, other, correlation=0.5, difference=difference - shift)) == found


def test_images_of_two_sizes_are_compared():
    small, large = smooth(6, 32), smooth(6, 96)
    assert near_pairs(small, large).tolist() == [[i, i] for i in range(6)]


def test_blocks_miss_nothing(monkeypatch):
    images, others = smooth(23, 20), smooth(23, 20).flip(0)
    whole = near_pairs(images, others)
    assert whole.tolist() == [[i, 22 - i] for i in range(23)]
    monkeypatch.setattr(duplicates, "_BLOCK", 5)
    assert torch.equal(near_pairs(images, others), whole)


def test_an_image_without_contrast_has_no_near_duplicate():
    flat = torch.full((2, 32, 32, 3), 77, dtype=torch.uint8)
    assert near_pairs(flat, flat).tolist() == []
    assert near_pairs(smooth(2, 32)[:0], flat).tolist() == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 8, 8), "images must be uint8 of shape (N, H, W) or (N, H, W, 3), got torch.float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "of shape (2, 3, 8, 8); put the colours last"),
        (torch.zeros(8, 8, dtype=torch.uint8), "of shape (8, 8)"),
    ],
)
def test_what_is_no_images_is_refused(images, message):
    with pytest.raises(UserError, match=re.escape(message)):
        near_pairs(images, smooth(1, 8))


def some_task():
    """Ten to learn from, five to validate on (2 and 4 leaked), six to test on (1, 3 and 5 leaked)."""
    images = smooth(21, 24)
    train, val, test = images[:10], images[10:15].clone(), images[15:].clone()
    val[2], val[4] = train[7] + 1, train[0] + 2
    test[1], test[3], test[5] = train[7] + 1, val[1] + 2, train[2]
    labels = [torch.arange(count) for count in (10, 5, 6)]
    names = tuple(map(str, range(10)))
    return ImageTask("leaky", names, train, labels[0], val, labels[1], test, labels[2], "0" * 64)


def test_near_duplicates_are_found_in_both_parts():
    found = near_duplicates(some_task())
    assert {part: positions.tolist() for part, positions in found.items()} == {
        "val": [2, 4],
        "test": [1, 3, 5],
    }


def test_they_are_left_out_with_their_labels_and_said():
    task = some_task()
    clean = without_near_duplicates(task)
    assert clean.val_labels.tolist() == [0, 1, 3]
    assert clean.test_labels.tolist() == [0, 2, 4]
    for part in ("val", "test"):
        images, labels = clean.part(part)
        assert torch.equal(images, task.part(part)[0][labels])
    assert torch.equal(clean.train_images, task.train_images)
    assert clean.left_out == {"val": 2, "test": 3}
    assert task.left_out == {}
    assert repr(clean).endswith("10 train, 3 val, 3 test; 2 val and 3 test left out as near duplicates)")
    again = without_near_duplicates(clean)
    assert again.left_out == {"val": 2, "test": 3}  # what was left out before is not forgotten


def test_a_part_of_near_duplicates_alone_is_refused():
    task = some_task()
    leaked = ImageTask(
        "leaky", task.class_names, *task.part("train"), *task.part("val"), *task.part("train"), "0" * 64
    )
    with pytest.raises(UserError, match=r"task 'leaky': every test image is a near duplicate"):
        without_near_duplicates(leaked)


@cache
def large_task(name):
    return load_tasks([name], suite="large", folder=FOLDER)[name]


@needs_large
@pytest.mark.parametrize(
    ("name", "pixels", "test", "left_out"),
    [("dtd10", (96, 96, 3), 1_600, 16), ("scenes15", (96, 96), 1_200, 7)],
)
def test_larger_images_come_without_them_and_row_for_row(name, pixels, test, left_out):
    large = large_task(name)
    small = load_tasks([name], suite="bundle", folder=FOLDER)[name]
    assert large.train_images.shape[1:] == pixels
    assert len(large.test_labels) == test - left_out
    assert large.left_out["test"] == left_out
    assert not any(len(found) for found in near_duplicates(large).values())
    # row for row the images of the bundle: the one there that each is most like, made as small by Pillow
    tiny = torch.from_numpy(
        np.stack([np.asarray(Image.fromarray(each.numpy()).resize((32, 32))) for each in large.test_images])
    )
    patterns = [each.flatten(1).double() for each in (tiny, small.test_images)]
    patterns = [each - each.mean(1, keepdim=True) for each in patterns]
    patterns = [each / each.norm(dim=1, keepdim=True).clamp(min=1) for each in patterns]
    partners = (patterns[0] @ patterns[1].T).argmax(1)
    assert torch.equal(small.test_labels[partners], large.test_labels)
    assert (partners.diff() > 0).double().mean() > 0.98  # but for a few that are copies of one another


@needs_large
def test_a_limit_changes_nothing_of_what_is_left_out():
    whole = large_task("scenes15")
    short = load_tasks(["scenes15"], suite="large", folder=FOLDER, limit=50)["scenes15"]
    assert short.left_out == whole.left_out
    assert torch.equal(short.train_images, whole.train_images[:50])
    assert torch.equal(short.test_labels, whole.test_labels)
