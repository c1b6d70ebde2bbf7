"""The whole way, as a reader goes it: finetune two tasks for one epoch, merge, evaluate, by typed commands.

On real images where the folder of the bundle is there, on scikit-learn's digits where it is not; with the
pretrained `pocket` where its weights are there, else with an untrained one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from taskvec_mini import TaskVector
from taskvec_mini.benchmarks.data import DATA_VARIABLE
from taskvec_mini.benchmarks.encoders import load as backbones
from taskvec_mini.benchmarks.encoders import state_of

SECONDS = 120  # for one command on a busy machine; all together take about 20


def folder_of_the_bundle() -> Path | None:
    """The folder of real images that a variable names, or the one beside this repository."""
    named = os.environ.get(DATA_VARIABLE)
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder.resolve() if (folder / "mnist.npz").is_file() else None


DATA = folder_of_the_bundle()
SUITE, TASKS = ("bundle", ["mnist", "rsscn7"]) if DATA else ("digits", ["digits", "below five"])
BACKBONE = "pocket" if backbones.POCKET_WEIGHTS.is_file() else "random-pocket"


class Workplace:
    """An empty folder in which commands are typed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if DATA:
            self.environment[DATA_VARIABLE] = str(DATA)

    def type(self, words: str) -> subprocess.CompletedProcess[str]:
        """What one command printed; it must succeed, and without a warning."""
        command = [sys.executable, "-W", "error", "-m", "taskvec_mini.benchmarks", *words.split("|")]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr
        return done

    def finetune(self) -> subprocess.CompletedProcess[str]:
        tasks = "|".join(TASKS)
        return self.type(
            f"finetune|--suite|{SUITE}|--backbone|{BACKBONE}|--tasks|{tasks}|--epochs|1|--out|local/runs|--limit|500"
            "|--learning-rate|1e-4|--batch-size|25|--device|cpu"
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A folder with finished runs and their merged vector."""
    place = Workplace(tmp_path_factory.mktemp("reader"))
    said = place.finetune()
    lines = [line for line in said.stderr.splitlines() if "memory on" not in line]
    assert [line.split()[0] for line in lines] == [task.split()[0] for task in TASKS]
    place.type(
        f"merge|--runs|local/runs|--tasks|{'|'.join(TASKS)}|--epoch|1|--rule|ties|--option|density=0.5"
    )
    return place


def columns(text: str) -> dict[str, dict[str, float]]:
    """A printed table: a mapping from tasks to the numbers of their row, by column."""
    lines = [re.split(r"\s{2,}", line) for line in text.splitlines()[: len(TASKS) + 2]]
    return {row[0]: dict(zip(lines[0][1:], map(float, row[1:]), strict=True)) for row in lines[1:]}


def test_a_finetuned_encoder_beats_the_pretrained_one_on_its_own_task(place: Workplace) -> None:
    said = place.type("evaluate|--runs|local/runs|--tune|0.3|0.6|1|--split|val|--device|cpu").stdout
    table = columns(said)
    assert sorted(table) == sorted([*TASKS, "mean"])
    for name in TASKS:
        row = table[name]
        assert list(row) == ["zero-shot", "individual", "merged", "normalised"]
        assert row["individual"] > row["zero-shot"], name
        assert all(0 < row[kind] <= 1 for kind in ("zero-shot", "individual", "merged")), row
        assert row["normalised"] == pytest.approx(row["merged"] / row["individual"], abs=5e-3)
    assert re.search(r"scaling coefficient (0\.3|0\.6|1) \(the best mean validation accuracy of 3", said)


def test_the_merged_vector_fits_the_encoder_and_is_not_empty(place: Workplace) -> None:
    merged = TaskVector.load(place.folder / "local" / "merged.safetensors")
    pretrained = state_of(backbones.load_backbone(BACKBONE).model)
    changed = merged.apply_to(pretrained, scaling_coef=0.5)
    assert {name: tensor.shape for name, tensor in changed.items()} == {
        name: tensor.shape for name, tensor in pretrained.items()
    }
    assert 0 < merged.norm() < float("inf")
    assert 0.2 < float((merged.flat != 0).double().mean()) < 0.99, "ties keeps half of each, so some are zero"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in changed.values())


def test_a_second_run_reads_the_first_and_trains_nothing(place: Workplace) -> None:
    files = [path for path in (place.folder / "local" / "runs").rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    said = place.finetune()
    assert said.stderr == "", "nothing was trained, so there is no progress to show"
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before
