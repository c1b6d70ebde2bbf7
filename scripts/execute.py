"""Run the chapters in place, keeping what they show and nothing volatile.

usage: python scripts/execute.py [--record FILE] [NOTEBOOK ...]      (all of book/*.ipynb where none is named)

Each chapter gets a fresh kernel, in its own folder. Cell timings, the kernel's version and random ids are not
kept: running an unchanged chapter twice gives the same bytes unless what it shows has changed.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FOLDED = {"remove-cell", "hide-cell", "hide-input", "remove-input"}
TITLE = re.compile(r"# @title (.+)")
UUID = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9a-f])")
RUNS_IN = re.compile(r"runs on a CPU in (\d+) s")
RECORDED_VERSIONS = ("torch", "numpy", "matplotlib", "altair", "jupyter-book")


class ChapterError(Exception):
    """A chapter that did not run to its end; the message names the chapter, the cell and the error."""


def chapters(folder: Path) -> list[Path]:
    """The book's chapters in reading order."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def kernel_environment() -> None:
    """What every run of a chapter shares: one thread, static sliders, and no settings of the user's own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TASKVEC_MINI_EXPLORE"] = "static"
    os.environ["IPYTHONDIR"] = folder = tempfile.mkdtemp(prefix="ipython-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def execute(path: Path, *, timeout: int = 600) -> tuple[Any, float]:
    """The executed notebook and the seconds, to a tenth, from the kernel's start to its end."""
    notebook = nbformat.read(path, as_version=4)
    running = {"cell": -1}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
        skip_cells_with_tag="nbval-skip",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        on_cell_start=lambda cell, cell_index: running.update(cell=cell_index),
    )
    start = time.perf_counter()
    try:
        with ThreadPoolExecutor(1) as thread:  # a loop of its own, wherever the caller has one
            thread.submit(asyncio.run, client.async_execute()).result()
    except Exception as error:
        raise ChapterError(_failure(path, notebook, running["cell"], error)) from error
    return notebook, round(time.perf_counter() - start, 1)  # rounded once, so that title and record agree


def _failure(path: Path, notebook: Any, index: int, error: Exception) -> str:
    cause = str(error).strip().rpartition("\n")[2] or type(error).__name__
    if isinstance(error, CellExecutionError):
        cause = f"{error.ename}: {error.evalue}"
    if index < 0:
        return f"{path.name} did not start: {cause}"
    lines = "\n".join("    " + line for line in notebook.cells[index].source.splitlines()[:25])
    return f"{path.name} failed in cell {index} (of {len(notebook.cells)}): {cause}\n{lines}"


def tidy(notebook: Any, name: str) -> str:
    """The notebook as text, without anything that changes from run to run.

    A cell that the site folds or removes is folded in Jupyter and in Colab as well. Its first line, such as
    `# @title How the figure is drawn`, names the drawer in all three.
    """
    kept = {key: value for key, value in notebook.metadata.items() if key != "widgets"}
    notebook.metadata = nbformat.from_dict({**kept, **METADATA})
    count = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        if FOLDED & set(cell.metadata.get("tags", ())):
            cell.metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
            if title := TITLE.match(cell.source):
                prompts = dict.fromkeys(["code_prompt_show", "code_prompt_hide"], title.group(1))
                cell.metadata["mystnb"] = cell.metadata.get("mystnb", {}) | prompts
        count += cell.execution_count is not None
        cell.execution_count = count if cell.execution_count is not None else None
        cell.outputs = _merged_streams(cell.outputs)
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = count
    text = _stable_ids(nbformat.writes(notebook), name)
    return json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _merged_streams(outputs: list[Any]) -> list[Any]:
    """Neighbouring pieces of one stream as one: where a long print is cut depends on the moment."""
    merged: list[Any] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def _stable_ids(text: str, name: str) -> str:
    """Random ids replaced by ones that follow from the chapter's name and the order in which they occur."""
    seen: dict[str, str] = {}

    def stable(match: re.Match[str]) -> str:
        key = match.group(0)
        if key not in seen:
            digest = hashlib.md5(f"{name}:{len(seen)}".encode(), usedforsecurity=False).hexdigest()
            parts = (digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:])
            seen[key] = "-".join(parts) if "-" in key else digest
        return seen[key]

    return UUID.sub(stable, text)


def stated_seconds(seconds: float) -> int:
    """The seconds a chapter's first cell promises: the measured ones, up to the next multiple of five."""
    return 5 * max(1, math.ceil(seconds / 5))


def state_seconds(notebook: Any, seconds: float) -> None:
    """Write the promised seconds into the line under the chapter's title."""
    first = notebook.cells[0]
    first.source = RUNS_IN.sub(f"runs on a CPU in {stated_seconds(seconds)} s", first.source, count=1)


def read_record(path: Path) -> dict[str, Any]:
    """The execution record, or an empty one where there is none."""
    if not path.exists():
        return {"chapters": {}}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def write_record(path: Path, measured: dict[str, float], *, workers: int = 1) -> None:
    """Add the measured seconds to the record at `path`, with this machine and the versions in use."""
    seconds = read_record(path)["chapters"] | measured
    present = {chapter.stem for chapter in chapters(path.parent.parent)}
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread a chapter"
        + (f", {workers} chapters side by side" if workers > 1 else ""),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS},
        "chapters": {name: seconds[name] for name in sorted(seconds) if name in present},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def at_a_time() -> int:
    """How many chapters run side by side: each keeps one core busy, and takes up to 2 GB of memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


def run_chapters(
    paths: list[Path], *, timeout: int = 600, record: Path | None = None, workers: int = 1
) -> int:
    """Execute each chapter in place with a line of progress; the number of chapters that failed.

    With several workers, the chapters that took longest in the record are begun first.
    """
    kernel_environment()
    measured: dict[str, float] = {}
    failures: dict[str, str] = {}
    known = read_record(ROOT / "book" / "recorded" / "execution.json")["chapters"]
    order = sorted(paths, key=lambda path: -known.get(path.stem, math.inf)) if workers > 1 else paths
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(execute, path, timeout=timeout): path for path in order}
        for number, future in enumerate(as_completed(running), 1):
            path = running[future]
            try:
                notebook, seconds = future.result()
            except ChapterError as error:
                print(f"[{number}/{len(paths)}] {path.name} ... FAILED", flush=True)
                failures[path.stem] = str(error)
                continue
            if record:
                state_seconds(notebook, seconds)
            path.write_text(tidy(notebook, path.stem), encoding="utf-8", newline="\n")
            measured[path.stem] = seconds
            print(f"[{number}/{len(paths)}] {path.name} ... {seconds:.1f} s", flush=True)
    if record and measured:
        write_record(record, measured, workers=workers)
    for name in sorted(failures):
        print(f"\n{failures[name]}", file=sys.stderr)
    return len(failures)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="the chapters to run (default: all)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds allowed for one cell")
    parser.add_argument("--record", type=Path, help="write the seconds and versions to this file")
    parser.add_argument(
        "--workers",
        type=int,
        help="chapters side by side (default: one a core, at most 4; with --record 1, to measure each alone)",
    )
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.notebooks] or chapters(ROOT / "book")
    if not paths:
        parser.error("no chapter found in book/")
    workers = arguments.workers or (1 if arguments.record else at_a_time())
    failed = run_chapters(paths, timeout=arguments.timeout, record=arguments.record, workers=workers)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
