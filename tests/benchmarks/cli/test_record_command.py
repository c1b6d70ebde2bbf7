"""`record` and `list`: studies, where their records go, and what becomes of one that cannot be written."""

import re
import shutil

import pytest

from taskvec_mini import records
from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.cli import record as record_command
from taskvec_mini.benchmarks.cli.parser import parse
from taskvec_mini.benchmarks.data import DATA_VARIABLE
from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.studies import STUDIES, StudyRequest


@pytest.fixture(autouse=True)
def _no_folder_of_data(monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)


def call(*words):
    """The exit status of one command line."""
    return command_line.main([str(word) for word in words])


# --- list ------------------------------------------------------------------------------------------------


def line_of(text, word):
    return next(line for line in text.splitlines() if line.split()[:1] == [word])


def test_list_shows_what_there_is_and_what_is_missing(capsys):
    assert call("list") == 0
    text = capsys.readouterr().out
    assert "TASKVEC_MINI_DATA names (not set)" in text
    assert line_of(text, "sign_digits").split() == ["sign_digits", "extra/sign_digits.npz"]
    assert line_of(text, "inverted").split() == ["inverted", "10", "8x8", "grey", "1,213", "135", "449"]
    assert line_of(text, "svhn").split() == ["svhn", "73,257", "26,032", "not", "yet", "there"]
    assert "NOT AVAILABLE" in line_of(text, "mobilenet")
    assert f"{sum(p.numel() for p in load_backbone('random-pocket').model.parameters()):,}" in text
    assert "density=0.2" in line_of(text, "ties")
    assert "--seed" in line_of(text, "dare")
    assert "ViT-L-14-quickgelu" in text
    assert line_of(text, "05_first_epoch").split(maxsplit=1)[1].startswith("the first epoch of eight tasks")


def test_list_says_which_file_is_damaged_and_goes_on(tmp_path, capsys):
    (tmp_path / "mnist.npz").write_bytes(b"PK and no more")
    assert call("list", "--data", tmp_path) == 0
    text = capsys.readouterr().out
    assert f"suite bundle: real images in small files, in {tmp_path}" in text
    assert re.search(r"^  mnist .* is truncated or corrupted", text, re.MULTILINE)
    assert re.search(
        r"^  cars .* is missing; make it with `python -m taskvec_mini.benchmarks data --tasks cars ",
        text,
        re.MULTILINE,
    )
    assert line_of(text, "inverted")


def test_list_looks_into_the_folder_of_the_environment(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert call("list") == 0
    assert (
        f"suite text: short English texts in small files, in {tmp_path / 'text'}" in capsys.readouterr().out
    )


# --- record ----------------------------------------------------------------------------------------------


class Sums:
    """A study that knows its checksums only after it has run."""

    description = "sums"
    request = StudyRequest
    seeds = (0, 1)
    device = "cpu"

    def __init__(self, results, spoil=lambda: None):
        self.results, self.settings, self.spoil, self.asked = results, {"epochs": 3}, spoil, []

    def run(self, request):
        self.asked.append(request)
        self.data = {"a.npz": "0" * 64}
        self.spoil()
        return {"found": self.results}


@pytest.fixture
def sums(monkeypatch):
    study = Sums([0.5])
    monkeypatch.setitem(STUDIES, "sums", study)
    return study


def test_record_writes_a_complete_record_whose_command_parses(sums, tmp_path, monkeypatch, capsys):
    sums.device = "cuda"
    real = records.provenance
    monkeypatch.setattr(
        records, "provenance", lambda device="cpu": {**real(), "device": f"a {device} device"}
    )
    path = tmp_path / "new" / "sums.json"
    assert call("record", "sums", "--data", tmp_path, "--out", path) == 0
    found = records.read(path)
    assert sums.asked == [StudyRequest(data=tmp_path)]
    assert found["results"] == {"found": [0.5]}
    assert found["device"] == "a cuda device"
    assert (found["seeds"], found["settings"], found["data"]) == ([0, 1], {"epochs": 3}, {"a.npz": "0" * 64})
    assert found["command"] == "python -m taskvec_mini.benchmarks record sums"
    assert parse(found["command"].split()[3:]).study == "sums"
    assert str(path) in capsys.readouterr().out


def test_a_study_without_numbers_leaves_the_older_record(sums, tmp_path, capsys):
    path = tmp_path / "sums.json"
    assert call("record", "sums", "--out", path) == 0
    sums.results = [float("nan")]
    assert call("record", "sums", "--out", path) == 2
    assert records.read(path)["results"]["found"] == [0.5]
    assert "results['found'][0] is nan" in capsys.readouterr().err


def test_records_go_to_the_book_or_to_where_the_user_stands(sums, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record_command, "_REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call("record", "sums") == 0  # no book, as after pip install
    assert records.read(tmp_path / "sums.json")
    (tmp_path / "book" / "recorded").mkdir(parents=True)
    assert call("record", "sums") == 0
    assert records.read(tmp_path / "book" / "recorded" / "sums.json")


def test_an_option_of_another_study_is_refused(sums, tmp_path, capsys):
    assert call("record", "sums", "--joint", "--out", tmp_path / "sums.json") == 2
    said = capsys.readouterr().err
    assert "the study 'sums' takes no --joint, only clip does; leave it out" in said
    assert sums.asked == []


def test_a_place_that_cannot_be_written_is_refused_before_the_study_runs(sums, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    for path, why in ((tmp_path, "is a folder"), (tmp_path / "file" / "sums.json", "could not be written")):
        assert call("record", "sums", "--out", path) == 2
        said = capsys.readouterr().err
        assert str(path) in said
        assert why in said
    assert sums.asked == []


def test_a_record_that_no_longer_fits_its_place_is_kept_elsewhere(sums, tmp_path, monkeypatch, capsys):
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    sums.spoil = lambda: (shutil.rmtree(place), place.write_text("a file"))
    assert call("record", "sums", "--out", place / "sums.json") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: there is no folder {place} to write sums.json into")
    kept = re.search(r"the record is in (\S+): make room", said)[1]
    assert records.read(kept)["results"] == {"found": [0.5]}
    assert kept.startswith(str(elsewhere))
