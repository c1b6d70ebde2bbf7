"""Data sets of the Hub: small ones stand in for them, and what `datasets` would download is never downloaded.

The split is held against the one that the other suites make in memory, the resizing against torchvision.
"""

import errno
import importlib
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from small_encoder import tiny_backbone, tiny_head, tiny_run
from taskvec_mini import _files, _imports
from taskvec_mini.benchmarks.data import SUITES, hub, image_files, image_store, load_tasks, torchvision_sets
from taskvec_mini.errors import FileError, UserError

huggingface = pytest.importorskip("datasets", reason='python -m pip install "taskvec-mini[data]"')
huggingface_hub = importlib.import_module("huggingface_hub")
errors = importlib.import_module("huggingface_hub.errors")
DRAW = np.random.default_rng(0)
DIGITS = tuple(map(str, range(10)))
SHA = "5a1c0ffee" + 31 * "0"
BOTH = ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]


def pictures(count, side=28, *, grey=True):
    shape = (count, side, side) if grey else (count, side, side, 3)
    return [Image.fromarray(pixels) for pixels in DRAW.integers(0, 256, shape, dtype=np.uint8)]


def rows(images, *, names=DIGITS, columns=("image", "label"), labels=None):
    """A data set in memory, its labels in turn."""
    image, label = columns
    features = huggingface.Features(
        {image: huggingface.Image(), label: huggingface.ClassLabel(names=list(names))}
    )
    given = [i % len(names) for i in range(len(images))] if labels is None else labels
    return huggingface.Dataset.from_dict({image: images, label: given}, features=features)


def stacked(images):
    return np.stack([np.asarray(image) for image in images])


class Hub:
    """What stands in for the Hugging Face Hub: it has one repository, and counts what is asked of it."""

    def __init__(self, train, test):
        self.parts = huggingface.DatasetDict({"train": train, "test": test})
        self.files = dict.fromkeys(BOTH, 1_000_000)
        self.gated, self.error, self.fetch_error = False, None, None
        self.asked, self.fetched = [], []

    def dataset_info(self, _api, repository, **options):
        self.asked.append((repository, options))
        if self.error is not None:
            raise self.error
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in self.files.items()]
        return SimpleNamespace(gated=self.gated, sha=SHA, siblings=siblings)

    def auth_check(self, _api, repository, *, repo_type):
        assert repo_type == "dataset"
        raise refusal("GatedRepoError", f"{repository}: 403")

    def load_dataset(self, repository, **options):
        self.fetched.append((repository, options))
        if self.fetch_error is not None:
            raise self.fetch_error
        return self.parts


