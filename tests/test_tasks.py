"""The digits suite, recomputed with numpy from what scikit-learn ships."""

import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from taskvec_mini.networks import MLP, flatten
from taskvec_mini.tasks import OUTPUTS, Task, choose, digit_tasks

IMAGES = load_digits().images / 16  # (1797, 8, 8), from 0 for paper to 1 for ink
LABELS = load_digits().target
VIEWS = {
    "digits": lambda image: image,
    "rotated": lambda image: np.rot90(image),
    "mirrored": lambda image: image[:, ::-1],
    "inverted": lambda image: 1 - image,
    "odd or even": lambda image: image,
    "below five": lambda image: image,
}
ANSWERS = {"odd or even": lambda digit: digit % 2, "below five": lambda digit: int(digit < 5)}
NAMES = [*VIEWS, "shuffled"]
SUITE = digit_tasks()
every_task = pytest.mark.parametrize("name", NAMES)


def pixels(part):
    """The images of one part of the plain task, (N, 8, 8)."""
    return getattr(SUITE["digits"], f"{part}_inputs").numpy().reshape(-1, 8, 8)


def rows(array):
    return sorted(map(tuple, np.asarray(array).reshape(len(array), -1).tolist()))


def test_there_are_seven_tasks_by_name():
    assert set(SUITE) == set(NAMES)
    assert len(SUITE) == 7
    assert all(task.name == name for name, task in SUITE.items())
    assert len({task.question for task in SUITE.values()}) == 7


@every_task
def test_sizes_and_types(name):
    task = SUITE[name]
    assert task.train_inputs.shape == (1348, 64)
    assert task.test_inputs.shape == (449, 64)
    assert task.train_labels.shape == (1348,)
    assert task.test_labels.shape == (449,)
    assert task.train_inputs.dtype == task.test_inputs.dtype == torch.float64
    assert task.train_labels.dtype == task.test_labels.dtype == torch.int64
    assert task.train_inputs.min() >= 0
    assert task.train_inputs.max() <= 1


def test_every_image_is_used_once_for_training_or_testing():
    assert rows(np.concatenate([pixels("train"), pixels("test")])) == rows(IMAGES)
    assert not set(rows(pixels("train"))) & set(rows(pixels("test")))


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", VIEWS)
def test_every_task_sees_the_same_split_in_its_own_view(name, part):
    expected = np.stack([VIEWS[name](image) for image in pixels(part)])
    found = getattr(SUITE[name], f"{part}_inputs").numpy().reshape(-1, 8, 8)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("part", ["train", "test"])
@every_task
def test_labels_are_those_of_the_very_image(name, part):
    digit_of = {tuple(image.reshape(-1)): digit for image, digit in zip(IMAGES, LABELS, strict=True)}
    assert len(digit_of) == 1797  # no two images are alike, so that the picture gives its digit
    answer = ANSWERS.get(name, lambda digit: digit)
    expected = [answer(digit_of[tuple(image.reshape(-1))]) for image in pixels(part)]
    assert getattr(SUITE[name], f"{part}_labels").tolist() == expected


def test_shuffling_is_one_and_the_same_permutation_for_all_images():
    plain = np.concatenate([SUITE["digits"].train_inputs, SUITE["digits"].test_inputs])
    shuffled = np.concatenate([SUITE["shuffled"].train_inputs, SUITE["shuffled"].test_inputs])
    assert rows(plain.T) == rows(shuffled.T)  # a column is a pixel: the same columns in another order
    assert sum(np.array_equal(a, b) for a, b in zip(plain.T, shuffled.T, strict=True)) < 16


@pytest.mark.parametrize(("name", "times"), [("rotated", 4), ("mirrored", 2), ("inverted", 2)])
def test_a_view_repeated_comes_back(name, times):
    image = pixels("train")[0]
    seen = [image]
    for _ in range(times):
        seen.append(VIEWS[name](seen[-1]))
    np.testing.assert_allclose(seen[-1], image, atol=1e-15)
    assert not np.array_equal(seen[1], image)


@every_task
def test_class_names_say_what_the_labels_mean(name):
    names = SUITE[name].class_names
    digits = SUITE["digits"].test_labels.tolist()
    for digit, label in zip(digits, SUITE[name].test_labels.tolist(), strict=True):
        said = names[label]
        if name == "odd or even":
            assert said == ("odd" if digit in (1, 3, 5, 7, 9) else "even")
        elif name == "below five":
            assert said == ("below five" if digit in (0, 1, 2, 3, 4) else "five or more")
        else:
            assert said == str(digit)


def test_heads_fill_the_outputs_without_overlap():
    heads = {(task.outputs.start, task.outputs.stop) for task in SUITE.values()}
    covered = sorted(number for start, stop in heads for number in range(start, stop))
    assert covered == list(range(OUTPUTS)) == list(range(14))
    assert all(t.outputs.stop - t.outputs.start == len(t.class_names) for t in SUITE.values())


