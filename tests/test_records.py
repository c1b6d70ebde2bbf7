"""Records: written whole or not at all, complete or refused; and those of this repository are complete."""

import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache

import numpy as np
import pytest
import torch

from conftest import ROOT
from taskvec_mini import records
from taskvec_mini.benchmarks.cli.parser import parse
from taskvec_mini.benchmarks.cli.requests import RecordRequest
from taskvec_mini.benchmarks.studies import STUDIES
from taskvec_mini.errors import UserError

FIELDS = [
    *("command", "commit", "date", "device", "versions"),
    *("seeds", "seconds", "data", "settings", "results"),
]
DIGEST = hashlib.sha256(b"images").hexdigest()
COMPLETE = {
    "command": "python -m taskvec_mini.benchmarks record sums",
    "commit": "0" * 40,
    "date": "2026-01-31",
    "device": "two threads",
    "versions": {"torch": "2.15.0"},
    "seeds": [0, 1],
    "seconds": 1.5,
    "data": {"mnist.npz": DIGEST},
    "settings": {"epochs": 3},
    "results": {"mnist": [0.5, 0.75], "note": None, "fine": True},
}


def put(path, record):
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def write(path, results, **changes):
    about = {"command": "python sums.py", "seeds": [0], "seconds": 1.0, **changes}
    return records.write(path, results, **about)


# --- writing and reading ---------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read(tmp_path):
    path = tmp_path / "sums.json"
    origin = {name: COMPLETE[name] for name in ("commit", "date", "device", "versions")}
    given = {name: COMPLETE[name] for name in ("command", "seeds", "seconds", "settings", "data")}
    returned = records.write(path, COMPLETE["results"], **given, origin=origin)
    assert returned == records.read(path) == COMPLETE
    assert list(json.loads(path.read_text(encoding="utf-8"))) == FIELDS, "always in one order"
    assert [each.name for each in tmp_path.iterdir()] == ["sums.json"]


def test_floats_come_back_to_the_last_bit(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, np.float64(2) ** 0.5]
    write(tmp_path / "a.json", values)
    found = records.read(tmp_path / "a.json")["results"]
    assert [value.hex() for value in found] == [float(value).hex() for value in values]
    assert {type(value) for value in found} == {float}


def test_results_are_returned_as_the_file_holds_them(tmp_path):
    """Otherwise the first run would give tuples and every later one lists."""
    returned = write(tmp_path / "a.json", {"pair": (1, 2)}, seeds=(0, 1), settings={"tasks": ("a", "b")})
    assert returned["results"] == {"pair": [1, 2]}
    assert (returned["seeds"], returned["settings"]) == ([0, 1], {"tasks": ["a", "b"]})
    assert returned == records.read(tmp_path / "a.json")


