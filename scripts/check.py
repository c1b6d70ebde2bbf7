"""Everything that has to hold; the exit status is 0 only if all of it does.

usage: python scripts/check.py [STEP ...]       (steps: lint format types browser tests chapters)

The steps run in this order, but the types and the chapters beside the tests, so that both processors of a
small machine have something to do until the end.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import chapter_checks
from scripts import build, execute

PYTEST = [sys.executable, "-m", "pytest", "--dist", "loadfile", "--no-loadscope-reorder"]
BESIDE = ("types", "chapters")  # one of them at a time, beside the others
STEPS = {
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "browser": [sys.executable, "scripts/get_chromium.py"],
    "tests": [*PYTEST, "--doctest-modules", "taskvec_mini", "tests", "--durations", "8"],
    "chapters": [
        *PYTEST,
        "--nbval",
        "--nbval-sanitize-with",
        "tests/nbval_sanitize.cfg",
        "--nbval-cell-timeout=300",
    ],
}


def command_of(name: str, *, workers: int = 2) -> list[str]:
    """What a step runs; the chapters are listed at the moment, so a new one is checked at once."""
    command = STEPS[name]
    if "pytest" in command:
        command = [*command, "-n", str(workers)]
    return [*command, *(map(str, checked_chapters()) if name == "chapters" else ())]


def checked_chapters() -> list[Path]:
    """Copies of the chapters for nbval, in a copy of the book, with a last cell for what only a run can tell.

    The cell tries wrong answers on the exercises and compares the charts: see tests/chapter_checks.py.
    """
    staged = build.stage(execute.ROOT / "_build" / "checked")
    copies = execute.chapters(staged / "book")
    for path in copies:
        notebook = chapter_checks.with_checks(
            nbformat.read(path, as_version=4), execute.ROOT / "book" / path.name
        )
        nbformat.write(notebook, path)
    return copies


def run(name: str, *, beside: bool = False) -> bool:
    """Run a step and say how it went; `beside` others it takes one worker, and is quiet until its end."""
    start, said = time.perf_counter(), ""
    if beside:
        done = subprocess.run(
            command_of(name, workers=1),
            cwd=execute.ROOT,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        said = f"\n--- {name}\n{done.stdout}"
    else:
        print(f"\n--- {name}", flush=True)
        done = subprocess.run(command_of(name), cwd=execute.ROOT, check=False)
    how = "FAILED" if done.returncode else "ok"
    print(f"{said}--- {name}: {how}, {time.perf_counter() - start:.0f} s", flush=True)
    return done.returncode == 0


def main() -> int:
    chosen = sys.argv[1:] or list(STEPS)
    if unknown := set(chosen) - set(STEPS):
        print(f"unknown steps {sorted(unknown)}; choose from {', '.join(STEPS)}", file=sys.stderr)
        return 2
    execute.kernel_environment()
    aside = [name for name in chosen if name in BESIDE and len(chosen) > 1]
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = {name: pool.submit(run, name, beside=True) for name in aside}
        passed = {name: run(name) for name in chosen if name not in aside}
        passed |= {name: each.result() for name, each in running.items()}
    failed = [name for name in chosen if not passed[name]]
    print(f"\nFailed: {', '.join(failed)}" if failed else "\nAll checks passed.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
