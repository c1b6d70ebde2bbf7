"""Find a Chromium for the browser tests, and install one where there is none and the machine allows it.

usage: python scripts/get_chromium.py [--find]

Looked for, in this order: the variable CHROMIUM, the usual names on the PATH, Playwright's own download.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
REMEDY = (
    "no Chromium was found for the browser tests. Install your system's package (Debian and Ubuntu: apt-get "
    "install chromium), or run `python -m playwright install chromium`, or set CHROMIUM to the path of one"
)


def find() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    if named := os.environ.get("CHROMIUM"):
        return named
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    return found or _playwright_own()


def _playwright_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> str | None:
    """Try the system's packages where we are root on Debian, then Playwright; the path, or None."""
    attempts = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y"]
        packages = ["chromium", "fonts-dejavu-core"]
        attempts = [[*quiet, "update"], [*quiet, "install", "--no-install-recommends", *packages], *attempts]
    for command in attempts:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if path := find():
            return path
        if done.returncode:
            print(f"{' '.join(command)}: {done.stderr.strip()[-300:]}", file=sys.stderr)
    return None


def main() -> int:
    path = find() or (None if "--find" in sys.argv else install())
    print(f"Chromium: {path}" if path else REMEDY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
