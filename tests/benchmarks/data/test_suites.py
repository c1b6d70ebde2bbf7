"""Image tasks: splits without a leak, checked with numpy, and errors that name file, cause and remedy."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_texts import Words
from taskvec_mini.benchmarks.data import (
    DATA_VARIABLE,
    SUITES,
    ImageTask,
    image_files,
    load_tasks,
    splits,
    suites,
)
from taskvec_mini.errors import UserError
from taskvec_mini.tasks import digit_tasks

PARTS = ("train", "val", "test")
NEARBY = Path(__file__).parents[4] / "shared" / "data"
BUNDLE_FOLDER = Path(os.environ.get(DATA_VARIABLE) or NEARBY)
needs_bundle = pytest.mark.skipif(
    not (BUNDLE_FOLDER / "mnist.npz").exists(),
    reason=f"no bundle; {DATA_VARIABLE} tells where it is",
)
SIZES = {  # images to learn and validate with, to test with, and classes, as published with the files
    "mnist": (10_000, 2_000, 10),
    "streetchars": (5_028, 1_254, 36),
    "gtsrb": (7_832, 2_112, 43),
    "rsscn7": (2_100, 700, 7),
    "dtd10": (3_200, 1_600, 10),
    "cars": (6_509, 1_631, 8),
    "scenes15": (3_267, 1_200, 15),
    "cifar10": (5_000, 2_000, 10),
    "fashion_mnist": (10_000, 2_000, 10),
    "sign_digits": (1_562, 500, 10),
}


# --- bundles made here -----------------------------------------------------------------------------------


def some_arrays(train=100, test=30, classes=5, seed=0, **more):
    """Random images 4 x 4, all different, with random labels; more arrays, or other ones, by name."""
    draw = np.random.default_rng(seed)
    arrays = {
        "train_images": draw.integers(0, 256, (train, 4, 4), dtype=np.uint8),
        "train_labels": draw.integers(0, classes, train),
        "test_images": draw.integers(0, 256, (test, 4, 4), dtype=np.uint8),
        "test_labels": draw.integers(0, classes, test),
        "class_names": np.array([f"class {i}" for i in range(classes)]),
    }
    return arrays | more


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A function that writes arrays to a file of the bundle, makes its checksum known and gives its path."""

    def write(name="mnist", **arrays):
        path = tmp_path / suites.bundle_files()[name].file
        np.savez(path, **arrays)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(suites.bundle_files(), name, suites.BundleFile(path.name, checksum))
        return path

    return write


def load_one(folder, name="mnist", **options):
    return load_tasks([name], folder=folder, **options)[name]


def pixels(images):
    """Each image as the tuple of its bytes: equal if and only if the images are."""
    return [image.tobytes() for image in np.ascontiguousarray(images)]


def examples(task, part):
    images, labels = task.part(part)
    return list(zip(pixels(images.numpy()), labels.tolist(), strict=True))


def assert_no_leak(task, train_images, groups=None):
    """No image, and no group of images, stands in two parts: recomputed from the file's own arrays."""
    sets = {part: {image for image, _ in examples(task, part)} for part in PARTS}
    assert not sets["train"] & sets["val"]
    assert not sets["train"] & sets["test"]
    assert not sets["val"] & sets["test"]
    if groups is not None:
        groups_of = {}
        for image, group in zip(pixels(train_images), groups.tolist(), strict=True):
            groups_of.setdefault(image, set()).add(group)
        met = {part: set().union(*(groups_of[image] for image in sets[part])) for part in ("train", "val")}
        assert met["train"]
        assert met["val"]
        assert not met["train"] & met["val"]


# --- the split -------------------------------------------------------------------------------------------


def test_a_task_is_the_file_split_in_three(bundle):
    arrays = some_arrays()
    path = bundle(**arrays)
    task = load_one(path.parent)
    assert [len(task.part(part)[1]) for part in PARTS] == [90, 10, 30]
    stored = list(zip(pixels(arrays["train_images"]), arrays["train_labels"].tolist(), strict=True))
    assert sorted(examples(task, "train") + examples(task, "val")) == sorted(stored)
    assert np.array_equal(task.test_images.numpy(), arrays["test_images"])
    assert task.test_labels.tolist() == arrays["test_labels"].tolist()
    assert task.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert task.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert task.name == "mnist"
    assert_no_leak(task, arrays["train_images"])


