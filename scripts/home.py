"""Give the book a public address, everywhere it stands.

usage: python scripts/home.py https://github.com/OWNER/NAME

`make home` hands the address over in the environment variable BOOK_ADDRESS.

`repository.url` of _config.yml is the source. The badges and set-up cells of the chapters, the README, the
citation file and the package's metadata follow it; tests/test_chapters.py holds them equal.

Until then the address is a placeholder, whose owner has two hyphens in a row, which no owner can have. The
site shows no badge and no link that leads to it (book/_ext/before_home.py), and the README has none.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"https://github\.com/[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]*[A-Za-z0-9_-]")

BADGES = re.compile(rb"(<!-- badges -->\n).*?(<!-- /badges -->)", re.DOTALL)
COLAB = "https://colab.research.google.com"


def current(root: Path = ROOT) -> str:
    """The address in _config.yml."""
    match = re.search(
        r"^\s*url:\s*(\S+)\s*$", (root / "_config.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    if match is None:
        raise SystemExit("_config.yml has no line 'url: https://github.com/OWNER/NAME' under repository")
    return match.group(1)


def files(root: Path = ROOT) -> list[Path]:
    """Every file that may name the address."""
    single = ["_config.yml", "README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"]
    pages = [
        *(root / "book").rglob("*.md"),
        *(root / "book").glob("*.ipynb"),
        *(root / "taskvec_mini").rglob("*.py"),
    ]
    return [path for path in [*(root / name for name in single), *sorted(pages)] if path.exists()]


def rewrite(old: str, new: str, root: Path = ROOT) -> list[Path]:
    """Replace the address in every file, and show or hide the README's badges; the files that changed."""
    pairs = [(old, new), (_path(old), _path(new))]  # Colab's links carry OWNER/NAME alone
    changed = []
    for path in files(root):
        before = path.read_bytes()
        after = before
        for left, right in pairs:
            after = after.replace(left.encode(), right.encode())
        if path.name == "README.md":
            after = BADGES.sub(rb"\g<1>" + badges(new).encode() + rb"\g<2>", after)
        if after != before:
            path.write_bytes(after)
            changed.append(path)
    return changed


def badges(address: str) -> str:
    """The README's badges for a public address; none for the placeholder."""
    if "--" in _path(address).partition("/")[0]:
        return ""
    chapter = f"{_path(address)}/blob/main/book/01_a_task_vector_in_five_minutes.ipynb"
    return f"[![Open chapter 1 in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{chapter})\n"


def _path(address: str) -> str:
    return address.removeprefix("https://github.com/")


def main() -> int:
    given = sys.argv[1:] or [os.environ.get("BOOK_ADDRESS", "")]
    new = given[0].rstrip("/").removesuffix(".git") if len(given) == 1 else " ".join(given)
    if not ADDRESS.fullmatch(new):
        print(f"{new!r} is no address of the form https://github.com/OWNER/NAME", file=sys.stderr)
        return 2
    for path in rewrite(current(), new):
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
