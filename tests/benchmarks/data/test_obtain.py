"""The data made anew: archives and texts made and served here, cut, checked, and loaded by the suites."""

import csv
import hashlib
import http.server
import io
import json
import os
import re
import tarfile
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.data import (
    DATA_VARIABLE,
    cut_images,
    cut_texts,
    image_files,
    load_tasks,
    obtain,
    suites,
    texts,
)
from taskvec_mini.errors import FileError, MissingFileError, UserError

NEARBY = Path(__file__).parents[4] / "shared" / "data"
FOLDER = Path(os.environ.get(DATA_VARIABLE) or NEARBY)
needs_data = pytest.mark.skipif(not (FOLDER / "large").is_dir(), reason=f"no data; see {DATA_VARIABLE}")
CLASSES = ("no", "yes")


# --- cutting ---------------------------------------------------------------------------------------------


def pictures(count, size=(20, 20), *, mode="RGB", seed=0):
    """Random pictures by their names in a repository, in no particular order of content."""
    draw = np.random.default_rng(seed)
    shape = (size[1], size[0], 3)[: 3 if mode == "RGB" else 2]
    names = [f"images/{CLASSES[i % 2]}/{i}.png" for i in range(count)]
    return {name: draw.integers(0, 256, shape, dtype=np.uint8) for name in names}