def test_the_order_is_shuffled(bundle):
    arrays = some_arrays(train=400, train_labels=np.sort(np.arange(400) % 5))  # sorted by class
    task = load_one(bundle(**arrays).parent, limit=100)
    counts = torch.bincount(task.train_labels, minlength=5)
    assert counts.min() >= 8  # of 20 expected: the prefix is a fair sample, not the first two classes
    assert task.val_labels.unique().tolist() == [0, 1, 2, 3, 4]
    stored = {image: i for i, image in enumerate(pixels(arrays["train_images"]))}
    for part in ("train", "val"):
        places = [stored[image] for image, _ in examples(task, part)]
        assert places != sorted(places), part


def test_the_seed_decides_all_but_the_test_part(bundle):
    folder = bundle(**some_arrays()).parent
    first, again, other = (load_one(folder, seed=seed) for seed in (0, 0, 1))
    for part in PARTS:
        assert examples(first, part) == examples(again, part)
    assert examples(first, "train") != examples(other, "train")
    assert set(examples(first, "val")) != set(examples(other, "val"))
    assert examples(first, "test") == examples(other, "test")


def test_a_limit_takes_a_prefix_of_the_training_images_and_nothing_else(bundle):
    folder = bundle(**some_arrays()).parent
    whole, short = load_one(folder), load_one(folder, limit=7)
    assert examples(short, "train") == examples(whole, "train")[:7]
    assert examples(short, "val") == examples(whole, "val")
    assert examples(short, "test") == examples(whole, "test")
    assert len(load_one(folder, limit=1_000).train_labels) == 90


def test_no_more_than_5000_images_validate(bundle):
    arrays = some_arrays(train=51_000)
    task = load_one(bundle(**arrays).parent)
    assert len(task.val_labels) == 5_000
    assert_no_leak(task, arrays["train_images"])


def test_images_of_one_group_stay_on_one_side(bundle):
    groups = np.random.default_rng(1).permutation(np.repeat(np.arange(50) * 7, 4))
    arrays = some_arrays(train=200, train_groups=groups, test_groups=np.arange(30) + 1_000)
    for seed in range(5):
        task = load_one(bundle(**arrays).parent, seed=seed)
        assert len(task.val_labels) == 20
        assert_no_leak(task, arrays["train_images"], groups)


def test_copies_stay_on_one_side(bundle):
    arrays = some_arrays(train=100)
    arrays["train_images"][50:] = arrays["train_images"][:50]
    for seed in range(5):
        task = load_one(bundle(**arrays).parent, seed=seed)
        assert len(task.train_labels) + len(task.val_labels) == 100
        assert_no_leak(task, arrays["train_images"])