@pytest.mark.parametrize("name", FIELDS)
def test_a_record_without_one_of_its_fields_is_refused(tmp_path, name):
    path = put(tmp_path / "a.json", {key: value for key, value in COMPLETE.items() if key != name})
    with pytest.raises(ValueError, match=rf"a\.json: the field '{name}' is missing; record it anew"):
        records.read(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("command", " "), ("commit", ""), ("commit", None), ("date", "31 January"), ("date", 20260131),
        ("device", ""), ("versions", {}), ("versions", {"torch": 2.15}), ("versions", ["2.15.0"]),
        ("seeds", 0), ("seeds", [0.5]), ("seeds", [True]), ("seconds", -1), ("seconds", "1 s"),
        ("seconds", True), ("data", {"mnist.npz": "c3e3"}), ("data", {"mnist.npz": None}), ("data", ["c3e3"]),
        ("settings", []), ("results", {}), ("results", []), ("results", None), ("results", ""),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_kind_is_refused(tmp_path, name, value):
    path = put(tmp_path / "a.json", {**COMPLETE, name: value})
    with pytest.raises(
        ValueError, match=rf"a\.json: the field '{name}' must be .*, got {re.escape(repr(value))}"
    ):
        records.read(path)


def test_results_may_be_false_or_zero(tmp_path):
    for value in (0, 0.0, False):
        assert records.read(put(tmp_path / "a.json", {**COMPLETE, "results": value}))["results"] == value


def test_a_field_that_no_record_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown field 'resutls'; put it into 'settings' or 'results'"):
        records.read(put(tmp_path / "a.json", {**COMPLETE, "resutls": 1}))
    with pytest.raises(ValueError, match="it holds no JSON object and is no record; run the"):
        records.read(put(tmp_path / "a.json", [COMPLETE]))


def test_a_file_that_was_cut_is_refused_and_one_that_is_not_there_too(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match=r"there is no record .*a\.json; run the command"):
        records.read(path)
    text = json.dumps(COMPLETE)
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json is damaged, it is no record \(.*\); run the command"):
        records.read(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_a_number_that_is_not_finite_is_refused_with_its_place(tmp_path, bad):
    message = rf"results\['mnist'\]\[1\]\['loss'\] is {bad}, which no record may hold; leave it out"
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.json", {"mnist": [{"loss": 0.5}, {"loss": bad}]})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"settings\['rate'\] is"):
        write(tmp_path / "a.json", 1, settings={"rate": bad})
    with pytest.raises(ValueError, match=r"a\.json: results\[0\] is"):
        records.read(put(tmp_path / "a.json", {**COMPLETE, "results": [bad]}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [torch.tensor(1.0)]}, r"results\['a'\]\[0\] is of type Tensor, .*; use \.tolist\(\)"),
        ({"a": np.float32(1)}, r"results\['a'\] is of type float32, .*; use \.tolist\(\)"),
        ({"a": {1, 2}}, r"results\['a'\] is of type set, .*; use numbers, texts, lists and dictionaries"),
        ({"a": {3: 1.0}}, r"results\['a'\] has the key 3, but keys must be texts"),
    ],
)
def test_what_json_would_change_or_drop_is_refused_with_its_place(tmp_path, value, message):
    with pytest.raises(TypeError, match=message):
        write(tmp_path / "a.json", value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": "python x.py --data /home/ada/data"}, r"command names .* \(/home/ada/data\)"),
        ({"command": "python x.py --data=/home/ada/data x"}, r"command names .* \(/home/ada/data\)"),
        ({"command": "python x.py ~/data/mnist"}, r"command names .* \(~/data/mnist\)"),
        ({"settings": {"folders": ["C:\\data"]}}, r"settings\['folders'\]\[0\] names .* \(C:\\data\)"),
        ({"data": {"/mnt/d/mnist.npz": DIGEST}}, r"a key of data names .* \(/mnt/d/mnist\.npz\)"),
    ],
)
def test_a_path_of_one_machine_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.json", 1, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["local/runs", "../data/a.npz", "https://a.org/b/c", "a / b", "images/s", "1/2/3"]
)
def test_other_texts_with_slashes_are_no_path_of_one_machine(tmp_path, text):
    write(tmp_path / "a.json", {text: [text]}, command=f"python x.py --out {text}")


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_older_record(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.json"
    before = write(path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write(path, 2)
    assert records.read(path) == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


# --- load or run -----------------------------------------------------------------------------------------

ABOUT = {"command": "python sums.py", "seeds": [0], "settings": {"epochs": 3}, "data": {"a.npz": DIGEST}}


class Study:
    """A computation that counts its runs."""

    def __init__(self):
        self.runs = 0

    def __call__(self):
        self.runs += 1
        return {"runs": self.runs}


def test_a_study_runs_once_and_again_only_when_asked(tmp_path):
    study, path = Study(), tmp_path / "a.json"
    assert records.load_or_run(path, study, **ABOUT) == {"runs": 1}
    assert records.load_or_run(path, study, **ABOUT) == {"runs": 1}
    assert records.load_or_run(path, study) == {"runs": 1}
    assert study.runs == 1
    assert records.load_or_run(path, study, rerun=True) == {"runs": 2}
    record = records.read(path)
    assert record["results"] == {"runs": 2}
    assert {name: record[name] for name in ABOUT} == ABOUT, "what is not given stays as it was"
    assert 0 <= record["seconds"] < 60


@pytest.mark.parametrize(
    "change", [{"seeds": [0, 1]}, {"settings": {"epochs": 4}}, {"data": {}}, {"command": "python x.py"}]
)
def test_a_record_of_another_run_is_refused_unless_recorded_anew(tmp_path, change):
    study, path, name = Study(), tmp_path / "a.json", next(iter(change))
    records.load_or_run(path, study, **ABOUT)
    with pytest.raises(ValueError, match=f"tells of another run: its '{name}' is .* use rerun=True"):
        records.load_or_run(path, study, **{**ABOUT, **change})
    records.load_or_run(path, study, **{**ABOUT, **change}, rerun=True)
    assert records.read(path)[name] == change[name]


@pytest.mark.parametrize("name", ["command", "seeds"])
def test_a_first_run_needs_what_nobody_can_guess(tmp_path, name):
    study = Study()
    with pytest.raises(ValueError, match=rf"no record .*a\.json yet, and {name} is missing; give {name}="):
        records.load_or_run(tmp_path / "a.json", study, **{k: v for k, v in ABOUT.items() if k != name})
    assert study.runs == 0, "said before the hours, not after"


def test_a_folder_that_is_not_there_is_said_before_the_hours_too(tmp_path):
    study = Study()
    with pytest.raises(
        OSError, match=r"a\.json cannot be written: .*nowhere is no folder that you may write"
    ):
        records.load_or_run(tmp_path / "nowhere" / "a.json", study, **ABOUT)
    assert study.runs == 0


def test_a_record_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(COMPLETE).encode().replace(b"python", b"p\xff"))
    with pytest.raises(ValueError, match=r"a\.json is damaged, it is no record"):
        records.read(path)


def test_a_broken_record_is_not_silently_computed_anew(tmp_path):
    path = put(tmp_path / "a.json", {"results": 1})
    with pytest.raises(ValueError, match="'command' is missing"):
        records.load_or_run(path, Study(), **ABOUT)


def test_a_run_that_fails_leaves_the_older_record(tmp_path):
    path = tmp_path / "a.json"
    records.load_or_run(path, Study(), **ABOUT)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        records.load_or_run(path, lambda: 1 / 0, rerun=True)
    with pytest.raises(ValueError, match="nan"):
        records.load_or_run(path, lambda: [math.nan], rerun=True)
    assert path.read_bytes() == before


# --- where results come from -----------------------------------------------------------------------------


def git(folder, *arguments):
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit that `records` takes for its own."""
    (tmp_path / "taskvec_mini").mkdir()
    (tmp_path / "taskvec_mini" / "a.py").write_text("1\n")
    (tmp_path / "book.md").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    monkeypatch.setattr(records, "_PACKAGE", tmp_path / "taskvec_mini")
    return tmp_path


def test_the_commit_is_named_and_a_changed_source_too(repository):
    head = git(repository, "rev-parse", "HEAD")
    assert records.provenance()["commit"] == head
    (repository / "book.md").write_text("2\n")
    assert records.provenance()["commit"] == head, "no result depends on the prose"
    (repository / "taskvec_mini" / "a.py").write_text("2\n")
    assert records.provenance()["commit"] == head + "+changes"
    git(repository, "checkout", "taskvec_mini")
    assert records.provenance()["commit"] == head
    (repository / "taskvec_mini" / "new.py").write_text("2\n")
    assert records.provenance()["commit"] == head + "+changes", "a new module is a change"


def test_a_package_outside_a_repository_says_so(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    git(tmp_path, "init", "-q")  # somebody else's repository, further up
    monkeypatch.setattr(records, "_PACKAGE", tmp_path / "inside" / "site-packages" / "taskvec_mini")
    assert records.provenance()["commit"] == "no repository, taskvec_mini 0.1.0"


def test_provenance_says_when_on_what_and_with_which_versions():
    found = records.provenance()
    assert datetime.strptime(found["date"], "%Y-%m-%d").replace(tzinfo=UTC) <= datetime.now(UTC)
    assert f"{torch.get_num_threads()} thread" in found["device"]
    assert {"python", "torch", "numpy", "taskvec_mini"} <= set(found["versions"])
    assert found["versions"]["torch"] == torch.__version__


# --- the records of this repository ----------------------------------------------------------------------

STORED = [
    *sorted((ROOT / "book" / "recorded").glob("*.json")),
    *sorted((ROOT / "taskvec_mini" / "benchmarks" / "encoders" / "weights").glob("*.json")),
]
OTHERS = ("execution.json",)  # has tests of its own
STORED = [path for path in STORED if path.name not in OTHERS]
every_record = pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])


def refusal_of(command):
    """Why a recorded command cannot be run; empty if it can."""
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "taskvec_mini.benchmarks"]:
        return refusal_of_the_command_line(words[3:])
    if words[:1] != ["python"] or not (ROOT / words[1]).is_file():
        return "neither the command line of the benchmarks nor a script of this repository"
    offered = set(re.findall(r"--[\w-]+", help_of(words[1])))
    return " ".join(word for word in words if word.startswith("--") and word.partition("=")[0] not in offered)


@cache
def help_of(script):
    """What a script says of its options; it loads torch first, which takes seconds."""
    return subprocess.check_output([sys.executable, script, "--help"], cwd=ROOT, text=True)


def refusal_of_the_command_line(words):
    try:
        request = parse(words)
    except SystemExit:
        return "the command line does not know these words"
    except UserError as error:
        return str(error)
    known = not isinstance(request, RecordRequest) or request.study in STUDIES
    return "" if known else f"no study {request.study!r}"


@every_record
def test_a_stored_record_is_complete(path):
    record = records.read(path)
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", record["commit"])


@every_record
def test_a_stored_record_names_no_path_of_one_machine(path):
    assert not re.search(r"/(work|tmp|root|home|Users|mnt)/|[A-Z]:\\", path.read_text(encoding="utf-8"))


@every_record
def test_the_command_of_a_stored_record_can_be_run(path):
    assert refusal_of(records.read(path)["command"]) == ""


@pytest.mark.parametrize(
    ("command", "fine"),
    [
        ("python -m taskvec_mini.benchmarks list", True),
        ("python -m taskvec_mini.benchmarks finetune --tasks mnist --epochs 1", True),
        ("python -m taskvec_mini.benchmarks finetune --tasks mnist --epoch-count 1", False),
        ("python -m taskvec_mini.benchmarks record no_such_study", False),
        ("python -m somewhere.else list", False),
        ("python scripts/pretrain_pocket.py --images a --teacher b --work local/pocket --epochs 45", True),
        ("python scripts/pretrain_pocket.py --images a --epoch-count 45", False),
        ("python scripts/no_such_script.py", False),
    ],
)
def test_a_command_that_cannot_be_run_would_be_noticed(command, fine, capsys):
    assert (refusal_of(command) == "") is fine
