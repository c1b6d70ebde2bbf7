"""Text tasks: what a part holds, parts without a common text, and errors that name file, line and remedy."""

import os
import re
from pathlib import Path

import pytest
import torch

from small_texts import ROWS, TEST_ROWS, Words, as_read, files, tiny_text_task
from taskvec_mini.benchmarks.data import DATA_VARIABLE, SUITES, TextTask, load_tasks, texts
from taskvec_mini.errors import UserError

__all__ = ["files"]  # a fixture
PARTS = ("train", "val", "test")
NEARBY = Path(__file__).parents[4] / "shared" / "data"
DATA = Path(os.environ.get(DATA_VARIABLE) or NEARBY)
needs_files = pytest.mark.skipif(
    not (DATA / "text" / "sst2.train.tsv").exists(), reason=f"no texts; {DATA_VARIABLE} tells where they are"
)


class Ledger:
    """A tokenizer that can be undone: a text is the number of its first appearance, counted from 1."""

    sha256 = "2" * 64

    def __init__(self):
        self.texts = []

    def encode(self, texts):
        self.texts += texts
        numbers = range(len(self.texts) - len(texts) + 1, len(self.texts) + 1)
        return torch.tensor(list(numbers), dtype=torch.int32)[:, None]

    def rows(self, task, part):
        """The texts of a part with their class names, in its order."""
        tokens, labels = task.part(part)
        return [
            (self.texts[number - 1], task.class_names[label])
            for (number,), label in zip(tokens.tolist(), labels.tolist(), strict=True)
        ]


def load(folder, name="sst2", **more):
    """A task and the rows of its parts."""
    ledger = Ledger()
    task = load_tasks([name], suite="text", folder=folder, tokenizer=ledger, **more)[name]
    return task, {part: ledger.rows(task, part) for part in PARTS}


# --- what the parts hold ---------------------------------------------------------------------------------


def test_the_parts_are_the_rows_of_the_files(files):
    task, rows = load(files())
    assert sorted(rows["train"] + rows["val"]) == sorted(ROWS)
    assert len(rows["val"]) == 6, "a tenth"
    assert rows["test"] == TEST_ROWS
    assert rows["train"] != sorted(rows["train"], key=ROWS.index), "in a shuffled order"
    assert task.class_names == ("negative", "positive"), "in the order of the table, not of the rows"
    assert repr(task) == "TextTask('sst2', 2 classes, 1 tokens, 54 train, 6 val, 8 test)"


def test_tokens_are_those_of_the_tokenizer(files):
    task = load_tasks("sst2", suite="text", folder=files(), tokenizer=Words())["sst2"]
    assert torch.equal(task.test_tokens, Words().encode([text for text, _ in TEST_ROWS]))
    assert task.test_labels.tolist() == [label == "positive" for _, label in TEST_ROWS]
    assert (task.train_tokens.dtype, task.train_labels.dtype) == (torch.int32, torch.int64)