def test_a_copy_ties_two_groups_together(bundle):
    arrays = some_arrays(train=100, train_groups=np.arange(100) // 2)
    arrays["train_images"][1:99:2] = arrays["train_images"][
        2:100:2
    ]  # a chain through all groups but the last
    with pytest.raises(
        ValueError, match=r"mnist.npz: no validation part of at most 10 of 100 images .* 100 ima"
    ):
        load_one(bundle(**arrays).parent)
    arrays["train_images"][9] = 0  # cut after five groups: ten images on the short side
    task = load_one(bundle(**arrays).parent)
    assert {image for image, _ in examples(task, "val")} == set(pixels(arrays["train_images"][:10]))
    assert_no_leak(task, arrays["train_images"], arrays["train_groups"])


def test_training_images_that_stand_in_the_test_part_are_left_out(bundle):
    arrays = some_arrays()
    arrays["train_images"][[3, 30, 77]] = arrays["test_images"][[0, 0, 9]]
    task = load_one(bundle(**arrays).parent)
    assert [len(task.part(part)[1]) for part in PARTS] == [87, 10, 30]
    kept = [i for i in range(100) if i not in (3, 30, 77)]
    stored = zip(pixels(arrays["train_images"][kept]), arrays["train_labels"][kept].tolist(), strict=True)
    assert sorted(examples(task, "train") + examples(task, "val")) == sorted(stored)
    assert_no_leak(task, arrays["train_images"])


def test_groups_are_still_known_where_images_were_left_out_before_them(bundle):
    arrays = some_arrays(train_groups=np.arange(100) // 5)
    arrays["train_images"][[0, 7, 8]] = arrays["test_images"][[0, 1, 2]]
    for seed in range(5):
        task = load_one(bundle(**arrays).parent, seed=seed)
        assert len(task.train_labels) + len(task.val_labels) == 97
        assert_no_leak(task, arrays["train_images"], arrays["train_groups"])


def test_a_single_image_cannot_be_split():
    with pytest.raises(ValueError, match="no validation part of at most 1 of 1 images"):
        splits.validation_split([b"one"], None, seed=0)


def slow_units(contents, groups):
    """What belongs together, by merging sets until none overlap."""
    units = []
    for keys in zip((("c", c) for c in contents), (("g", g) for g in groups), strict=True):
        merged = set(keys).union(*(unit for unit in units if unit & set(keys)))
        units = [unit for unit in units if not unit & set(keys)] + [merged]
    return [next(i for i, unit in enumerate(units) if ("c", c) in unit) for c in contents]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=60), st.integers(0, 9)
)
def test_a_split_tears_nothing_apart_and_is_as_full_as_it_can_be(rows, seed):
    contents, groups = zip(*rows, strict=True)
    units = slow_units(contents, groups)
    sizes = {unit: units.count(unit) for unit in units}
    room = max(1, round(len(rows) / 10))
    fingerprints = [bytes([each]) for each in contents]
    if len(rows) < 2 or min(sizes.values()) > room:
        with pytest.raises(ValueError, match="without tearing a group apart"):
            splits.validation_split(fingerprints, torch.tensor(groups), seed=seed)
        return
    train, val = (
        part.tolist() for part in splits.validation_split(fingerprints, torch.tensor(groups), seed=seed)
    )
    assert sorted(train + val) == list(range(len(rows)))
    assert not {units[i] for i in train} & {units[i] for i in val}
    assert 1 <= len(val) <= room
    assert all(len(val) + sizes[units[i]] > room for i in train)  # nothing that is left would still fit in


def test_every_unit_is_as_likely_to_validate():
    groups = torch.tensor([0] * 3 + [1] * 3 + list(range(2, 26)))  # two groups of three, and single images
    fingerprints = [bytes([i]) for i in range(30)]
    hits = torch.zeros(30)
    for seed in range(400):
        hits[splits.validation_split(fingerprints, groups, seed=seed)[1]] += 1
    assert hits.sum() == 1_200
    singles = hits[6:] / 400
    assert singles.min() > 0.05  # about 0.1 each; five standard deviations are 0.075
    assert singles.max() < 0.19
    assert (hits[:6] > 0).all()