def refusal(name, words=""):
    """An error of huggingface_hub without the answer of a server that its constructor wants."""
    error = getattr(errors, name).__new__(getattr(errors, name))
    error.args = (words,)
    return error


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """A function that makes a small data set the repository of a task, and gives the Hub that has it."""

    def serve(name, train, test, **changes):
        there = Hub(train, test)
        known = replace(hub.sources()[name], sizes=(len(train), len(test)), **changes)
        monkeypatch.setitem(hub.sources(), name, known)
        api = huggingface_hub.HfApi
        monkeypatch.setattr(api, "dataset_info", lambda *a, **o: there.dataset_info(*a, **o))
        monkeypatch.setattr(api, "auth_check", lambda *a, **o: there.auth_check(*a, **o))
        monkeypatch.setattr(huggingface, "load_dataset", there.load_dataset)
        monkeypatch.setattr(huggingface.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        return there

    return serve


@pytest.fixture
def digits(serve):
    return serve("mnist", rows(pictures(40)), rows(pictures(12)))


@pytest.fixture
def textures(serve):
    """Photos of many sizes, in three classes."""
    sizes = [(30 + i % 7, 50 - i % 11) for i in range(32)]
    photos = [
        Image.fromarray(DRAW.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes
    ]
    names = ("banded", "blotchy", "braided")
    train, test = rows(photos[:24], names=names), rows(photos[24:], names=names)
    found = serve("dtd", train, test, classes=3, names=dict(enumerate(names)))
    found.photos = photos
    return found


def load(name, folder, **options):
    return hub.load([name], folder, **options)[name]


def in_memory(there, *, seed, limit=None):
    """The split that the suites make of arrays which are all in memory."""
    arrays = {"class_names": np.array(DIGITS)}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = stacked(there.parts[part]["image"])
        arrays[f"{part}_labels"] = np.array(list(there.parts[part]["label"]))
    return image_files.image_task("mnist", arrays, sha256="0" * 64, limit=limit, seed=seed)


def assert_same_parts(found, expected):
    for part in ("train", "val", "test"):
        for one, other in zip(found.part(part), expected.part(part), strict=True):
            assert torch.equal(one, other)


# --- images ----------------------------------------------------------------------------------------------


def test_an_image_is_resized_and_cut_as_torchvision_does_it():
    transforms = pytest.importorskip("torchvision.transforms")
    usual = transforms.Compose(
        [
            transforms.Resize(16, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(16),
        ]
    )
    for width, height in [(16, 16), (40, 20), (21, 40), (33, 47), (9, 30), (16, 23), (101, 16), (17, 16)]:
        image = Image.fromarray(DRAW.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert np.array_equal(image_store.square(image, 16), np.asarray(usual(image))), (width, height)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_an_image_of_any_kind_gets_three_colours(mode):
    image = Image.fromarray(DRAW.integers(0, 256, (20, 20, 3), dtype=np.uint8)).convert(mode)
    assert np.array_equal(image_store.square(image, 20), np.asarray(image.convert("RGB")))
    assert image_store.square(image, 20, grey=True).shape == (20, 20)


# --- a task ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_the_split_is_that_of_the_other_suites(digits, tmp_path, seed):
    expected = in_memory(digits, seed=seed)
    task = load("mnist", tmp_path, seed=seed)
    assert_same_parts(task, expected)
    assert (len(task.train_labels), len(task.val_labels), len(task.test_labels)) == (36, 4, 12)
    assert task.class_names == DIGITS
    assert task.train_images.shape == (36, 28, 28)
    assert_same_parts(load("mnist", tmp_path, seed=seed, limit=5), in_memory(digits, seed=seed, limit=5))


def test_it_comes_through_the_loader_of_all_suites(digits, tmp_path):
    task = load_tasks("mnist", suite="hub", folder=tmp_path, limit=7, seed=3)["mnist"]
    assert_same_parts(task, in_memory(digits, seed=3, limit=7))
    assert (tmp_path / "hub" / "mnist_224" / "about.json").is_file()


def test_photos_of_many_sizes_become_squares_in_their_order(textures, tmp_path):
    task = load("dtd", tmp_path, size=16)
    expected = np.stack([image_store.square(photo, 16) for photo in textures.photos])
    assert np.array_equal(task.test_images.numpy(), expected[24:])
    assert task.test_labels.tolist() == [i % 3 for i in range(8)]
    learnt = torch.cat([task.train_images, task.val_images]).numpy()
    labels = torch.cat([task.train_labels, task.val_labels]).tolist()
    pairs = sorted((image.tobytes(), label) for image, label in zip(learnt, labels, strict=True))
    assert pairs == sorted((image.tobytes(), i % 3) for i, image in enumerate(expected[:24]))


def test_another_size_has_a_folder_of_its_own(textures, tmp_path):
    assert load("dtd", tmp_path, size=16).train_images.shape[1:] == (16, 16, 3)
    assert load("dtd", tmp_path, size=8).train_images.shape[1:] == (8, 8, 3)
    assert load("dtd", tmp_path, size=16).train_images.shape[1:] == (16, 16, 3)
    assert len(textures.fetched) == 2


def test_a_small_square_larger_than_the_size_is_resized(digits, tmp_path):
    task = load("mnist", tmp_path, size=14)
    expected = [image_store.square(image, 14, grey=True) for image in digits.parts["test"]["image"]]
    assert np.array_equal(task.test_images.numpy(), np.stack(expected))


def test_only_the_files_of_both_parts_are_asked_for(serve, tmp_path):
    there = serve("svhn", rows(pictures(30, 32, grey=False)), rows(pictures(10, 32, grey=False)))
    there.files = {
        "README.md": 10,
        "cropped_digits/extra-00000-of-00002.parquet": 10**9,
        "cropped_digits/train-00001-of-00002.parquet": 20,
        "cropped_digits/train-00000-of-00002.parquet": 20,
        "cropped_digits/test-00000-of-00001.parquet": 30,
        "full_numbers/train-00000-of-00001.parquet": 10**9,
        "full_numbers/test-00000-of-00001.parquet": 10**9,
    }
    load("svhn", tmp_path)
    assert there.asked == [
        ("ufldl-stanford/svhn", {"revision": None, "timeout": 10.0, "files_metadata": True})
    ]
    assert there.fetched == [
        (
            "ufldl-stanford/svhn",
            {
                "name": "cropped_digits",
                "data_files": {
                    "train": [f"cropped_digits/train-0000{i}-of-00002.parquet" for i in (0, 1)],
                    "test": ["cropped_digits/test-00000-of-00001.parquet"],
                },
                "revision": SHA,
                "verification_mode": "no_checks",
            },
        )
    ]


def test_cifar_has_its_own_columns_and_a_mended_name(serve, tmp_path):
    names = ["aquarium_fish", "cra"]
    changes = {"classes": 2, "names": {0: "aquarium fish", 1: "crab"}}
    columns = ("img", "fine_label")
    parts = (rows(pictures(20, 32, grey=False), names=names, columns=columns) for _ in range(2))
    serve("cifar100", *parts, **changes)
    assert load("cifar100", tmp_path).class_names == ("aquarium fish", "crab")


def test_datasets_itself_reads_only_these_files(tmp_path, monkeypatch):
    """The real `load_dataset`, on a folder in the form of a repository that has a part more."""
    pytest.importorskip("pyarrow")
    images, names = pictures(6, 8, grey=False), ("banded", "blotchy")
    for part, listed in (("train", images[:4]), ("test", images[4:]), ("contrast", images)):
        path = tmp_path / "repository" / "data" / f"{part}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows(listed, names=names).to_parquet(str(path))
    monkeypatch.setattr(huggingface.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = replace(hub.sources()["dtd"], repository=str(tmp_path / "repository"), classes=2, sizes=(4, 2))
    source = replace(source, names=dict(enumerate(names)))
    files = {part: [f"data/{part}-00000-of-00001.parquet"] for part in ("train", "test")}
    parts = hub.fetch(hub.Listing("dtd", source, "main", files, 0))
    assert set(parts) == {"train", "test"}
    assert hub.class_names(source, parts) == list(names)
    assert hub.labels(source, parts, other_counts=False).tolist() == [0, 1, 0, 1, 0, 1]
    assert np.array_equal(stacked(parts["train"]["image"]), stacked(images[:4]))


# --- what is kept ----------------------------------------------------------------------------------------


def test_later_calls_need_neither_network_nor_datasets(digits, tmp_path, monkeypatch):
    first = load("mnist", tmp_path)
    monkeypatch.setattr(_imports, "load", lambda module, **_: pytest.fail(f"{module} was asked for"))
    second = load("mnist", tmp_path)
    assert_same_parts(second, first)
    assert second.sha256 == first.sha256
    assert len(digits.asked) == len(digits.fetched) == 1


def test_the_folder_is_the_same_whoever_makes_it(digits, tmp_path):
    load("mnist", tmp_path / "a", seed=0)
    load("mnist", tmp_path / "b", seed=4, limit=3)
    for file in ("images.npy", "rows.npz", "about.json"):
        assert _files.sha256(tmp_path / "a/hub/mnist_224" / file) == _files.sha256(
            tmp_path / "b/hub/mnist_224" / file
        )


def test_the_images_of_seed_0_are_pieces_of_the_file(digits, tmp_path):
    load("mnist", tmp_path)
    task = load("mnist", tmp_path, limit=20)
    starts = {
        getattr(task, f"{part}_images").untyped_storage().data_ptr() for part in ("train", "val", "test")
    }
    assert len(starts) == 1
    assert len(task.train_images) == 20
    before = task.train_images.clone()
    task.train_images.zero_()
    assert torch.equal(load("mnist", tmp_path, limit=20).train_images, before)  # the file has not changed


def test_finetuning_on_mapped_images_is_finetuning_on_copies(digits, tmp_path):
    mapped = load("mnist", tmp_path)
    parts = {f"{part}_images": mapped.part(part)[0].clone() for part in ("train", "val", "test")}
    runs = [
        tiny_run(
            backbone=tiny_backbone(),
            head=tiny_head(10),
            task=task,
            folder=tmp_path / name,
            epochs=1,
            batch_size=8,
        )
        for name, task in (("mapped", mapped), ("copied", replace(mapped, **parts)))
    ]
    for name, value in runs[0].state(1).items():
        assert torch.equal(value, runs[1].state(1)[name])


@pytest.mark.parametrize("file", ["images.npy", "rows.npz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_folder_is_refused_and_can_be_made_anew(digits, tmp_path, file, damage):
    expected = load("mnist", tmp_path)
    path = tmp_path / "hub" / "mnist_224" / file
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    what = "missing" if damage == "gone" else "truncated or corrupted"
    message = rf"{re.escape(str(path))} is {what}.* delete the folder .*mnist_224 and call again"
    with pytest.raises(ValueError, match=message):
        load("mnist", tmp_path)
    shutil.rmtree(path.parent)
    assert_same_parts(load("mnist", tmp_path), expected)


@pytest.mark.parametrize("damage", ["cut", "a list", "no checksums", "no classes"])
def test_a_damaged_note_is_refused(digits, tmp_path, damage):
    load("mnist", tmp_path)
    note = tmp_path / "hub" / "mnist_224" / "about.json"
    whole = note.read_text()
    damaged = {
        "cut": whole[:-2],
        "a list": "[]",
        "no checksums": whole.replace("rows.npz", "row.npz"),
        "no classes": whole.replace("class_names", "names"),
    }
    note.write_text(damaged[damage])
    with pytest.raises(UserError, match=r"about.json is damaged, .*delete the folder"):
        load("mnist", tmp_path)


def test_what_fails_leaves_nothing_behind(digits, tmp_path):
    files = []
    for picture in pictures(12):
        file = io.BytesIO()
        picture.save(file, "png")
        files.append({"bytes": file.getvalue(), "path": None})
    files[0]["bytes"] = files[0]["bytes"][:-40]
    digits.parts["test"] = rows(files)
    with pytest.raises(
        ValueError, match=r"task 'mnist', ylecun/mnist at revision 5a1c.* image 0 of test cannot"
    ):
        load("mnist", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "hub" / "mnist_224").exists()


def make_again(digits, place):
    labels = hub.labels(hub.sources()["mnist"], digits.parts, other_counts=False)
    about = {"class_names": list(DIGITS)}
    return image_store.make(
        place, digits.parts, labels, column="image", side=28, pixels=28, grey=True, about=about
    )


def test_a_second_process_that_was_slower_changes_nothing(digits, tmp_path):
    load("mnist", tmp_path)
    place = tmp_path / "hub" / "mnist_224"
    before = _files.sha256(place / "images.npy"), (place / "about.json").stat().st_mtime_ns
    make_again(digits, place)
    assert (_files.sha256(place / "images.npy"), (place / "about.json").stat().st_mtime_ns) == before
    assert [path.name for path in place.parent.iterdir()] == ["mnist_224"]


def test_what_a_killed_process_left_is_swept_by_the_next(digits, tmp_path):
    """A process of its own dies, without any clearing up, while it decodes the images."""
    program = f"""if True:
        import os, numpy as np
        from pathlib import Path
        from PIL import Image
        from taskvec_mini.benchmarks.data import image_store
        class Part:
            def __len__(self): return 20
            def __getitem__(self, row):
                if row == 15: os.kill(os.getpid(), 9)
                return {{"image": Image.fromarray(np.full((28, 28), row, np.uint8))}}
        parts = {{"train": Part(), "test": Part()}}
        image_store.make(Path({str(tmp_path / "hub" / "mnist_224")!r}), parts, np.zeros(40, np.int64),
            column="image", side=28, pixels=28, grey=True, about={{}})
    """
    (tmp_path / "hub").mkdir()
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == -9
    (left,) = (tmp_path / "hub").iterdir()
    assert (left / "images").stat().st_size == 40 * 28 * 28
    load("mnist", tmp_path)
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["mnist_224"]
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


# --- copies ----------------------------------------------------------------------------------------------


def test_copies_are_found_told_and_kept_apart(serve, tmp_path, capsys):
    train, test = pictures(40), pictures(12)
    train[3], train[4] = test[0], test[7]  # leaked
    train[11] = train[12] = train[10]  # three of a kind
    serve("mnist", rows(train), rows(test))
    load("mnist", tmp_path)
    told = capsys.readouterr().out
    assert "mnist: 38 images to train and validate on, 12 to test" in told
    assert "left out 2 training images that are copies of test images; 2 copies among the others" in told
    sides = set()
    for seed in range(80):
        task = load("mnist", tmp_path, seed=seed)
        parts = {
            part: [each.tobytes() for each in task.part(part)[0].numpy()] for part in ("train", "val", "test")
        }
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not set(parts[one]) & set(parts[other]), (seed, one, other)
        triple = np.asarray(train[10]).tobytes()
        counts = parts["train"].count(triple), parts["val"].count(triple)
        assert counts in ((3, 0), (0, 3))
        sides.add(counts)
    assert len(sides) == 2  # both happen: the test has seen what it is about


# --- sizes and disks -------------------------------------------------------------------------------------


def test_sizes_are_told_before_anything_is_fetched(digits, tmp_path, capsys):
    digits.fetch_error = ConnectionError("cable out")
    with pytest.raises(OSError, match=r"could not be fetched from ylecun/mnist .*cable out.* call again"):
        load("mnist", tmp_path)
    told = capsys.readouterr().out
    assert re.search(r"mnist\s+ylecun/mnist\s+5a1c0ffe\s+2\s+0\s+0", told)
    assert "needs 4 MB meanwhile" in told


def test_memory_and_disk_are_counted_in_bytes_of_images():
    sun = hub.sources()["sun397"]
    assert sun.bytes_of(sum(sun.sizes), 224) == 39_700 * 224 * 224 * 3
    assert hub.sources()["mnist"].bytes_of(70_000, 224) == 70_000 * 28 * 28
    assert hub.sources()["cifar100"].bytes_of(10, 16) == 10 * 16 * 16 * 3


@pytest.mark.parametrize(("free", "enough"), [(10_000_000, True), (4_060_000, False), (50_000, False)])
def test_a_disk_that_is_too_small_is_refused_at_once(digits, tmp_path, monkeypatch, capsys, free, enough):
    """4 MB to download and unpack, and twice 41 kB of images, on one disk."""
    usage = SimpleNamespace(total=10**9, used=0, free=free)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage)
    if enough:
        load("mnist", tmp_path)
        return
    with pytest.raises(
        OSError, match=rf"has {free / 10**6:,.0f} MB free, and 4 MB are needed: nothing"
    ) as caught:
        load("mnist", tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert "HF_HOME" in str(caught.value)
    assert digits.fetched == []
    assert "images MB" in capsys.readouterr().out


def test_where_the_hub_tells_no_size_the_table_does(digits, tmp_path, capsys):
    digits.files[BOTH[0]] = None
    load("mnist", tmp_path)
    assert re.search(r"5a1c0ffe\s+18\s", capsys.readouterr().out)


def test_a_full_disk_is_named_however_deep_the_cause_lies(digits, tmp_path):
    try:
        raise huggingface.exceptions.DatasetGenerationError("bad") from OSError(errno.ENOSPC, "No space left")
    except huggingface.exceptions.DatasetGenerationError as error:
        digits.fetch_error = error
    with pytest.raises(OSError, match=r"the disk is full while task 'mnist' .*HF_HOME"):
        load("mnist", tmp_path)


def test_a_disk_that_fills_up_while_decoding_is_named(digits, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="the disk is full while task 'mnist'"):
        load("mnist", tmp_path)


# --- the Hub says no -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            refusal("GatedRepoError"),
            FileError,
            "wants a login: accept its terms at https://.*`hf auth login`",
        ),
        (
            refusal("RepositoryNotFoundError"),
            FileNotFoundError,
            "not on the Hub: it was moved, deleted or made",
        ),
        (refusal("RevisionNotFoundError"), ValueError, "has no revision 'main2'; .*/commits/main lists them"),
        (
            refusal("OfflineModeIsEnabled", "offline"),
            OSError,
            "could not be asked for .OfflineModeIsEnabled: offline",
        ),
        (
            ConnectionError("Name not known"),
            OSError,
            "look at the network connection .* copy the folder 'hub'",
        ),
        (TimeoutError(), OSError, r"could not be asked for \(TimeoutError\); look"),
    ],
)
def test_why_a_data_set_cannot_be_had_is_said_with_the_remedy(digits, tmp_path, error, kind, message):
    digits.error = error
    with pytest.raises(kind, match=message) as caught:
        load("mnist", tmp_path, revisions={"mnist": "main2"})
    assert isinstance(caught.value, UserError)
    assert "task 'mnist': the data set ylecun/mnist" in str(caught.value)
    assert ("suite='torchvision' has it too" in str(caught.value)) == issubclass(kind, OSError)
    assert digits.fetched == []
    assert not (tmp_path / "hub").exists()


def test_a_listed_data_set_may_still_want_a_login(digits, tmp_path):
    digits.gated = "auto"
    with pytest.raises(FileError, match="hf auth login"):
        load("mnist", tmp_path)


def test_no_other_route_is_named_where_there_is_none(textures, serve, tmp_path):
    there = serve("cars", textures.parts["train"], textures.parts["test"])
    there.error = ConnectionError("x")
    with pytest.raises(OSError, match="could not be asked") as caught:
        load("cars", tmp_path)
    assert "torchvision" not in str(caught.value)


def test_all_are_asked_before_the_first_is_fetched(digits, tmp_path):
    digits.files = dict.fromkeys(BOTH[:1], 5)
    with pytest.raises(
        ValueError, match=r"no files .../train-\*.parquet but data/test-0.*pin an older revision"
    ):
        hub.load(["mnist", "svhn"], tmp_path)
    assert digits.fetched == []


def test_without_the_extra_the_error_tells_how_to_install_it(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'python -m pip install "taskvec-mini\[data\]"'):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"names": ["mnits"]}, ValueError, "unknown task 'mnits': did you mean 'mnist'?"),
        ({"names": []}, ValueError, "names is empty"),
        ({"names": ["mnist"], "size": 0}, ValueError, "size must be at least 1"),
        ({"names": ["mnist"], "revisions": {"minst": "x"}}, ValueError, "unknown task 'minst'"),
    ],
)
def test_a_wrong_request_is_refused_before_the_hub_is_asked(digits, tmp_path, options, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        hub.load(folder=tmp_path, **options)
    assert digits.asked == []


def test_a_revision_can_be_pinned(digits, tmp_path):
    load("mnist", tmp_path, revisions={"mnist": SHA})
    assert digits.asked[0][1]["revision"] == SHA
    load("mnist", tmp_path, revisions={"mnist": SHA[:7]})
    with pytest.raises(ValueError, match=rf"was made from revision {SHA}, not from beef; delete it"):
        load("mnist", tmp_path, revisions={"mnist": "beef"})


# --- a repository that has changed -----------------------------------------------------------------------


def swapped():
    return (*DIGITS[:7], "8", "7", "9")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("test", {"columns": ("picture", "label")}, "test has no column 'image' but 'picture', 'label'"),
        ("train", {"columns": ("image", "coarse")}, "train has no column 'label' but 'image', 'coarse'"),
        ("train", {"names": DIGITS[:9]}, "train names 9 classes in column 'label', not 10"),
        ("test", {"names": swapped()}, "class 7 of test is '8', not '7': the classes have another order"),
        ("train", {"labels": [0] * 40}, "9 classes have no training image"),
        ("test", {"labels": [-1] * 12}, "some images have the label -1"),
    ],
)
def test_other_columns_classes_or_labels_are_refused(digits, tmp_path, part, change, message):
    digits.parts[part] = rows(pictures(len(digits.parts[part])), **change)
    with pytest.raises(ValueError, match=f"task 'mnist', ylecun/mnist at revision {SHA}: .*{message}"):
        load("mnist", tmp_path)
    assert not (tmp_path / "hub" / "mnist_224").exists()