def test_the_seed_decides_what_validates_and_nothing_else(files):
    folder = files()
    (_, first), (_, again), (_, other) = (load(folder, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert set(first["val"]) != set(other["val"])
    assert first["test"] == other["test"]


def test_a_limit_keeps_the_first_training_texts(files):
    folder = files()
    (_, whole), (_, cut) = load(folder), load(folder, limit=7)
    assert cut == {**whole, "train": whole["train"][:7]}


def test_texts_that_differ_in_case_and_white_space_stay_on_one_side(files):
    """Sixty texts, each in three spellings: wherever one of them validates, the others do."""
    spellings = [
        (each, label) for text, label in ROWS for each in (text, text.upper(), f"{text} ".replace(" ", "  "))
    ]
    folder = files(train=spellings)
    for seed in range(12):
        _, rows = load(folder, seed=seed)
        sides = [{" ".join(text.lower().split()) for text, _ in rows[part]} for part in ("train", "val")]
        assert not sides[0] & sides[1]
        assert len(rows["val"]) == 18, "a tenth of the rows, six texts"
        assert len(rows["train"]) == 162, "repeats are kept"


def test_a_training_text_that_stands_in_the_test_part_is_left_out(files):
    leaked = [("ANOTHER  3", "negative"), ("another 30", "negative")]
    _, rows = load(files(train=[*ROWS, *leaked]))
    assert sorted(rows["train"] + rows["val"]) == sorted([*ROWS, leaked[1]])
    assert rows["test"] == TEST_ROWS


def test_the_checksum_tells_files_and_tokenizer(files):
    other = Words()
    other.sha256 = "3" * 64
    found = [
        load_tasks("sst2", suite="text", folder=files(), tokenizer=each)["sst2"].sha256
        for each in (Words(), other)
    ]
    found.append(
        load_tasks("sst2", suite="text", folder=files(test=TEST_ROWS[1:]), tokenizer=other)["sst2"].sha256
    )
    assert len(set(found)) == 3


def test_the_folder_and_the_tokenizer_have_defaults(files, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(files()))
    monkeypatch.setattr("taskvec_mini.benchmarks.data.tokenizer.load_tokenizer", Words)
    found = load_tasks(["sst2"], suite="text", limit=5, seed=3)["sst2"]
    expected = load_tasks(["sst2"], suite="text", limit=5, seed=3, tokenizer=Words())["sst2"]
    assert all(
        torch.equal(*pair)
        for part in PARTS
        for pair in zip(found.part(part), expected.part(part), strict=True)
    )


def test_an_overview_needs_no_tokenizer(files, monkeypatch):
    monkeypatch.setattr("taskvec_mini.benchmarks.data.tokenizer.load_tokenizer", None)
    rows = {row["task"]: row for row in SUITES["text"].overview(files())}
    assert rows["sst2"] == {"task": "sst2", "classes": "2", "train": "54", "val": "6", "test": "8", "": ""}
    assert "cola.train.tsv is missing" in str(rows["cola"][""])
    assert SUITES["text"].overview()[0] == {"task": "sst2", "files": "sst2.train.tsv, sst2.test.tsv"}


# --- the real files --------------------------------------------------------------------------------------


def published():
    """The rows and the checksums of both files of each task, from the page that came with the files."""
    page = (DATA / "text" / "README.md").read_text(encoding="utf-8")
    sizes = re.findall(r"^\| (\w+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|", page, re.MULTILINE)
    sums = {
        section.split()[0]: tuple(re.findall(r"sha256 t\w+ `(\w{64})`", section))
        for section in page.split("\n## ")[1:]
    }
    return {name: ([int(n.replace(",", "")) for n in found], sums[name]) for name, *found in sizes}


@needs_files
def test_checksums_and_classes_are_those_published_with_the_files():
    found = published()
    known = texts.sources()
    assert {name: sums for name, (_, sums) in found.items()} == {
        name: (source.train_sha256, source.test_sha256) for name, source in known.items()
    }
    assert {name: sizes[0] for name, (sizes, _) in found.items()} == {
        name: len(source.classes) for name, source in known.items()
    }


@needs_files
@pytest.mark.parametrize("name", SUITES["text"].tasks)
def test_no_text_of_the_real_files_stands_in_two_parts(name):
    task, rows = load(DATA, name)
    train, test = published()[name][0][1:]
    assert (len(rows["train"]) + len(rows["val"]), len(rows["test"])) == (train, test), "every row is used"
    assert len(rows["val"]) == round(train / 10)
    seen = [{re.sub(r"\s+", " ", text).strip().lower() for text, _ in rows[part]} for part in PARTS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    for part in PARTS:
        assert {label for _, label in rows[part]} == set(task.class_names)


# --- errors ----------------------------------------------------------------------------------------------


def test_a_file_that_changed_is_refused(files):
    folder = files()
    path = folder / "text" / "sst2.train.tsv"
    for content in (path.read_bytes()[:-5], path.read_bytes().replace(b"good", b"bad!")):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"sst2\.train\.tsv is truncated or corrupted \({len(content):,} "
        ):
            load(folder)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            as_read(ROWS).replace("text 1 is bad\t", "text 1 is bad "),
            "line 3: no tab in 'text 1 is bad negative'",
        ),
        (
            as_read(ROWS).replace("bad\tnegative", "bad\tnegativ"),
            "line 3: 'negativ' is no class of the task; its 2",
        ),
        (as_read(ROWS).replace("text 1 is bad\t", "a\tb\t"), r"line 3: 'b\tnegative' is no class"),
        (as_read(ROWS) + "\n", "line 62: no tab in ''"),
        (
            as_read(ROWS).replace("text\tlabel", "label\ttext"),
            r"begins with 'label\ttext'; its first line must be",
        ),
        (as_read(ROWS[:1]), "no validation part"),
    ],
)
def test_lines_that_cannot_be_read_are_named(files, train, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        load(files(train=train))
    assert "sst2" in str(refused.value)


def test_what_is_missing_is_named_with_its_remedy(files, tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(
        ValueError, match=r"give folder=... or set the environment variable TASKVEC_MINI_DATA"
    ):
        load(None)
    with pytest.raises(
        FileNotFoundError,
        match=r"nowhere.text is no folder; give the folder of the data .* suite='text-hub' downloads",
    ):
        load(tmp_path / "nowhere")
    folder = files()
    with pytest.raises(FileNotFoundError, match=r"cola\.train\.tsv is missing; .* leave the task 'cola' out"):
        load(folder, "cola")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"names": ["sst"]}, "unknown task 'sst': did you mean 'sst2'"),
        ({"names": []}, "names is empty"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_tasks(**{"names": ["sst2"], "suite": "text", "tokenizer": Words(), **words})


def test_an_unknown_suite_is_told_of_the_suites_of_texts():
    with pytest.raises(ValueError, match="unknown suite 'texts': did you mean 'text'"):
        load_tasks(suite="texts")


def test_a_tokenizer_that_gives_something_else_is_refused(files):
    class Wrong(Words):
        def encode(self, texts):
            return super().encode(texts).long()

    with pytest.raises(TypeError, match=r"text.sst2: task 'sst2', train: tokens must be int32 .*int64"):
        load_tasks("sst2", suite="text", folder=files(), tokenizer=Wrong())


BROKEN = {
    "long tokens": ({"val_tokens": torch.ones(9, 7).long()}, TypeError, "val: tokens must be int32"),
    "float labels": ({"val_labels": torch.ones(9)}, TypeError, "got torch.int32 and torch.float32"),
    "one text": ({"test_tokens": torch.ones(7).int()}, ValueError, r"tokens must be \(N, L\)"),
    "a label less": ({"val_labels": torch.zeros(8).long()}, ValueError, r"got \(9, 7\) and \(8,\)"),
    "nothing": (
        {"val_tokens": torch.ones(0, 7).int(), "val_labels": torch.ones(0).long()},
        ValueError,
        "at least one",
    ),
    "below padding": ({"val_tokens": -torch.ones(9, 7).int()}, ValueError, "must be at least 0, got -1"),
    "no such class": ({"val_labels": torch.full((9,), 3)}, ValueError, "run from 3 to 3 for 3 classes"),
    "hidden labels": ({"val_labels": torch.full((9,), -1)}, ValueError, "run from -1 to -1"),
    "another length": ({"val_tokens": torch.ones(9, 6).int()}, ValueError, "val texts of 6 tokens .* 7"),
}


@pytest.mark.parametrize(("change", "error", "message"), BROKEN.values(), ids=BROKEN)
def test_a_task_that_cannot_be_is_not_made(change, error, message):
    whole = tiny_text_task()
    fields = {name: getattr(whole, name) for name in TextTask.__dataclass_fields__ if name != "unit"}
    with pytest.raises(error, match=message):
        TextTask(**{**fields, **change})


def test_there_is_no_fourth_part():
    with pytest.raises(ValueError, match="unknown part 'valid': did you mean 'val'"):
        tiny_text_task().part("valid")


def test_what_a_tokenizer_cannot_cut_is_said_with_the_file(files, monkeypatch):
    class Strict(Words):
        def encode(self, texts):
            raise UserError("text 0 holds no token ('')")

    with pytest.raises(ValueError, match=r"text.sst2: text 0 holds no token"):
        load_tasks("sst2", suite="text", folder=files(), tokenizer=Strict())
