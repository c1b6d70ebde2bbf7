"""Tasks of one's own: what a folder or a CSV file becomes, what is refused by name, the way to a table."""

import csv
import re
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.data import SUITES, VOCABULARY, load_tasks, near_duplicates, own
from taskvec_mini.errors import MissingFileError, UserError

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
needs_vocabulary = pytest.mark.skipif(not VOCABULARY.is_file(), reason="the vocabulary is not there")


def picture(path, colour, *, size=(40, 40), seed=0, mode="RGB", ending="png", **options):
    """A picture of coarse noise around a colour."""
    draw = np.random.default_rng(seed)
    noise = draw.integers(-40, 40, (8, 8, 3)) + np.array(colour)
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize(size, Image.NEAREST).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path.with_suffix(f".{ending}"), **options)
    return image


def some_task(folder, *, each=10, parts=("",), **options):
    """Pictures of three colours, in class folders; different ones in each part."""
    for p, part in enumerate(parts):
        for c, (name, colour) in enumerate(COLOURS.items()):
            for i in range(each):
                seed = 1000 * p + 100 * c + i
                picture(folder / part / name / f"{i}", colour, seed=seed, **options)
    return folder


def load_one(folder, name=None, suite="folder", **options):
    return next(iter(load_tasks(name, suite=suite, folder=folder, **options).values()))


def labels_of(task, part):
    return [task.class_names[i] for i in task.part(part)[1].tolist()]


# --- images ----------------------------------------------------------------------------------------------


def test_train_and_test_folders_become_the_parts_with_labels_by_class(tmp_path):
    some_task(tmp_path / "colours", parts=("train", "test"))
    task = load_one(tmp_path)
    assert task.name == "colours"
    assert task.class_names == ("blue", "green", "red")
    assert Counter(labels_of(task, "test")) == {"red": 10, "green": 10, "blue": 10}
    assert len(task.train_labels) + len(task.val_labels) == 30
    for part in ("train", "val", "test"):
        for image, label in zip(task.part(part)[0], labels_of(task, part), strict=True):
            strongest = ("red", "green", "blue")[int(image.double().mean((0, 1)).argmax())]
            assert strongest == label
    paths = sorted((tmp_path / "colours" / "test" / "blue").iterdir())
    expected = np.stack([np.asarray(Image.open(path)) for path in paths])
    assert np.array_equal(task.test_images[:10].numpy(), expected)  # of their own size, as they are


def test_without_parts_a_fifth_of_each_class_is_drawn_the_same_for_all_seeds(tmp_path):
    some_task(tmp_path / "colours", each=15)
    first, other = load_one(tmp_path, seed=0), load_one(tmp_path, seed=5)
    assert Counter(labels_of(first, "test")) == {"red": 3, "green": 3, "blue": 3}
    assert torch.equal(first.test_images, other.test_images)
    assert not torch.equal(first.train_images[:20], other.train_images[:20])
    assert len(first.train_labels) + len(first.val_labels) == 36
    assert first.sha256 == other.sha256


def test_a_folder_that_is_a_task_is_one_and_several_are_found(tmp_path):
    some_task(tmp_path / "b")
    some_task(tmp_path / "a", parts=("train", "test"))
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden" / "x").mkdir(parents=True)
    assert own.image_tasks(tmp_path) == ("a", "b")
    assert list(load_tasks(suite="folder", folder=tmp_path)) == ["a", "b"]
    assert list(load_tasks(["b"], suite="folder", folder=tmp_path)) == ["b"]
    assert list(load_tasks(suite="folder", folder=tmp_path / "b")) == ["b"]
    assert [row["task"] for row in SUITES["folder"].overview(tmp_path)] == ["a", "b"]
    with pytest.raises(UserError, match="unknown task 'c': choose one of a, b"):
        load_tasks(["c"], suite="folder", folder=tmp_path)


