"""Preparation and embeddings: against Pillow, a lookup table and open_clip's own transform."""

import dataclasses
import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from small_images import images_of
from taskvec_mini.benchmarks.encoders import Backbone, clip, embed, load_backbone
from taskvec_mini.benchmarks.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from taskvec_mini.benchmarks.encoders.pocket import Pocket


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=source(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("random-pocket")


def resizer(size):
    """A backbone whose preparation only resizes: channels from 0 to 1."""
    return Backbone("none", nn.Linear(1, 1), image_size=size, mean=(0.0,) * 3, std=(1.0,) * 3, features=1)


# --- preparation -----------------------------------------------------------------------------------------


def test_images_of_the_right_size_are_looked_up_value_by_value(backbone):
    images = noise(5, 32, 32, 3)
    values = torch.arange(256, dtype=torch.float32) / 255
    prepared = backbone.prepare(images)
    for channel in range(3):
        table = (values - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert torch.equal(prepared[:, channel], table[images[..., channel].long()])


@pytest.mark.parametrize(("old", "new"), [(28, 32), (32, 64), (64, 32), (100, 32), (33, 32)])
def test_other_sizes_are_resized_as_pillow_does(old, new):
    image = noise(old, old)
    expected = Image.fromarray(image.numpy().astype(np.float32)).resize((new, new), Image.Resampling.BILINEAR)
    found = resizer(new).prepare(image[None])[0] * 255
    torch.testing.assert_close(found, torch.tensor(np.array(expected)).expand(3, -1, -1), rtol=0, atol=2e-3)


def test_fine_stripes_become_grey_when_they_shrink_and_not_stripes_of_another_width():
    stripes = (torch.arange(96) % 2 * 255).to(torch.uint8).expand(1, 96, 96)
    inside = resizer(30).prepare(stripes)[..., 2:-2]
    assert float((inside - 0.5).abs().max()) < 0.06


def test_an_image_that_is_not_square_is_stretched():
    image = torch.zeros(1, 10, 40, dtype=torch.uint8)
    image[:, :, 20:] = 255
    prepared = resizer(20).prepare(image)
    assert prepared.shape == (1, 3, 20, 20)
    assert float(prepared[..., :9].max()) == 0
    assert float(prepared[..., 11:].min()) == 1


@pytest.mark.parametrize("size", [32, 20])
def test_grey_is_colour_with_three_equal_channels(backbone, size):
    grey = noise(4, size, size)
    assert torch.equal(backbone.prepare(grey), backbone.prepare(grey[..., None].expand(-1, -1, -1, 3)))


def test_an_image_is_prepared_alike_alone_and_in_a_batch(backbone):
    images = noise(4, 40, 40, 3)
    assert torch.equal(backbone.prepare(images)[2:3], backbone.prepare(images[2:3]))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_order_in_memory_is_the_one_the_model_wants(order):
    wants = Backbone(
        "none",
        nn.Linear(1, 1),
        image_size=32,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        features=1,
        memory_format=order,
    )
    for images in (noise(2, 32, 32, 3), noise(2, 32, 32), noise(2, 20, 20, 3)):
        prepared = wants.prepare(images)
        assert prepared.is_contiguous(memory_format=order)
        assert prepared.dtype == torch.float32


def test_preparation_happens_where_the_model_is(backbone):
    elsewhere = Backbone(
        "none", Pocket().to("meta"), image_size=32, mean=backbone.mean, std=backbone.std, features=256
    )
    assert elsewhere.device.type == "meta"
    assert elsewhere.prepare(noise(2, 32, 32)).device.type == "meta"


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.zeros(2, 32, 32), TypeError, "uint8.*float32"),
        ([[1]], TypeError, "uint8.*list"),
        (noise(32, 32), ValueError, r"\(32, 32\)"),
        (noise(2, 3, 32, 32), ValueError, r"\(N, H, W, 3\).*\(2, 3, 32, 32\)"),
        (noise(0, 32, 32), ValueError, "at least one"),
        (noise(2, 0, 32), ValueError, r"\(2, 0, 32\)"),
    ],
)
def test_other_images_are_refused(backbone, images, error, words):
    with pytest.raises(error, match=words):
        backbone.prepare(images)
    with pytest.raises(error, match=words):
        embed(backbone, images)


# --- CLIP's way of resizing ---------------------------------------------------------------------------------


def picture(height, width):
    """Waves, a sharp-edged block that bicubic resizing overshoots at, and some noise; (H, W, 3)."""
    random = np.random.default_rng(height + width)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [127 + 120 * np.sin(9 * x + 5 * y + i) * np.cos(21 * x * y + i) for i in range(3)]
    image = np.stack(waves, -1) + random.normal(0, 10, (height, width, 3))
    image[height // 4 : height // 2, width // 4 : width // 2] = (250, 5, 90)
    return np.clip(image, 0, 255).astype(np.uint8)


def levels(size, image):
    """How far our preparation is from open_clip's, in levels from 0 to 255."""
    own = Backbone(
        "clip",
        nn.Linear(1, 1),
        image_size=size,
        mean=clip.MEAN,
        std=clip.STD,
        features=1,
        resize="crop",
        interpolation="bicubic",
    )
    found = own.prepare(torch.from_numpy(image)[None])[0]
    expected = open_clip.image_transform(size, is_train=False)(Image.fromarray(image))
    assert found.shape == expected.shape == (3, size, size)
    return (found - expected).abs() * torch.tensor(clip.STD)[:, None, None] * 255


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (97, 33), (180, 224), (225, 224), (224, 301), (375, 500), (401, 299)]
)
def test_images_are_prepared_as_open_clip_prepares_them(height, width):
    difference = levels(224, picture(height, width))
    assert (
        float(difference.max()) < 1.01
    )  # a level, where a value lies between two and rounds to the other one
    assert float((difference < 0.01).float().mean()) > 0.985


def test_an_image_of_the_right_size_is_prepared_exactly_as_open_clip_does():
    assert float(levels(224, picture(224, 224)).max()) < 1e-3
    for shape in ((32, 50), (35, 32), (32, 33)):  # only cut; margins that are no whole number too
        assert float(levels(32, picture(*shape)).max()) < 1e-3, shape


def test_all_that_decides_what_an_image_becomes_is_part_of_the_preparation():
    usual = resizer(32)
    others = [
        dataclasses.replace(usual, **change)
        for change in (
            {"image_size": 33},
            {"mean": (0.1, 0.0, 0.0)},
            {"std": (1.0, 1.0, 2.0)},
            {"resize": "crop"},
            {"interpolation": "bicubic"},
        )
    ]
    assert len({json.dumps(each.preparation) for each in (usual, *others)}) == 6


@pytest.mark.parametrize("change", [{"resize": "croop"}, {"interpolation": "cubic"}])
def test_other_ways_of_resizing_are_refused(change):
    with pytest.raises(ValueError, match=f"unknown {next(iter(change))} '{next(iter(change.values()))}'"):
        Backbone(
            "none", nn.Linear(1, 1), image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3, features=1, **change
        )


# --- embeddings ------------------------------------------------------------------------------------------


def test_embeddings_are_the_models_answers_to_prepared_images_in_order(backbone):
    images = images_of(torch.arange(7) % 4, seed=0)
    expected = backbone.model(backbone.prepare(images)).detach()
    for batch_size in (1, 3, 7, 100):
        found = embed(backbone, images, batch_size=batch_size)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (7, backbone.features)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        embed(backbone, images, batch_size=0)
