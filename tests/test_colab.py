"""The way a reader in Colab takes, offline: an empty folder, no library, and the untouched chapter 1.

The set-up cell's clone is redirected to a copy of this working tree. By default the packages are those of
this environment; with --colab-pins they are Colab's versions, in an environment of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import CHAPTERS, ROOT
from scripts import home

ALLOWED = 15  # seconds for the set-up cell, the start of torch included
PINS = Path(__file__).with_name("colab-pins.txt")
WHERE = "import taskvec_mini; print('LIBRARY', taskvec_mini.__file__)"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree as it is now, committed to a repository of its own."""
    if shutil.which("git") is None:
        pytest.skip("git is not on the PATH; install it to test the set-up cell's clone")
    copy = tmp_path_factory.mktemp("repository")
    for name in ("taskvec_mini", "book", "tests", "scripts"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    identity = ["-c", "user.name=reader", "-c", "user.email=reader@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "-m", "copy"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has what the library needs but not the library."""
    folder = tmp_path_factory.mktemp("colab")
    pinned = request.config.getoption("--colab-pins")
    venv.create(folder, with_pip=pinned, symlinks=os.name != "nt")
    found = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if pinned:
        subprocess.run([found, "-m", "pip", "install", "--quiet", "--compile", "-r", PINS], check=True)
    else:  # a path file in a folder that one adds is not read itself: so the editable install stays out
        inside = subprocess.run(
            [found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        here = {
            str(Path(nbformat.__file__).parents[1]),
            *filter(lambda p: p.endswith("site-packages"), sys.path),
        }
        (Path(inside) / "packages.pth").write_text("\n".join(sorted(here)) + "\n", encoding="utf-8")
    return str(found)


@pytest.fixture
def colab(repository: Path, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and an environment in which kernels start there as in Colab."""
    kernel = {"argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python",
              "display_name": "Colab"}  # fmt: skip
    spec = tmp_path / "jupyter" / "kernels" / "colab" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(kernel), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{repository.as_uri()}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", home.current())
    for name in ("TASKVEC_MINI_EXPLORE", "PYTHONPATH", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    content = tmp_path / "content"
    content.mkdir()
    return content


def run(notebook: Any, folder: Path) -> Any:
    client = NotebookClient(
        notebook, timeout=600, kernel_name="colab", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def printed(notebook: Any) -> list[str]:
    """What each code cell printed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]


def test_the_library_is_not_there_before_the_set_up_cell(python: str, colab: Path) -> None:
    """So that the tests below cannot pass with the library of this environment."""
    question = (
        "from importlib.util import find_spec; print([bool(find_spec(m)) for m in ('torch', 'taskvec_mini')])"
    )
    assert subprocess.check_output([python, "-c", question], cwd=colab, text=True).strip() == "[True, False]"


def seconds_of(cell: Any) -> float:
    """How long a cell that has been run took in its kernel."""
    told = cell.metadata["execution"]
    begin, end = (
        datetime.fromisoformat(told[name]) for name in ("iopub.execute_input", "shell.execute_reply")
    )
    return (end - begin).total_seconds()


def test_chapter_one_untouched(colab: Path, request: pytest.FixtureRequest, record_property: Any) -> None:
    stored, asked = nbformat.read(CHAPTERS[0], as_version=4), nbformat.read(CHAPTERS[0], as_version=4)
    asked.cells.append(nbformat.v4.new_code_cell(WHERE))
    start = time.perf_counter()
    ran = run(asked, colab)
    record_property("measured", f"chapter 1 as in Colab: {time.perf_counter() - start:.1f} s")
    assert (colab / "taskvec-mini" / ".git").is_dir()
    where = ran.cells.pop()
    assert where.outputs[0].text.split()[1] == str(colab / "taskvec-mini" / "taskvec_mini" / "__init__.py")
    set_up = seconds_of(ran.cells[1])
    record_property("measured", f"Colab's set-up cell: {set_up:.1f} s of {ALLOWED} s allowed")
    assert set_up <= ALLOWED
    widgets = [
        output
        for cell in ran.cells
        for output in cell.get("outputs", ())
        if "widget" in str(output.get("data"))
    ]
    assert widgets, "with a kernel the sliders have to be live ones"
    if not request.config.getoption("--colab-pins"):  # other versions may round a last digit otherwise
        assert printed(ran) == printed(stored)
    sources = (stored.cells[1].source, WHERE)
    again = run(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in sources]), colab)
    assert again.cells[1].outputs == where.outputs, (
        "a second run of the set-up cell has to find the first clone"
    )