def test_labels_without_names_are_refused(digits, tmp_path):
    plain = huggingface.Value("int64")
    digits.parts["train"] = digits.parts["train"].cast_column("label", plain)
    with pytest.raises(ValueError, match="train names 0 classes"):
        load("mnist", tmp_path)


def test_parts_that_name_their_classes_differently_are_refused(textures, tmp_path, monkeypatch):
    monkeypatch.setitem(hub.sources(), "dtd", replace(hub.sources()["dtd"], names={0: "banded"}))
    textures.parts["test"] = rows(pictures(8), names=("banded", "braided", "blotchy"))
    with pytest.raises(ValueError, match="train and test name their classes differently"):
        load("dtd", tmp_path, size=8)


def test_spelling_does_not_count_as_another_order(serve, tmp_path):
    names = ("Annual_Crop-Land", "FOREST")
    known = {0: "annual crop land", 1: "forest"}
    parts = (rows(pictures(20, 64, grey=False), names=names) for _ in range(2))
    serve("eurosat", *parts, classes=2, names=known)
    assert load("eurosat", tmp_path).class_names == ("Annual Crop-Land", "FOREST")


def test_other_counts_are_refused_unless_they_are_accepted(digits, tmp_path):
    digits.parts["train"] = digits.parts["train"].select(range(30))
    message = r"train and test have 30 and 12 images, documented are 40 and 12; .*other_counts=True"
    with pytest.raises(ValueError, match=message):
        load("mnist", tmp_path)
    task = load("mnist", tmp_path, other_counts=True)
    assert len(task.train_labels) + len(task.val_labels) == 30


