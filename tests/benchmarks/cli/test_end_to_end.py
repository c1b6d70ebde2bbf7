"""The whole way, as a stranger goes it: three bare lines in an empty folder, without any data."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from taskvec_mini import TaskVector
from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.data import DATA_VARIABLE, SUITES
from taskvec_mini.benchmarks.encoders import load_backbone, state_of

SECONDS = 300  # for one command on a busy machine; all together take about 40
TASKS = SUITES["digits"].tasks


def type_line(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """What one command in a process of its own printed; it must succeed, and without a warning."""
    environment = {name: value for name, value in os.environ.items() if name != DATA_VARIABLE}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-W", "error", "-m", "taskvec_mini.benchmarks", *line.split()]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def call_line(folder: Path, line: str) -> SimpleNamespace:
    """The same within this process, which has torch already; warnings are errors in all tests."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        patch.chdir(folder)
        patch.delenv(DATA_VARIABLE, raising=False)
        assert command_line.main(line.split()) == 0, err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `finetune` and `merge` were typed, with finished runs and their merged vector."""
    folder = tmp_path_factory.mktemp("stranger")
    said = type_line(folder, "finetune")
    assert [line.partition("  ")[0] for line in said.stderr.splitlines() if "epoch 1/1" in line] == [*TASKS]
    call_line(folder, "merge")
    return folder


def test_a_finetuned_encoder_beats_the_pretrained_one_on_its_own_task(folder: Path) -> None:
    said = call_line(folder, "evaluate --tune").stdout
    lines = [re.split(r"\s{2,}", line) for line in said.splitlines()[: len(TASKS) + 2]]
    table = {row[0]: dict(zip(lines[0][1:], map(float, row[1:]), strict=True)) for row in lines[1:]}
    assert sorted(table) == sorted([*TASKS, "mean"])
    for name in TASKS:
        row = table[name]
        assert list(row) == ["zero-shot", "individual", "merged", "normalised"]
        assert row["individual"] > row["zero-shot"], name
        assert row["normalised"] == pytest.approx(row["merged"] / row["individual"], abs=5e-3)
    assert table["mean"]["zero-shot"] < table["mean"]["merged"] < table["mean"]["individual"]
    assert re.search(r"scaling coefficient [\d.]+ \(the best mean validation accuracy of 16", said)


def test_the_merged_vector_fits_the_encoder_and_is_not_empty(folder: Path) -> None:
    merged = TaskVector.load(folder / "local" / "merged.safetensors")
    pretrained = state_of(load_backbone("pocket").model)
    changed = merged.apply_to(pretrained, scaling_coef=0.5)
    assert {name: part.shape for name, part in changed.items()} == {
        name: part.shape for name, part in pretrained.items()
    }
    assert 0 < merged.norm() < float("inf")
    assert all(bool(torch.isfinite(part).all()) for part in changed.values())


def test_a_second_run_reads_the_first_and_trains_nothing(folder: Path) -> None:
    files = [path for path in (folder / "local" / "runs").rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    said = call_line(folder, "finetune")
    assert said.stderr == "", "nothing was trained, so there is no progress to show"
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before