def test_sizes_meet_at_the_smallest_and_the_middle_is_kept(tmp_path):
    some_task(tmp_path / "colours", each=6, size=(60, 90))
    image = picture(tmp_path / "colours" / "red" / "small", COLOURS["red"], size=(48, 50), seed=7)
    task = load_one(tmp_path)
    assert task.train_images.shape[1:] == (48, 48, 3)
    everything = torch.cat([task.part(part)[0] for part in ("train", "val", "test")])
    middle = torch.tensor(np.asarray(image)[1:49])
    assert any(torch.equal(each, middle) for each in everything)


def test_large_pictures_are_made_224_pixels_or_what_fits(tmp_path, monkeypatch):
    some_task(tmp_path / "colours", each=4, size=(300, 260), ending="jpg")
    assert load_one(tmp_path).train_images.shape[1:] == (224, 224, 3)
    monkeypatch.setattr(own, "_BYTES", 12 * 3 * 100 * 100)
    assert load_one(tmp_path).train_images.shape[1:] == (100, 100, 3)


def test_pictures_without_colours_are_grey_if_all_are(tmp_path):
    some_task(tmp_path / "grey", each=5, mode="L")
    assert load_one(tmp_path).train_images.shape[1:] == (40, 40)
    picture(tmp_path / "grey" / "red" / "one", COLOURS["red"], seed=77)
    assert load_one(tmp_path).train_images.shape[1:] == (40, 40, 3)


def test_the_way_up_that_a_camera_noted_is_respected(tmp_path):
    some_task(tmp_path / "colours", each=4, parts=("train", "test"))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    place = tmp_path / "colours" / "test" / "blue" / "0"
    image = picture(place, COLOURS["blue"], seed=5000, exif=exif)
    task = load_one(tmp_path)
    assert np.array_equal(task.test_images[0].numpy(), np.asarray(image)[::-1, ::-1])


def test_near_duplicates_are_left_out_of_test_and_said(tmp_path):
    some_task(tmp_path / "colours", parts=("train", "test"))
    for i in range(3):
        brighter = np.asarray(Image.open(tmp_path / f"colours/train/red/{i}.png")) + np.uint8(3)
        Image.fromarray(brighter).save(tmp_path / f"colours/test/red/again{i}.png")
    with pytest.warns(UserWarning, match="'colours': 0 validation and 3 test images are near duplicates"):
        task = load_one(tmp_path)
    assert task.left_out == {"val": 0, "test": 3}
    assert not len(near_duplicates(task)["test"])
    assert len(task.test_labels) == 30


def test_corrupt_files_are_all_named_with_the_reason(tmp_path):
    some_task(tmp_path / "colours")
    whole = (tmp_path / "colours/red/0.png").read_bytes()
    (tmp_path / "colours/red/cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "colours/green/empty.jpg").write_bytes(b"")
    (tmp_path / "colours/blue/page.jpg").write_bytes(b"<html>")
    with pytest.raises(UserError, match="3 of 33 files cannot be read as pictures: ") as caught:
        load_one(tmp_path)
    for name in ("red/cut.png (", "green/empty.jpg (", "blue/page.jpg ("):
        assert str(tmp_path / "colours" / name) in str(caught.value)
    assert str(caught.value).endswith("; repair or delete them")
    for i in range(5):
        (tmp_path / f"colours/red/bad{i}.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"8 of 38 files .* and 3 more; repair"):
        load_one(tmp_path)


def test_what_systems_leave_in_folders_is_no_picture_and_nobodys_mistake(tmp_path):
    some_task(tmp_path / "colours")
    (tmp_path / "colours/red/.DS_Store").write_bytes(b"x")
    (tmp_path / "colours/red/Thumbs.db").write_bytes(b"x")
    (tmp_path / "colours/README.md").write_bytes(b"x")
    task = load_one(tmp_path)
    assert sum(len(task.part(part)[1]) for part in ("train", "val", "test")) == 30


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "red/labels.txt").write_text("x"), r"red/labels.txt in .*: no picture \(.bmp"),
        (lambda f: picture(f / "lost", (9, 9, 9)), r"lost.png in .* or outside the folders of the classes"),
        (lambda f: (f / "red" / "more.png").mkdir(), r"red/more.png in .*: no picture"),
        (lambda f: (f / "violet").mkdir(), r"colours/violet holds no picture; put some there"),
        (lambda f: picture(f / "violet/one", (90, 9, 90)), r"has one example of class 'violet'; give more"),
    ],
)
def test_what_does_not_belong_in_a_folder_is_named(tmp_path, harm, message):
    harm(some_task(tmp_path / "colours"))
    with pytest.raises(UserError, match=message):
        load_one(tmp_path)