def test_images_of_another_size_than_documented_are_refused(digits, tmp_path):
    digits.parts["train"] = rows([*pictures(39), *pictures(1, 30)])
    with pytest.raises(ValueError, match="image 39 of train has 30 x 30 pixels, not 28 x 28"):
        load("mnist", tmp_path)


# --- the table and the overview --------------------------------------------------------------------------


def test_the_table_agrees_with_itself_and_with_torchvisions():
    for name, source in hub.sources().items():
        assert max(source.names) < source.classes
        assert len({hub._plain(each) for each in source.names.values()}) == len(source.names), name
        if source.torchvision:
            assert torchvision_sets.sources()[name].sizes == source.sizes
    for name in ("resisc45", "dtd", "cifar100"):  # these are in alphabetical order
        listed = list(hub.sources()[name].names.values())
        assert listed == sorted(listed)
        assert len(listed) == hub.sources()[name].classes


def test_the_overview_tells_the_sizes_and_what_is_there(tmp_path):
    def row():
        return next(each for each in SUITES["hub"].overview(tmp_path) if each["task"] == "sun397")

    assert row()["train + val"] == row()["test"] == "19,850"
    assert row()["images MB"] == "5,976"
    assert row()[""] == "not yet there"
    Path(tmp_path, "hub", "sun397_224").mkdir(parents=True)
    Path(tmp_path, "hub", "sun397_224", "about.json").write_text("{}")
    assert row()[""] == "there"
