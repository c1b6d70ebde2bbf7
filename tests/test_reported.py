"""The tables others published are the recorded ones, typed, and each names its source and its licence."""

import csv
import hashlib
import json
import re
import shutil
from collections import Counter

import pytest

from conftest import ROOT
from taskvec_mini import reported

FOLDER = ROOT / "book" / "reported"
SOURCES = json.loads((FOLDER / "sources.json").read_text(encoding="utf-8"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")
LICENCE = "MIT, Copyright (c) 2021 Valentino Maiorca, Luca Moschella"
every_table = pytest.mark.parametrize("name", sorted(SOURCES["tables"]))


def section(name):
    """What the README says of one table."""
    (found,) = re.findall(rf"^### {name}\.csv$(.*?)(?=^##|\Z)", README, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the folder that the library reads instead, to be damaged."""
    monkeypatch.setattr(reported, "FOLDER", shutil.copytree(FOLDER, tmp_path / "reported"))
    return reported.FOLDER


# --- the files -------------------------------------------------------------------------------------------


def test_every_table_is_recorded_and_every_record_has_its_table():
    assert {path.stem for path in FOLDER.glob("*.csv")} == set(SOURCES["tables"]) == set(reported.names())


@every_table
def test_the_bytes_are_the_recorded_ones(name):
    found = hashlib.sha256((FOLDER / f"{name}.csv").read_bytes()).hexdigest()
    assert found == SOURCES["tables"][name]["sha256"]
    assert f"`{found}`" in section(name)


def test_the_licence_of_the_sources_is_kept_whole():
    text = (FOLDER / "LICENSE-source-repositories.txt").read_text(encoding="utf-8")
    assert text.startswith("MIT License")
    assert "Copyright (c) 2021 Valentino Maiorca, Luca Moschella" in text
    assert "The above copyright notice and this permission notice shall be included in all\ncopies" in text
    assert SOURCES["licence"] == LICENCE
    other = (FOLDER / "LICENSE-mergeability-bench.txt").read_text(encoding="utf-8")
    assert other == text.replace("2021 Valentino Maiorca, Luca Moschella", "2025 Donato Crisostomi")
    assert LICENCE in README


def test_every_source_is_a_commit_in_full_and_stands_in_the_readme():
    for place in SOURCES["repositories"].values():
        assert re.fullmatch(r"[\w-]+/[\w-]+", place["repository"])
        assert re.fullmatch(r"[0-9a-f]{40}", place["commit"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", place["date"])
        assert {place["repository"], place["commit"], place["date"]} <= set(re.findall(r"[\w/-]+", README))


@every_table
def test_the_readme_names_every_column_and_the_number_of_rows(name):
    rows = reported.table(name)
    assert f"{len(rows):,} rows" in section(name)
    assert set(re.findall(r"`([^`]+)`", section(name))) >= set(rows[0])


@every_table
def test_source_names_repository_commit_files_and_licence(name):
    line = reported.source(name)
    for key, files in SOURCES["tables"][name]["from"].items():
        place = SOURCES["repositories"][key]
        assert f"{place['repository']} at commit {place['commit'][:8]} ({place['date']}), {files}" in line
    assert line.endswith(
        "MIT, Copyright (c) 2025 Donato Crisostomi" if name == "mergeability_pairs" else LICENCE
    )
    assert "\n" not in line


# --- reading ---------------------------------------------------------------------------------------------


@every_table
def test_reading_loses_nothing(name):
    """Written back, each value is the cell it came from."""
    with open(FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    rows = reported.table(name)
    assert len(rows) == len(cells)
    for row, texts in zip(rows, cells, strict=True):
        assert list(row) == list(texts)
        for value, text in zip(row.values(), texts.values(), strict=True):
            assert (float(text) if isinstance(value, (int, float)) else text or None) == value


@every_table
def test_columns_of_measurements_hold_numbers_and_accuracies_are_shares(name):
    for row in reported.table(name):
        for column, value in row.items():
            if re.search("accuracy|loss|norm|share|cosine", column) and value is not None:
                assert isinstance(value, (int, float)), (column, value)
            if "normalised" in column and value is not None:
                assert 0 <= value <= 1.25  # of the specialist's, which a merge may beat
            elif "accuracy" in column and value is not None:
                assert 0 <= value <= 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("0.50", 0.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("2e-5", 2e-5),
        ("nan", "nan"),
        ("1 of 2", "1 of 2"),
        ("2024-adam", "2024-adam"),
        (" ", " "),
    ],
)
def test_a_cell_becomes_a_number_a_word_or_none(copy, text, value):
    data = f"name,cell\nrow,{text}\n".encode()
    (copy / "gradient_norms.csv").write_bytes(data)
    sources = json.loads((copy / "sources.json").read_text())
    sources["tables"]["gradient_norms"]["sha256"] = hashlib.sha256(data).hexdigest()
    (copy / "sources.json").write_text(json.dumps(sources))
    (row,) = reported.table("gradient_norms")
    assert row == {"name": "row", "cell": value}
    assert type(row["cell"]) is type(value)


def test_where_keeps_the_rows_with_all_of_these_values():
    rows = reported.table("gradient_norms")
    for dataset in ("DTD", "SVHN"):
        assert reported.table("gradient_norms", dataset=dataset) == [
            row for row in rows if row["dataset"] == dataset
        ]
    one = reported.table("gradient_norms", dataset="SVHN", epoch=2)
    assert [(row["dataset"], row["epoch"]) for row in one] == [("SVHN", 2)]
    whole = reported.table("one_epoch_vs_converged_task_sets", schedule=None, tasks_merged=7)
    assert {row["training"] for row in whole} == {"zero-shot"}


def test_rows_are_the_reader_s_own():
    reported.table("gradient_norms")[0].clear()
    assert reported.table("gradient_norms")[0]["dataset"] == "CIFAR100"


# --- refusals --------------------------------------------------------------------------------------------


def test_an_unknown_table_column_or_value_is_named_with_a_way_out():
    with pytest.raises(ValueError, match="unknown table 'gradient_norm': did you mean 'gradient_norms'"):
        reported.table("gradient_norm")
    with pytest.raises(ValueError, match="unknown table 'norms'"):
        reported.source("norms")
    with pytest.raises(ValueError, match="unknown column 'data': did you mean 'dataset'"):
        reported.table("gradient_norms", data="DTD")
    with pytest.raises(ValueError, match="no row with dataset = 'Pets'; values there: 'CIFAR100', 'DTD'"):
        reported.table("gradient_norms", dataset="Pets")
    with pytest.raises(ValueError, match="no row with epoch = 5; values there: 1, 2, 3, 4"):
        reported.table("gradient_norms", dataset="SVHN", epoch=5)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data.replace(b"0.32", b"0.33", 1)])
def test_an_edited_or_truncated_table_is_refused(copy, damage):
    path = copy / "gradient_norms.csv"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"gradient_norms\.csv is truncated or corrupted .*git checkout"):
        reported.table("gradient_norms")


def test_without_the_book_s_files_the_error_says_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(reported, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no list of sources .*sources\.json; .* clone it"):
        reported.names()


# --- what the README says of the tables ------------------------------------------------------------------


def test_shares_of_the_gradient_norms_are_norms_over_their_sum():
    for dataset in {row["dataset"] for row in reported.table("gradient_norms")}:
        rows = reported.table("gradient_norms", dataset=dataset)
        total = sum(row["mean_minibatch_gradient_norm"] for row in rows)
        for row in rows:
            assert row["share"] == pytest.approx(row["mean_minibatch_gradient_norm"] / total, abs=1e-6)
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))


TEST_SETS = {
    "atm_rounds": "accuracy",
    "one_epoch_vs_converged_task_sets": "accuracy",
    "single_task_test_accuracy_by_progress": "test_accuracy",
    "task_arithmetic_by_progress": "accuracy",
}


def test_every_accuracy_is_a_count_over_the_size_of_its_test_set():
    """The sizes were inferred from these very denominators, so a wrong size or a changed cell shows."""
    sizes = {row["dataset"]: row["test_images"] for row in reported.table("dataset_facts")}
    for name, column in TEST_SETS.items():
        for row in reported.table(name):
            right = row[column] * sizes[row["dataset"]]
            assert abs(right - round(right)) <= 6e-7 * sizes[row["dataset"]], row


def test_the_groups_of_subsets_have_the_stated_sizes_and_no_subset_twice():
    groups, sizes = {}, Counter()
    for row in reported.table("subsets_one_epoch_vs_converged"):
        key = row["optimiser"], row["one_epoch_schedule"]
        groups.setdefault(key, []).append(row["subset"])
        sizes[row["optimiser"], len(set(row["subset"].split("+")))] += 1
    assert sizes == {("AdamW", 5): 1136, ("Adam", 5): 300, ("SGD", 5): 200, ("SGD", 6): 1}
    assert sorted(map(len, groups.values())) == [152, 201, 202, 300, 782]
    assert all(len(set(subsets)) == len(subsets) for subsets in groups.values())


def test_some_cosines_of_a_gradient_with_itself_are_above_one():
    rows = reported.table("direction_cosines", kind="gradient at end of epoch x vs epoch y")
    own = {row["cosine"] for row in rows if row["x"] == row["y"] and row["aggregation"] == "flattened"}
    assert own == {1.02, 1.03, 1.04}


def test_no_two_rows_are_the_same():
    for name in reported.names():
        rows = [tuple(row.items()) for row in reported.table(name)]
        repeated = len(rows) - len(set(rows))
        assert repeated == 0, name
