"""Everything that has to hold, one step after the other; the exit status is 0 only if all of it does.

usage: python scripts/check.py [STEP ...]       (steps: lint format types browser tests chapters)
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import execute

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
    chapters = map(str, execute.chapters(execute.ROOT / "book"))
    return [*STEPS[name], *(chapters if name == "chapters" else ())]


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