def archive_of(contents, path, *, top="name-commit/"):
    """A tar.gz as GitHub makes them, with a few things that are no pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {"README.md": b"hello", "images/labels.csv": b"0,1", "other/x.png": b"not ours"}
    for name, pixels in contents.items():
        written = io.BytesIO()
        Image.fromarray(pixels).save(written, "PNG")
        files[name] = written.getvalue()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(top + name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def some_source(count, **changes):
    return cut_images.Source(
        **{
            "repository": "someone/something",
            "commit": "0123456789abcdef",
            "megabytes": 1,
            "under": ("images/",),
            "pictures": count,
            "mode": "RGB",
            "cut": "whole",
            "pixels": 20,
            "sha256": "",
            "licence": "ours",
            **changes,
        }
    )


def some_rows(count, test, seed=1, crops=1):
    """Rows of a task: a permutation of all pictures (or their crops), the last `test` of them to test."""
    order = np.random.default_rng(seed).permutation(count * crops)
    rows = {"class_names": np.array(CLASSES)}
    for part, chosen in (("train", order[:-test]), ("test", order[-test:])):
        rows[f"{part}_rows"] = chosen.astype(np.uint16)
        rows[f"{part}_labels"] = (chosen // crops % 2).astype(np.int64)
    return rows


def in_order(contents):
    """The pictures as rows count them: sorted by name, which is not the order of their numbers."""
    return [contents[name] for name in sorted(contents)]


def test_pictures_that_have_their_size_come_out_as_they_are(tmp_path):
    contents = pictures(30)
    rows = some_rows(30, 8)
    found = cut_images.cut(
        "mine", archive_of(contents, tmp_path / "a.tar.gz"), source=some_source(30), rows=rows
    )
    for part in ("train", "test"):
        expected = np.stack([in_order(contents)[i] for i in rows[f"{part}_rows"]])
        assert np.array_equal(found.small[f"{part}_images"], expected)
        assert np.array_equal(found.small[f"{part}_labels"], rows[f"{part}_labels"])
    assert found.large is None
    assert set(found.small) == set(image_files.REQUIRED)


def test_corners_are_squares_of_half_the_short_side(tmp_path):
    contents = pictures(3, size=(50, 40))
    rows = some_rows(3, 4, crops=4)
    source = some_source(3, cut="corners", pixels=20)
    found = cut_images.cut("mine", archive_of(contents, tmp_path / "a.tar.gz"), source=source, rows=rows)
    for part in ("train", "test"):
        for row, number in enumerate(rows[f"{part}_rows"].tolist()):
            whole, crop = in_order(contents)[number // 4], number % 4
            down = slice(0, 20) if crop < 2 else slice(20, 40)
            across = slice(0, 20) if crop % 2 == 0 else slice(30, 50)
            assert np.array_equal(found.small[f"{part}_images"][row], whole[down, across])


def test_squares_grey_and_larger_ones_are_what_pillow_makes(tmp_path):
    contents = pictures(6, size=(61, 40))
    rows = some_rows(6, 2)
    source = some_source(6, cut="square", mode="L", pixels=16, large_pixels=32)
    found = cut_images.cut("mine", archive_of(contents, tmp_path / "a.tar.gz"), source=source, rows=rows)
    large = image_files.decode(found.large["test_bytes"], found.large["test_ends"], grey=True)
    for row, number in enumerate(rows["test_rows"].tolist()):
        square = Image.fromarray(in_order(contents)[number][:, 10:50]).convert("L")
        expected = np.asarray(square.resize((16, 16), Image.BICUBIC))
        assert np.array_equal(found.small["test_images"][row], expected)
        bigger = np.asarray(square.resize((32, 32), Image.BICUBIC)).astype(int)
        assert large.shape == (2, 32, 32)
        # lossy, so not equal: but of this picture rather than of another one
        apart = [np.abs(other.astype(int) - bigger).mean() for other in large]
        assert np.argmin(apart) == row


def test_the_checksum_is_of_the_pictures_row_by_row(tmp_path):
    contents, rows = pictures(12), some_rows(12, 4)
    archive = archive_of(contents, tmp_path / "a.tar.gz")
    first = cut_images.cut("mine", archive, source=some_source(12), rows=rows)
    packed_anew = archive_of(dict(reversed(contents.items())), tmp_path / "b.tar.gz", top="else-where/")
    assert cut_images.cut("mine", packed_anew, source=some_source(12), rows=rows).sha256 == first.sha256
    other_order = {**rows, "train_rows": rows["train_rows"][::-1]}
    assert cut_images.cut("mine", archive, source=some_source(12), rows=other_order).sha256 != first.sha256
    one_pixel = {**contents, "images/no/0.png": contents["images/no/0.png"] ^ np.uint8(1)}
    changed = archive_of(one_pixel, tmp_path / "c.tar.gz")
    assert cut_images.cut("mine", changed, source=some_source(12), rows=rows).sha256 != first.sha256


def test_the_checksum_is_of_the_crops_too(tmp_path):
    archive = archive_of(pictures(3), tmp_path / "a.tar.gz")
    source = some_source(3, cut="corners", pixels=10)
    rows = some_rows(3, 4, crops=4)
    other = {**rows, "train_rows": rows["train_rows"] // 4 * 4 + 3 - rows["train_rows"] % 4}
    sums = {cut_images.cut("mine", archive, source=source, rows=each).sha256 for each in (rows, other)}
    assert len(sums) == 2


def test_an_archive_that_is_damaged_or_another_is_refused(tmp_path):
    contents, rows = pictures(12), some_rows(12, 4)
    archive = archive_of(contents, tmp_path / "a.tar.gz")
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>", whole[:5000] + b"\0" * 50 + whole[5050:]):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=re.escape(f"{archive}") + ".*; delete .* and call again"):
            cut_images.cut("mine", archive, source=some_source(12), rows=rows)
    archive.write_bytes(whole)
    with pytest.raises(UserError, match=r"has 12 pictures below images/, not 13; delete it and call again"):
        cut_images.cut("mine", archive, source=some_source(13), rows=rows)


TEXT_FILES = {  # tiny files in the formats of the sources
    "sst2": {"stsa.binary.train": "1 good film .\n0 bad\tfilm .\n", "stsa.binary.test": "0 no\n1 yes\n"},
    "subj": {"subj.objective": "he goes . \n", "subj.subjective": "a soufflé . \n\n"},
    "trec6": {
        "TREC.train": "DESC:manner How did it ?\nNUM:count How many ?\n",
        "TREC.test": "HUM:ind Who ?\nABBR:exp What is A ?\n",
    },
    "cola": {
        "in_domain_train.tsv": "gj04\t1\t\tHe left.\ngj04\t0\t*\tHim left.\n",
        "in_domain_dev.tsv": "gj04\t1\t\tIn.\n",
        "out_of_domain_dev.tsv": "gj04\t0\t*\tOut.\n",
    },
    "agnews": {
        "dev.tsv": "It #39;s quot;odd quot; at AT amp;T\tBusiness\n"
        "&lt;b&gt;Big\\news&lt;/b&gt;  #36;5\tWorld\n",
        "test.tsv": "One #151; two  #8212; three #8217;s\tSports\nFour #38; five\tSci/Tech\n",
    },
    "dbpedia14": {
        "val.csv": '"1","A, B ""C"""\n"2","D"\n',
        "test.csv": '"2","E"\n"1","F"\n',
        "meta.txt": "1: Film\n2: Plant\n#train: 2\n",
    },
    "sms_spam": {"SMSSpamCollection": "Label\tSMS\nham\tHi\tyou\nspam\tWin £5\n"},
    "banking77": {
        "train.csv": 'text,category\n"Where, please?",card_arrival\n"Two\nlines",age_limit\n',
        "test.csv": "text,category\nWhen?,age_limit\nWhy?,card_arrival\n",
    },
    "clinc10": {
        "data_full.json": json.dumps(
            {
                "train": [["pay it", "pay_bill"], ["go", "route"]],
                "test": [["stay", "route"], ["pay", "pay_bill"]],
            }
        ),
        "domains.json": json.dumps({"banking": ["pay_bill"], "travel": ["route"]}),
    },
    "emotion": {
        "train_text.txt": "so sad \nso glad \n",
        "train_labels.txt": "3\n1",
        "test_text.txt": "angry \nhopeful \n",
        "test_labels.txt": "0\n2",
        "mapping.txt": "0\tanger\n1\tjoy\n2\toptimism\n3\tsadness",
    },
}
TEXT_LINES = {
    "sst2": (["good film .\tpositive", "bad film .\tnegative"], ["no\tnegative", "yes\tpositive"]),
    "subj": (["he goes .\tobjective", "a soufflé .\tsubjective"],) * 2,
    "trec6": (
        ["How did it ?\tdescription", "How many ?\tnumber"],
        ["Who ?\thuman", "What is A ?\tabbreviation"],
    ),
    "cola": (["He left.\tacceptable", "Him left.\tunacceptable"], ["In.\tacceptable", "Out.\tunacceptable"]),
    "agnews": (
        ['It\'s "odd "at AT &T\tBusiness', "Big news $5\tWorld"],
        ["One two — three’s\tSports", "Four& five\tSci/Tech"],
    ),
    "dbpedia14": (['A, B "C"\tFilm', "D\tPlant"], ["E\tPlant", "F\tFilm"]),
    "sms_spam": (["Hi you\tham", "Win £5\tspam"],) * 2,
    "banking77": (
        ["Where, please?\tcard_arrival", "Two lines\tage_limit"],
        ["When?\tage_limit", "Why?\tcard_arrival"],
    ),
    "clinc10": (["pay it\tbanking", "go\ttravel"], ["stay\ttravel", "pay\tbanking"]),
    "emotion": (["so sad\tsadness", "so glad\tjoy"], ["angry\tanger", "hopeful\toptimism"]),
}


