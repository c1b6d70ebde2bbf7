"""Gather what a reader or a teacher takes along, for a release: PDFs, slides, notebooks without solutions.

usage: make release      (which makes the parts first)

The files are in _build/release, with the version in their names. The solutions are not among them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import pdf

ROOT = pdf.ROOT
PARTS = {
    "pdf/book.pdf": "book",
    "pdf/cheat_sheet.pdf": "cheat_sheet",
    "slides": "slides",
    "student": "student",
}


def gather(built: Path, folder: Path, version: str) -> list[Path]:
    """Copy each part into `folder`, folders as zip files; what came out.

    Raises:
        FileNotFoundError: a part has not been made.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = []
    for part, name in PARTS.items():
        source, target = built / part, folder / f"taskvec-mini-{version}-{name}"
        if not source.exists():
            raise FileNotFoundError(f"{source} is missing: make release makes it first")
        if source.is_dir():
            made.append(Path(shutil.make_archive(str(target), "zip", source)))
        else:
            made.append(Path(shutil.copy2(source, target.with_name(target.name + source.suffix))))
    return made


def main() -> int:
    for path in gather(ROOT / "_build", ROOT / "_build" / "release", pdf.edition()["version"]):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
