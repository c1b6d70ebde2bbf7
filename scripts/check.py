"""Everything that has to hold, one step after the other; the exit status is 0 only if all of it does.

usage: python scripts/check.py [STEP ...]       (steps: lint format types browser tests chapters)
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import chapter_checks
from scripts import build, execute

PYTEST = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile"]
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


def command_of(name: str) -> list[str]:
    """What a step runs; the chapters are listed at the moment, so a new one is checked at once."""
    return [*STEPS[name], *(map(str, checked_chapters()) if name == "chapters" else ())]


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


def run(name: str) -> bool:
    """Run a step and say how it went."""
    print(f"\n--- {name}", flush=True)
    start = time.perf_counter()
    passed = subprocess.run(command_of(name), cwd=execute.ROOT, check=False).returncode == 0
    print(f"--- {name}: {'ok' if passed else 'FAILED'}, {time.perf_counter() - start:.0f} s", flush=True)
    return passed


def main() -> int:
    chosen = sys.argv[1:] or list(STEPS)
    if unknown := set(chosen) - set(STEPS):
        print(f"unknown steps {sorted(unknown)}; choose from {', '.join(STEPS)}", file=sys.stderr)
        return 2
    execute.kernel_environment()
    failed = [name for name in chosen if not run(name)]
    print(f"\nFailed: {', '.join(failed)}" if failed else "\nAll checks passed.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
