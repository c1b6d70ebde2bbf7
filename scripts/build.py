"""Build the site strictly, from a staged copy of the book, so that the checkout stays as it is.

usage: python scripts/build.py [--execute]

Without --execute the pages show the outputs stored in the chapters: that takes seconds. With it every chapter
runs first, in a fresh kernel, and the pages show what this machine computed. The site is in _build/html.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import execute

ROOT = execute.ROOT
LITTER = shutil.ignore_patterns(
    "__pycache__", ".ipynb_checkpoints", ".virtual_documents", "*.pyc", "_build", ".ruff_cache"
)
START_PAGE = "book/index.html"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class BuildError(Exception):
    """The strict build found something; the message is what Sphinx said."""


def stage(folder: Path, *, root: Path = ROOT) -> Path:
    """A fresh copy of everything the site is built from."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "book", folder / "book", ignore=LITTER)
    shutil.copy2(root / "_config.yml", folder / "_config.yml")
    shutil.copy2(root / "_toc.yml", folder / "_toc.yml")
    return folder


def build_pages(staged: Path, output: Path) -> Path:
    """The site's start page, built with warnings as errors; a BuildError where there is one."""
    shutil.rmtree(output / "_build" / "html", ignore_errors=True)
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [
        *jupyter_book,
        "build",
        "-W",
        "-n",
        "--keep-going",
        "--all",
        "--path-output",
        str(output),
        str(staged),
    ]
    environment = os.environ | {"NO_COLOR": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=environment, check=False
    )
    start_page = output / "_build" / "html" / START_PAGE
    if done.returncode or not start_page.exists():
        said = COLOUR.sub("", f"{done.stdout}\n{done.stderr}").replace(f"{staged}{os.sep}", "")
        complaints = [line for line in said.splitlines() if "WARNING:" in line or "ERROR:" in line]
        raise BuildError("\n".join(["The strict build failed:", *(complaints or [said])]))
    return start_page


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--execute", action="store_true", help="run every chapter first")
    arguments = parser.parse_args()
    staged = stage(ROOT / "_build" / "stage")
    if arguments.execute:
        record = staged / "book" / "recorded" / "execution.json"
        chapters = execute.chapters(staged / "book")
        if execute.run_chapters(chapters, record=record, workers=execute.at_a_time()):
            return 1
    try:
        start_page = build_pages(staged, ROOT)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The book is ready. Open {start_page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