def test_the_global_generator_is_left_alone(bundle):
    folder = bundle(**some_arrays()).parent
    before = torch.get_rng_state()
    load_one(folder, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


# --- the real bundle -------------------------------------------------------------------------------------


@needs_bundle
@pytest.mark.parametrize("name", SIZES)
def test_the_parts_of_the_real_tasks_are_disjoint(name):
    task = load_one(BUNDLE_FOLDER, name, seed=1)
    learnt, tested, classes = SIZES[name]
    with np.load(BUNDLE_FOLDER / suites.bundle_files()[name].file) as stored:
        arrays = dict(stored)
    assert len(task.test_labels) == tested
    assert len(task.train_labels) + len(task.val_labels) == learnt
    assert 0.095 * learnt <= len(task.val_labels) <= 0.1 * learnt + 0.5
    assert len(task.class_names) == classes
    assert task.train_labels.unique().tolist() == list(range(classes))
    assert_no_leak(task, arrays["train_images"], arrays.get("train_groups"))
    if "test_groups" in arrays:
        assert not set(arrays["train_groups"].tolist()) & set(arrays["test_groups"].tolist())
    stored = zip(pixels(arrays["train_images"]), arrays["train_labels"].tolist(), strict=True)
    assert sorted(examples(task, "train") + examples(task, "val")) == sorted(stored)


@needs_bundle
def test_the_suite_is_the_eight_core_tasks_in_order(monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(BUNDLE_FOLDER))
    tasks = load_tasks(limit=50)
    assert tuple(tasks) == tuple(SIZES)[:8]
    assert all(task.name == name and len(task.train_labels) == 50 for name, task in tasks.items())
    shapes = {name: tuple(task.train_images.shape[1:]) for name, task in tasks.items()}
    assert shapes["mnist"] == (28, 28)
    assert shapes["scenes15"] == (32, 32)
    assert {shapes[name] for name in tasks if name not in ("mnist", "scenes15")} == {(32, 32, 3)}


# --- the digits ------------------------------------------------------------------------------------------


def test_the_digits_are_the_librarys_own_tasks_as_images():
    tasks, plain = load_tasks(suite="digits"), digit_tasks()
    assert list(tasks) == list(plain)
    for name, task in tasks.items():
        sixteenths = torch.cat([plain[name].train_inputs, plain[name].test_inputs]) * 16
        labels = torch.cat([plain[name].train_labels, plain[name].test_labels]).tolist()
        grey = (sixteenths * 255 / 16).round().to(torch.uint8).numpy().reshape(-1, 8, 8)
        expected = sorted(zip(pixels(grey), labels, strict=True))
        assert sorted(example for part in PARTS for example in examples(task, part)) == expected
        assert len(task.test_labels) == 449
        assert task.class_names == plain[name].class_names
        assert_no_leak(task, None)
    assert len({task.sha256 for task in tasks.values()}) == 7


def test_the_seven_views_share_their_split():
    tasks = load_tasks(["digits", "mirrored", "rotated"], suite="digits", seed=5)
    assert torch.equal(tasks["mirrored"].val_images.flip(2), tasks["digits"].val_images)
    assert torch.equal(tasks["digits"].train_images.rot90(1, (1, 2)), tasks["rotated"].train_images)


def test_a_task_that_was_changed_is_not_changed_for_the_next_caller():
    first = load_tasks(["digits"], suite="digits")["digits"]
    expected = [each.clone() for each in first.part("test")]
    for each in first.part("test"):
        each.zero_()
    again = load_tasks(["digits"], suite="digits")["digits"]
    assert all(torch.equal(*pair) for pair in zip(again.part("test"), expected, strict=True))


# --- overviews -------------------------------------------------------------------------------------------


def test_an_overview_tells_the_sizes_of_a_task_or_what_is_wrong_with_it(bundle):
    folder = bundle(**some_arrays()).parent
    rows = {row["task"]: row for row in SUITES["bundle"].overview(folder)}
    assert list(rows) == list(SIZES)
    sizes = {"classes": "5", "pixels": "4x4 grey", "train": "90", "val": "10", "test": "30"}
    assert rows["mnist"] == {"task": "mnist", **sizes, "": ""}
    assert str(rows["cars"].pop("")).startswith(f"{folder / 'cars.npz'} is missing")
    assert rows["cars"] == {"task": "cars", **dict.fromkeys(sizes, "-")}


@needs_bundle
def test_an_overview_of_larger_images_tells_of_their_files(tmp_path):
    rows = {row["task"]: row for row in SUITES["large"].overview(BUNDLE_FOLDER)}
    assert rows["cars"] == {"task": "cars", "file": "large/cars.npz", "": "there"}
    assert set(rows) == set(SIZES)
    assert "cars.npz is missing" in str(SUITES["large"].overview(tmp_path)[5][""])
    assert SUITES["large"].overview()[5] == {"task": "cars", "file": "large/cars.npz"}


def test_without_a_folder_an_overview_of_files_tells_their_names():
    rows = {row["task"]: row for row in SUITES["bundle"].overview()}
    assert rows["sign_digits"]["file"] == "extra/sign_digits.npz"


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "suite", "hint"),
    [
        (["mnits"], "bundle", "did you mean 'mnist'"),
        (["dtd"], "bundle", "did you mean 'dtd10'"),
        (["digits", "mirored"], "digits", "did you mean 'mirrored'"),
        (["euro_sat"], "torchvision", "did you mean 'eurosat'"),
        ("imagenet", "bundle", "choose one of mnist, streetchars, gtsrb"),
    ],
)
def test_an_unknown_task_suggests_the_near_ones_before_anything_is_read(names, suite, hint):
    with pytest.raises(ValueError, match=re.escape(f": {hint}")):
        load_tasks(names, suite=suite, folder="/nowhere")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"suite": "torch_vision"}, ValueError, "unknown suite 'torch_vision': did you mean 'torchvision'?"),
        ({"names": []}, ValueError, "names is empty"),
        ({"limit": 0}, ValueError, "limit must be at least 1"),
        ({"limit": 2.5}, TypeError, "limit must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": None}, TypeError, "seed must be a whole number"),
        ({"seed": 2**63}, ValueError, "seed must be below 2**63"),
        ({"names": ["digits", "rotated", "digits"]}, ValueError, "the task 'digits' is given twice; name"),
        ({"tokenizer": Words()}, ValueError, "suite 'digits' has no texts to cut into tokens; leave tokeni"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        load_tasks(**({"suite": "digits"} | options))


HOW_TO_GET = {
    "bundle": "`python -m taskvec_mini.benchmarks data --out FOLDER` makes them from public sources",
    "large": "`python -m taskvec_mini.benchmarks data --out FOLDER` makes them from public sources",
    "torchvision": "any folder with room will do, what is missing is downloaded into it",
    "hub": "any folder with room will do, what is missing is downloaded into it",
    "text": "suite='text-hub' downloads the same tasks",
}


@pytest.mark.parametrize("suite", HOW_TO_GET)
@pytest.mark.parametrize("value", [None, ""])
def test_without_a_folder_the_error_tells_what_to_set_and_how_to_get_the_data(monkeypatch, suite, value):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(DATA_VARIABLE, value)
    with pytest.raises(UserError) as caught:
        load_tasks(suite=suite)
    message = str(caught.value)
    assert message.startswith(f"suite '{suite}' needs a folder: give folder=... or set the environment vari")
    assert HOW_TO_GET[suite] in message
    assert message.endswith(
        "suite='digits' needs no folder (on the command line: --data FOLDER, --suite digits)"
    )


def test_a_missing_folder_or_file_is_named(bundle, monkeypatch):
    path = bundle(**some_arrays())
    missing = path.parent / "elsewhere"
    monkeypatch.setenv(DATA_VARIABLE, str(missing))
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"{missing} is no folder; give") + ".*TASKVEC_MINI_DATA"
    ):
        load_tasks()
    message = re.escape(
        f"{path.parent / 'cars.npz'} is missing; make it with `python -m taskvec_mini.benchma"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_tasks(["mnist", "cars"], folder=path.parent)


def test_the_tilde_of_a_home_folder_is_understood(bundle, monkeypatch):
    folder = bundle(**some_arrays()).parent
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_one(f"~/{folder.name}").name == "mnist"


@pytest.mark.parametrize("harm", ["truncated", "one bit", "empty"])
def test_a_damaged_file_is_refused_with_both_checksums(bundle, harm):
    path = bundle(**some_arrays())
    expected, whole = suites.bundle_files()["mnist"].sha256, path.read_bytes()
    damaged = {
        "truncated": whole[:-1],
        "one bit": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        "empty": b"",
    }[harm]
    path.write_bytes(damaged)
    found = hashlib.sha256(damaged).hexdigest()
    message = (
        f"{path} is truncated or corrupted ({len(damaged):,} bytes): its sha256 should be {expected} and is "
    )
    with pytest.raises(ValueError, match=re.escape(f"{message}{found}; delete it and make it anew")):
        load_one(path.parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_labels": np.full(100, 5)},
            "train: labels run from 5 to 5 for 5 classes; number the classes",
        ),
        ({"test_labels": np.arange(30) % 5 - 1}, "test: labels run from -1 to 3 for 5 classes"),
        (
            {"train_labels": np.zeros(99, np.int64)},
            "train: 100 images and labels of shape (99,); give one label",
        ),
        ({"test_labels": np.zeros((30, 1), np.int64)}, "test: 30 images and labels of shape (30, 1)"),
        (
            {"test_images": np.zeros((30, 4, 4, 4), np.uint8)},
            "images must have shape (N, H, W) or (N, H, W, 3)",
        ),
        ({"test_images": np.zeros((30, 3, 4, 4), np.uint8)}, "got (30, 3, 4, 4); put the colours last"),
        ({"test_images": np.zeros((30, 16), np.uint8)}, "got (30, 16)"),
        ({"test_images": np.zeros((30, 5, 5), np.uint8)}, "test images of shape (5, 5) and train images"),
        ({"train_groups": np.zeros(7, np.int64)}, "train_groups has shape (7,) for 100 images"),
        (
            {"train_groups": np.arange(100), "test_groups": np.arange(98, 128)},
            "2 group(s) stand in the train and in the test part, the first is 98; the test part is leaked",
        ),
        ({"train_images": np.zeros((100, 4, 4), np.uint8)}, "no validation part of at most 10 of 100 images"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused_by_name(bundle, changes, message):
    path = bundle(**some_arrays(**changes))
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        load_one(path.parent)


@pytest.mark.parametrize(
    "changes", [{"train_images": np.zeros((100, 4, 4), np.float32)}, {"test_labels": np.zeros(30, np.int32)}]
)
def test_a_file_of_wrong_types_is_refused_by_name(bundle, changes):
    path = bundle(**some_arrays(**changes))
    with pytest.raises(
        TypeError, match=re.escape(f"{path}: ") + "t.*: images must be uint8 and labels int64"
    ):
        load_one(path.parent)


def test_a_file_that_lacks_an_array_is_refused(bundle):
    arrays = some_arrays()
    del arrays["test_labels"]
    path = bundle(**arrays)
    with pytest.raises(
        ValueError, match=re.escape(f"{path} cannot be") + ".*it has no array 'test_labels', only tr"
    ):
        load_one(path.parent)


def test_a_pickle_is_never_run(bundle, tmp_path):
    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    path = bundle(**some_arrays(class_names=np.array([Harm()], dtype=object)))
    with pytest.raises(ValueError, match=r"mnist.npz cannot be read as a file of images"):
        load_one(path.parent)
    assert not (tmp_path / "harm").exists()


def test_a_checksum_is_of_names_types_shapes_and_values_in_any_order():
    arrays = {"a": np.arange(6, dtype=np.int64), "b": np.zeros(2, np.uint8)}
    others = [
        arrays | {"a": arrays["a"].reshape(2, 3)},
        arrays | {"a": arrays["a"].view(np.uint64)},
        arrays | {"a": arrays["a"][::-1]},
        {"c": arrays["a"], "b": arrays["b"]},
    ]
    assert len({image_files.checksum(each) for each in (arrays, *others)}) == 5
    assert image_files.checksum(dict(reversed(arrays.items()))) == image_files.checksum(arrays)


def test_a_task_of_your_own_is_checked():
    images, labels = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    parts = [images, labels] * 3
    task = ImageTask("tiny", ("no", "yes"), *parts, sha256="")
    assert repr(task) == "ImageTask('tiny', 2 classes, 4x4, 2 train, 2 val, 2 test)"
    with pytest.raises(ValueError, match="unknown part 'vall': did you mean 'val'"):
        task.part("vall")
    with pytest.raises(ValueError, match="task 'tiny', train: labels run from 0 to 1 for 1 classes"):
        ImageTask("tiny", ("no",), *parts, sha256="")
    with pytest.raises(ValueError, match="task 'tiny', val: 0 images and labels of shape"):
        ImageTask("tiny", ("no", "yes"), images, labels, images[:0], labels[:0], images, labels, "")