def test_parts_whose_classes_differ_are_refused(tmp_path):
    folder = some_task(tmp_path / "colours", parts=("train", "test"))
    picture(folder / "test" / "rot" / "0", COLOURS["red"])
    with pytest.raises(
        UserError, match=r"test/rot is a class without a folder in .*, which has blue, green, red"
    ):
        load_one(tmp_path)
    one = tmp_path / "one"
    picture(one / "red" / "0", COLOURS["red"])
    with pytest.raises(UserError, match="has the class folders red; give at least two classes"):
        load_one(one)
    some_task(tmp_path / "half" / "colours", parts=("train",))
    with pytest.raises(MissingFileError, match=r"there is no folder .*test; --data names a folder with one"):
        load_one(tmp_path / "half")


@pytest.mark.parametrize(("suite", "hint"), [("folder", own.HOW_IMAGES), ("csv", own.HOW_TEXTS)])
def test_a_folder_without_a_task_says_how_one_looks(tmp_path, suite, hint):
    with pytest.raises(MissingFileError, match=re.escape(f"{tmp_path} holds no task; {hint}")):
        load_tasks(suite=suite, folder=tmp_path)
    assert SUITES[suite].overview(tmp_path) == SUITES[suite].overview() == [{"task": "none", "": hint}]


# --- texts -----------------------------------------------------------------------------------------------

WORDS = {"good": "a fine and joyful evening", "bad": "a dull and tiresome evening"}


def some_rows(each=20, *, start=0):
    return [(f"{text} number {start + i}", label) for i in range(each) for label, text in WORDS.items()]


def write_csv(path, rows, header=("text", "label"), encoding="utf-8"):
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *rows])


@needs_vocabulary
def test_two_files_become_the_parts(tmp_path):
    write_csv(tmp_path / "mood.train.csv", some_rows(20))
    write_csv(
        tmp_path / "mood.test.csv",
        [(label, text) for text, label in some_rows(5, start=50)],
        ("label", "text"),
    )
    task = load_one(tmp_path, suite="csv")
    assert (task.name, task.class_names) == ("mood", ("bad", "good"))
    assert labels_of(task, "test") == ["good", "bad"] * 5  # in the order of the file, columns by their names
    assert len(task.train_labels) + len(task.val_labels) == 40
    parts = own.read_texts("mood", tmp_path)[1]
    assert parts[1].texts[0] == "a fine and joyful evening number 50"


@needs_vocabulary
def test_one_file_is_split_by_class_and_copies_do_not_leak(tmp_path):
    rows = [*some_rows(20), *some_rows(20)]  # every text twice
    write_csv(tmp_path / "mood.csv", rows)
    task, other = load_one(tmp_path, suite="csv"), load_one(tmp_path, suite="csv", seed=3)
    assert Counter(labels_of(task, "test")) == {"good": 8, "bad": 8}
    assert torch.equal(task.test_tokens, other.test_tokens)
    seen = {tuple(row.tolist()) for row in torch.cat([task.train_tokens, task.val_tokens])}
    assert not seen & {tuple(row.tolist()) for row in task.test_tokens}
    assert own.text_tasks(tmp_path) == ("mood",)