@pytest.mark.parametrize("name", TEXT_FILES)
def test_every_source_of_texts_is_read_and_its_rows_are_put_in_order(name):
    encoding = "cp1252" if name == "subj" else "utf-8"
    files = {file: content.encode(encoding) for file, content in TEXT_FILES[name].items()}
    backwards = {part: np.array([1, 0]) for part in ("train_rows", "test_rows")}
    found = cut_texts.cut(name, files, backwards)
    for part, lines in zip(("train", "test"), TEXT_LINES[name], strict=True):
        assert found[part] == "\n".join(["text\tlabel", *reversed(lines)]) + "\n"
    labels = {line.partition("\t")[2] for lines in TEXT_LINES[name] for line in lines}
    assert labels <= set(texts.sources()[name].classes)


def test_every_task_has_a_source_that_names_what_its_reader_reads():
    assert set(cut_texts.sources()) == set(texts.sources()) == set(TEXT_FILES)
    for name, source in cut_texts.sources().items():
        assert {file.rpartition("/")[2] for file in source.files} == set(TEXT_FILES[name])
    assert set(cut_images.sources()) == set(suites.bundle_files())
    for name, source in cut_images.sources().items():
        rows = cut_images.stored_rows(name)
        crops = 4 if source.cut == "corners" else 1
        both = np.concatenate([rows["train_rows"], rows["test_rows"]])
        assert both.max() < source.pictures * crops
        assert len(rows["train_rows"]) == len(rows["train_labels"])


@needs_data
@pytest.mark.parametrize("name", ["scenes15", "sign_digits", "gtsrb"])
def test_the_stored_rows_and_checksums_are_those_of_the_recorded_files(name):
    rows = cut_images.stored_rows(name)
    for table in suites.file_tables().values():
        if name in table:
            path = FOLDER / table[name].file
            with np.load(path) as stored:
                for key in rows.keys() - {"train_rows", "test_rows"}:
                    assert np.array_equal(rows[key], stored[key]), key
            assert image_files.contents(path, remedy="") == table[name].contents


