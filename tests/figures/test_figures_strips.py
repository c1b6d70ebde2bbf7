"""Strips show the pictures they were given, each over its word, in rows of any length."""

import numpy as np
import pytest
import torch

from taskvec_mini import figures
from taskvec_mini.errors import UserError


def some_images(count, *shape):
    return torch.randint(
        0, 256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


STRIPS = {
    "grey ones": (some_images(3, 8, 8), ["zero", "one", "two"]),
    "coloured ones": (some_images(4, 12, 12, 3), ["a", "b", "c", "d"]),
}
DRAWINGS = {"strips": lambda: figures.draw_strips(STRIPS)}
WORDS = {"strips": {"grey ones", "coloured ones", "zero", "one", "two", "a", "b", "c", "d"}}


def test_each_image_stands_over_its_word_and_each_strip_after_its_name():
    grid = np.array(figures.draw_strips(STRIPS).axes).reshape(2, 4)
    for row, (name, (images, words)) in zip(grid, STRIPS.items(), strict=True):
        assert row[0].get_ylabel() == name
        for axes, image, word in zip(row, images, words, strict=False):
            assert np.array_equal(axes.get_images()[0].get_array(), image.numpy())
            assert axes.get_images()[0].get_clim() == (0, 255)  # a dark image is dark
            assert axes.get_xlabel() == word
    assert not grid[0, 3].get_visible()
    assert grid[1, 3].get_visible()


def test_on_a_phone_longer_words_leave_room_for_fewer_pictures_in_a_row():
    words = ["class: a long one\nstart: b", "class: c\nstart: d", "e"]
    strips = {"first": (some_images(3, 8, 8), words), "second": (some_images(2, 8, 8), ["f", "g"])}
    narrow = figures.draw_strips(strips).narrow()
    grid = np.array(narrow.axes).reshape(3, 2)
    assert [axes.get_xlabel() for axes in grid.flat] == [*words, "", "f", "g"]
    assert [axes.texts[0].get_text() for axes in (grid[0, 0], grid[2, 0])] == ["first", "second"]
    assert not grid[1, 1].get_visible()


@pytest.mark.parametrize(
    ("strips", "message"),
    [
        ({}, "strips is empty"),
        ({"x": (some_images(2, 4, 4), ["a"])}, "'x' has 2 images and 1 words"),
        ({"x": (some_images(0, 4, 4), [])}, "'x' has 0 images"),
    ],
)
def test_what_does_not_fit_is_refused(strips, message):
    with pytest.raises(UserError, match=message):
        figures.draw_strips(strips)
