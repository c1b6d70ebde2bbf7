"""Examples: of as many classes as there is room for; the book's file, its licences and what it withholds."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from taskvec_mini.benchmarks.data import Examples, ImageTask, example_images, obtain, read_examples, suites
from taskvec_mini.benchmarks.data.examples import write_examples
from taskvec_mini.errors import MissingFileError, UserError

PATH = Path(__file__).resolve().parents[3] / "book" / "recorded" / "examples.npz"
FREE = re.compile(r"CC BY|MIT|Apache")


def some_task(labels, classes):
    labels = torch.tensor(labels)
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None].expand(-1, 2, 2).contiguous()
    names = tuple(f"class {i}" for i in range(classes))
    return ImageTask("mine", names, images, labels, images[:1], labels[:1], images[:1], labels[:1], "0" * 64)


@pytest.mark.parametrize(
    ("labels", "count", "positions"),
    [
        ([2, 0, 1, 0, 2, 1], 3, [1, 2, 0]),  # the first of each class, in the order of the classes
        ([2, 0, 1, 0, 2, 1], 5, [1, 3, 2, 5, 0]),  # then the second of the first ones
        ([0, 0, 0, 1], 9, [0, 1, 2, 3]),  # no more than there are
        ([5, 4, 3, 2, 1, 0], 2, [5, 2]),  # spread over the classes
        ([1, 1, 3], 2, [0, 2]),  # classes without images have none
    ],
)
def test_examples_are_of_as_many_classes_as_possible(labels, count, positions):
    images, words = example_images(some_task(labels, 6), count=count)
    assert images[:, 0, 0].tolist() == positions
    assert words == [f"class {labels[i]}" for i in positions]


def test_no_examples_are_refused():
    with pytest.raises(UserError, match="count must be at least 1"):
        example_images(some_task([0, 1], 2), count=0)


def test_what_was_written_is_read(tmp_path):
    images = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    examples = {
        "pictures": Examples(("a", "b"), "here", "ours", images=images),
        "lines": Examples(("c",), "there", "yours", texts=("so “it” is",)),
    }
    write_examples(tmp_path / "e.npz", examples, withheld={"others": "none stated"})
    found, withheld = read_examples(tmp_path / "e.npz")
    assert withheld == {"others": "none stated"}
    assert list(found) == ["pictures", "lines"]
    assert torch.equal(found["pictures"].images, images)
    assert found["lines"].images is None
    for name, each in examples.items():
        for key in ("words", "source", "licence", "texts"):
            assert getattr(found[name], key) == getattr(each, key)
    whole = (tmp_path / "e.npz").read_bytes()
    (tmp_path / "e.npz").write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"e.npz is damaged .*; get it again"):
        read_examples(tmp_path / "e.npz")
    with pytest.raises(MissingFileError, match="there is no file"):
        read_examples(tmp_path / "f.npz")


def test_the_books_file_is_small_free_and_complete():
    found, withheld = read_examples(PATH)
    assert PATH.stat().st_size <= 150_000
    assert found.keys() | withheld.keys() == obtain.offers().keys()
    assert not found.keys() & withheld.keys()
    for name, each in found.items():
        offer = obtain.offers()[name]
        assert FREE.search(each.licence), name
        assert FREE.search(offer.licence), name  # what the source itself is known to say
        assert each.source == f"github.com/{offer.repository} at {offer.commit}"
        assert len(each.words) == 8 == (len(each.texts) if each.images is None else len(each.images))
    assert not any(FREE.search(reason) for reason in withheld.values())
    assert withheld.keys() >= set(suites.bundle_files()) - {"mnist", "fashion_mnist", "sign_digits"}


def test_the_books_pictures_are_those_of_the_files():
    folder = Path(__file__).parents[4] / "shared" / "data"
    if not (folder / "mnist.npz").is_file():
        pytest.skip("no data")
    found = read_examples(PATH)[0]
    for name in ("mnist", "fashion_mnist", "sign_digits"):
        with np.load(folder / suites.bundle_files()[name].file) as stored:
            pairs = zip(stored["train_images"], stored["train_labels"], strict=True)
            rows = {image.tobytes(): label for image, label in pairs}
            names = stored["class_names"]
        for image, word in zip(found[name].images.numpy(), found[name].words, strict=True):
            assert names[rows[image.tobytes()]] == word