# --- fetching and cutting, from a server -----------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A server with one task of images, in two sizes, and one of texts; and the tables that name them."""
    site, out = tmp_path / "site", tmp_path / "out"
    contents, rows = pictures(60, size=(24, 24)), some_rows(60, 20)
    source = some_source(60, pixels=12, large_pixels=24)
    archive = archive_of(contents, site / source.archive)
    made = cut_images.cut("mine", archive, source=source, rows=rows)
    monkeypatch.setattr(cut_images, "sources", lambda: {"mine": replace(source, sha256=made.sha256)})
    tables = {}
    for suite, arrays, file in (("bundle", made.small, "mine.npz"), ("large", made.large, "large/mine.npz")):
        tables[suite] = {"mine": suites.BundleFile(file, "0" * 64, image_files.checksum(arrays))}
    monkeypatch.setattr(suites, "file_tables", lambda: tables)
    monkeypatch.setattr(suites, "bundle_files", lambda: tables["bundle"])
    monkeypatch.setattr(suites, "SUITES", {**suites.SUITES, **suites_of(tables)})

    files = {file: content.encode() for file, content in TEXT_FILES["sst2"].items()}
    text_rows = {"train_rows": np.array([1, 0]), "test_rows": np.array([0, 1])}
    hashes = {f"data/{file}": hashlib.sha256(content).hexdigest() for file, content in files.items()}
    words = cut_texts.Source("someone/words", "fedcba9876543210", 1, hashes, "ours")
    monkeypatch.setattr(cut_texts, "sources", lambda: {"sst2": words})
    for file, content in files.items():
        place = site / words.address(f"data/{file}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    cut = cut_texts.cut("sst2", files, text_rows)
    sums = {f"{part}_sha256": hashlib.sha256(content.encode()).hexdigest() for part, content in cut.items()}
    known = {"sst2": replace(texts.sources()["sst2"], **sums)}
    monkeypatch.setattr(texts, "sources", lambda: known)
    monkeypatch.setattr(cut_images, "stored_rows", lambda name: rows if name == "mine" else text_rows)

    handler = type("Recording", (Handler,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield SimpleNamespace(
            address=f"http://127.0.0.1:{server.server_port}",
            site=site,
            out=out,
            archive=archive,
            contents=contents,
            rows=rows,
            made=made,
            text=cut,
            asked=handler.asked,
            tables=tables,
        )
        server.shutdown()


def suites_of(tables):
    return {
        suite: replace(
            suites.SUITES[suite],
            names=lambda table=table: table,
            most=None,
        )
        for suite, table in tables.items()
    }


def test_a_command_makes_all_files_and_the_suites_load_them(world, capsys):
    assert command_line.main(["data", "--out", str(world.out), "--address", world.address]) == 0
    printed = capsys.readouterr().out
    assert printed.count("as in the records") == 2
    assert sorted(str(each.relative_to(world.out)) for each in world.out.rglob("*") if each.is_file()) == [
        "large/mine.npz",
        "large/mine.npz.sha256",
        "mine.npz",
        "mine.npz.sha256",
        "text/sst2.test.tsv",
        "text/sst2.train.tsv",
    ]
    for part, content in world.text.items():
        assert (world.out / "text" / f"sst2.{part}.tsv").read_bytes() == content.encode()
    for suite, pixels in (("bundle", 12), ("large", 24)):
        task = load_tasks(["mine"], suite=suite, folder=world.out)["mine"]
        assert task.train_images.shape[1:] == (pixels, pixels, 3)
        assert task.sha256 == "0" * 64  # that of the recorded file: its arrays are the same
        assert len(task.test_labels) == 20
    expected = np.stack(
        [
            np.asarray(Image.fromarray(in_order(world.contents)[i]).resize((12, 12), Image.BICUBIC))
            for i in world.rows["test_rows"]
        ]
    )
    task = load_tasks(["mine"], suite="bundle", folder=world.out)["mine"]
    assert np.array_equal(task.test_images.numpy(), expected)


def test_what_is_there_is_not_fetched_again_and_what_is_damaged_is(world):
    call = partial(obtain.obtain, None, world.out, address=world.address)
    assert call() == {"mine": obtain.SAME, "sst2": obtain.SAME}
    before = len(world.asked)
    assert before == 3
    assert call() == {"mine": obtain.SAME, "sst2": obtain.SAME}
    assert len(world.asked) == before
    for file in ("large/mine.npz", "text/sst2.test.tsv"):
        (world.out / file).write_bytes((world.out / file).read_bytes()[:-3])
    assert call() == {"mine": obtain.SAME, "sst2": obtain.SAME}
    assert len(world.asked) == 2 * before


def test_a_call_that_failed_goes_on_with_what_is_not_done(world):
    words = world.site / "someone" / "words"
    words.rename(world.site / "hidden")
    with pytest.raises(MissingFileError, match=r"stsa.binary.train is not to be had"):
        obtain.obtain(None, world.out, address=world.address)
    (world.site / "hidden").rename(words)
    assert obtain.obtain(None, world.out, address=world.address)["sst2"] == obtain.SAME
    assert sum("archive" in path for path in world.asked) == 1


def test_sources_can_be_kept_and_put_there_by_hand(world):
    obtain.obtain(["mine"], world.out, address=world.address, keep=True)
    kept = world.out / "sources" / "someone+something-0123456789abcdef.tar.gz"
    assert kept.read_bytes() == world.archive.read_bytes()
    other = world.out.parent / "other"
    (other / "sources").mkdir(parents=True)
    kept.rename(other / "sources" / kept.name)
    before = len(world.asked)
    assert obtain.obtain(["mine"], other, address=world.address) == {"mine": obtain.SAME}
    assert len(world.asked) == before
    assert not (other / "sources").exists()


def test_other_pictures_under_the_same_names_are_refused(world):
    archive_of(pictures(60, size=(24, 24), seed=5), world.archive)
    with pytest.raises(
        UserError, match=r"has other pictures than those of the records .* delete it and call"
    ):
        obtain.obtain(["mine"], world.out, address=world.address)
    assert not (world.out / "mine.npz").exists()


def test_other_texts_under_the_same_name_are_refused(world):
    place = next(world.site.glob("someone/words/raw/*/data/stsa.binary.test"))
    place.write_bytes(place.read_bytes() + b"1 more\n")
    with pytest.raises(UserError, match=r"stsa.binary.test has the sha256 .* and was deleted"):
        obtain.obtain(["sst2"], world.out, address=world.address)
    assert not (world.out / "text").exists()


def test_another_decoder_makes_files_of_their_own_which_are_taken_and_said(world, capsys):
    table = world.tables["large"]
    table["mine"] = replace(table["mine"], contents="1" * 64)  # as if WebP were written in another way there
    assert (
        command_line.main(["data", "--out", str(world.out), "--address", world.address, "--tasks", "mine"])
        == 0
    )
    assert obtain.OTHER in capsys.readouterr().out
    task = load_tasks(["mine"], suite="large", folder=world.out)["mine"]
    assert task.sha256 == hashlib.sha256((world.out / "large/mine.npz").read_bytes()).hexdigest()
    assert load_tasks(["mine"], suite="bundle", folder=world.out)["mine"].sha256 == "0" * 64
    path = world.out / "large" / "mine.npz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"mine.npz is truncated or corrupted .* `python -m taskvec_mini.bench"
    ):
        load_tasks(["mine"], suite="large", folder=world.out)


def test_a_disk_too_small_is_noticed_before_anything_is_fetched(world, monkeypatch):
    monkeypatch.setattr(obtain.shutil, "disk_usage", lambda _: SimpleNamespace(free=7 * 10**6))
    with pytest.raises(
        FileError, match=r"has 7 MB free, and 302 MB are needed: nothing was fetched; ask for fe"
    ):
        obtain.obtain(None, world.out, address=world.address)
    assert world.asked == []


def test_a_list_says_what_there_is_and_fetches_nothing(world, capsys):
    command = ["data", "--list", "--out", str(world.out), "--address", world.address]
    assert command_line.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("not there") == 2
    assert "github.com/someone/something at 01234567" in printed
    obtain.obtain(["sst2"], world.out, address=world.address)
    assert command_line.main(command) == 0
    assert capsys.readouterr().out.count("as in the records") == 1
    assert len(world.asked) == 2


@pytest.mark.parametrize("arguments", [[], ["--list"]])
def test_a_mistyped_name_is_one_line(capsys, arguments):
    assert command_line.main(["data", "--tasks", "scenes", *arguments]) == 2
    assert "unknown task 'scenes': did you mean 'scenes15'" in capsys.readouterr().err


def test_csv_is_read_as_csv():  # the sources' quotes and line breaks are those of Python's own reader
    written = io.StringIO()
    csv.writer(written).writerows([["text", "category"], ['a "b", c', "age_limit"]])
    files = {"train.csv": written.getvalue().encode(), "test.csv": written.getvalue().encode()}
    assert cut_texts.read("banking77", files)[0] == [('a "b", c', "age_limit")]
