"""What the tests of the book share: its chapters, the built site, a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import build, execute, get_chromium

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = execute.ROOT
CHAPTERS = execute.chapters(ROOT / "book")
CHROMIUM_FLAGS = [
    "--no-sandbox",  # a container's root user has no other way
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--colab-pins",
        action="store_true",
        help="run chapter 1 in a second environment with Colab's versions",
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built strictly from the stored outputs."""
    folder = tmp_path_factory.mktemp("site")
    return build.build_pages(build.stage(folder / "stage"), folder).parents[1]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium; without one the tests are skipped, but never in CI."""
    from playwright.sync_api import sync_playwright

    path = get_chromium.find()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(get_chromium.REMEDY)
        pytest.skip(get_chromium.REMEDY)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield launched
        launched.close()
