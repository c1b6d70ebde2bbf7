"""Fill the environment that this Python belongs to: with uv, or with pip where uv cannot be had or fails.

usage: python scripts/install.py

uv installs the same pinned set as pip does, in a fraction of the time. It is itself installed by pip first.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
PINNED = ["-c", "constraints.txt"]
EVERYTHING = ["-r", "requirements.txt", *PINNED, "-e", "."]
UV_PIP = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode"]
UV = [*UV_PIP, "--python", sys.executable]


def install() -> str:
    """Install what requirements.txt and constraints.txt say, and this package; the name of what did it.

    Raises:
        subprocess.CalledProcessError: if pip failed as well.
    """
    if _succeeds([*PIP, "--only-binary", "uv", "uv", *PINNED]) and _succeeds([*UV, *EVERYTHING]):
        return "uv"
    print("uv is not to be had here, or failed: pip does the same and takes longer", flush=True)
    subprocess.run([*PIP, "--compile", *EVERYTHING], cwd=ROOT, check=True)
    return "pip"


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main() -> int:
    print("installing the packages (about 2.6 GB, nearly all of it PyTorch) ...", flush=True)
    begin = time.perf_counter()
    try:
        tool = install()
    except subprocess.CalledProcessError as error:
        print(f"the packages could not be installed (pip ended with {error.returncode})", file=sys.stderr)
        return 1
    print(f"installed with {tool} in {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