def test_quotes_line_breaks_and_a_byte_order_mark_are_read(tmp_path):
    rows = [('"Well",\nshe said', "good"), ("no", "bad")] * 3
    write_csv(tmp_path / "mood.csv", rows, encoding="utf-8-sig")
    train, test = own.read_texts("mood", tmp_path)[1]
    assert set(train.texts) | set(test.texts) == {'"Well", she said', "no"}
    assert len(train.texts) + len(test.texts) == 6


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"mood.csv": "text,class\na,b\n"},
            r"mood.csv has no column 'label', only text, class; its first line",
        ),
        ({"mood.csv": ""}, r"has no column 'text', only nothing"),
        ({"mood.csv": "text,label\n"}, "mood.csv holds no text below its first line"),
        (
            {"mood.csv": "text,label\na,x\n,y\nb,\nc\n"},
            r"lacks a text or a label in line 3, line 4, line 5; fill",
        ),
        (
            {"mood.csv": "text,label\na,x\nb,x\n"},
            "mood.csv has the label 'x' alone; give texts of at least two",
        ),
        ({"mood.csv": "text,label\na,x\nb,y\nc,y\n"}, "has one example of class 'x'"),
        ({"mood.train.csv": "text,label\na,x\nb,y\n"}, r"there is no file .*mood.test.csv; --data names"),
        (
            {"mood.train.csv": "text,label\na,x\nb,y\n", "mood.test.csv": "text,label\na,Y\n"},
            r"mood.test.csv has the label 'Y', which no text of .*mood.train.csv has; spell the labels alike",
        ),
        ({"mood.csv": "text,label\n", "mood.test.csv": "text,label\n"}, "are there; keep one kind"),
        (
            {"mood.csv": "text,label\ncaf\xe9,x\n".encode("latin-1")},
            r"is not written in UTF-8 .*; save it as",
        ),
        ({"mood.csv": "text,label\n" + "a" * 200_000 + ",x\n"}, r"mood.csv, line \d: field larger than"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        own.read_texts("mood", tmp_path)


# --- the whole way ---------------------------------------------------------------------------------------


def whole_way(folder, runs, *, suite, backbone):
    """finetune, merge and evaluate on all tasks of a folder; what `evaluate` printed is in the table."""
    made, vector, given = str(runs / "runs"), str(runs / "merged.safetensors"), ["--data", str(folder)]
    training = ["--epochs", "3", "--learning-rate", "1e-3", "--batch-size", "8"]
    for command in (
        ["finetune", "--suite", suite, "--backbone", backbone, *training, "--out", made],
        ["merge", "--runs", made, "--out", vector],
        ["evaluate", "--runs", made, "--vector", vector, "--tune", "0.3", "0.6"],
    ):
        assert command_line.main([*command, *given]) == 0


def test_images_go_the_whole_way(tmp_path, capsys):
    some_task(tmp_path / "data" / "colours", each=16)
    some_task(tmp_path / "data" / "again", each=8, parts=("train", "test"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole_way(tmp_path / "data", tmp_path, suite="folder", backbone="random-pocket")
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("again", "colours", "mean"))}
    assert set(rows) == {"again", "colours", "mean"}
    assert float(rows["colours"][2]) > 0.6  # colours are easy to tell apart


@needs_vocabulary
def test_texts_go_the_whole_way(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "mood.csv", some_rows(30))
    other = [(text, {"good": "yes", "bad": "no"}[label]) for text, label in some_rows(20)]
    write_csv(tmp_path / "data" / "answer.train.csv", other)
    write_csv(tmp_path / "data" / "answer.test.csv", [(f"{text} again", label) for text, label in other[:10]])
    whole_way(tmp_path / "data", tmp_path, suite="csv", backbone="random-pocket-text")
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("answer", "mood", "mean"))}
    assert set(rows) == {"answer", "mood", "mean"}
    assert float(rows["mood"][2]) > 0.6