def test_the_seed_decides_split_and_permutation():
    same, other = digit_tasks(seed=0), digit_tasks(seed=1)
    for name, task in SUITE.items():
        assert torch.equal(task.train_inputs, same[name].train_inputs)
        assert not torch.equal(task.train_inputs, other[name].train_inputs)
    assert set(rows(other["digits"].test_inputs)) != set(rows(SUITE["digits"].test_inputs))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    digit_tasks(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("share", "count"), [(0.1, 180), (0.5, 898), (0.9, 1617)])
def test_the_share_of_test_images_is_chosen(share, count):
    task = digit_tasks(test_share=share)["digits"]
    assert len(task.test_labels) == count
    assert len(task.train_labels) == 1797 - count


def test_the_dtype_is_chosen_and_keeps_the_values():
    single = digit_tasks(dtype=torch.float32)
    for name, task in SUITE.items():
        assert single[name].train_inputs.dtype == torch.float32
        assert torch.equal(single[name].train_inputs.double(), task.train_inputs)  # sixteenths are exact


def test_train_loss_is_that_of_the_tasks_own_head():
    model = MLP((64, OUTPUTS), generator=torch.Generator().manual_seed(0))
    for task in SUITE.values():
        logits = model(task.train_inputs)[:, task.outputs]
        expected = torch.nn.functional.cross_entropy(logits, task.train_labels)
        torch.testing.assert_close(task.train_loss(model)(flatten(model)), expected)
        truth = torch.nn.functional.one_hot(task.train_labels, len(task.class_names))
        half = (logits - truth).square().sum(1).mean() / 2
        torch.testing.assert_close(task.train_loss(model, loss="squared_error")(flatten(model)), half)


def test_repr_tells_the_size():
    assert repr(SUITE["rotated"]) == "Task('rotated', 10 classes, 1348 train, 449 test)"


def test_choose_keeps_the_order_asked():
    assert choose(SUITE, "rotated", "digits") == [SUITE["rotated"], SUITE["digits"]]
    assert choose(SUITE) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rotatd", "did you mean 'rotated'?"),
        ("Mirrored", "did you mean 'mirrored' or "),
        ("odd_or_even", "did you mean 'odd or even'?"),
        ("mnist", "choose one of digits, rotated, mirrored, inverted, shuffled, odd or even, below five"),
    ],
)
def test_an_unknown_task_suggests_the_near_ones(name, hint):
    with pytest.raises(ValueError, match=re.escape(f"unknown task {name!r}: {hint}")):
        choose(SUITE, "digits", name)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_must_lie_between_nothing_and_all(share):
    with pytest.raises(ValueError, match=r"test_share must lie between 0 and 1, got .*; 0.25 is usual"):
        digit_tasks(test_share=share)


def test_a_share_so_small_that_no_image_is_left_is_refused():
    with pytest.raises(ValueError, match="has 0 test inputs"):
        digit_tasks(test_share=1e-6)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), (None, TypeError)])
def test_a_seed_is_a_whole_number(seed, error):
    with pytest.raises(error, match="seed must be"):
        digit_tasks(seed=seed)


def small_task(**changes):
    parts = {
        "name": "tiny",
        "question": "?",
        "train_inputs": torch.zeros(3, 2),
        "train_labels": torch.tensor([0, 1, 0]),
        "test_inputs": torch.zeros(2, 2),
        "test_labels": torch.tensor([1, 0]),
        "class_names": ("no", "yes"),
    }
    return Task(**{**parts, **changes})


def test_a_task_of_your_own_uses_all_outputs_by_default():
    assert small_task().outputs == slice(None)


@pytest.mark.parametrize("part", ["train", "test"])
def test_each_input_needs_a_label(part):
    with pytest.raises(ValueError, match=rf"task 'tiny' has \d {part} inputs and 1 {part} labels; give one"):
        small_task(**{f"{part}_labels": torch.tensor([0])})
    empty = {f"{part}_inputs": torch.zeros(0, 2), f"{part}_labels": torch.zeros(0).long()}
    with pytest.raises(ValueError, match=f"task 'tiny' has 0 {part} inputs and 0 {part} labels"):
        small_task(**empty)


@pytest.mark.parametrize(("part", "count"), [("train", 3), ("test", 2)])
@pytest.mark.parametrize("label", [-1, 2])
def test_each_label_needs_a_class_name(part, count, label):
    labels = torch.zeros(count).long()
    labels[-1] = label
    message = rf"task 'tiny' has {part} labels from {min(label, 0)} to {max(label, 0)} for 2 classes; number"
    with pytest.raises(ValueError, match=message):
        small_task(**{f"{part}_labels": labels})
