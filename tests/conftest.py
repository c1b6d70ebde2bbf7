"""What the tests of the book share: its chapters, the built site, a browser."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from filelock import FileLock

from scripts import build, execute, get_chromium

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = execute.ROOT
CHAPTERS = execute.chapters(ROOT / "book")
LONGEST = (  # a minute to ten seconds each
    "test_site.py",
    "test_take_along.py",
    "test_sliders.py",
    "test_end_to_end.py",
    "test_speed.py",
    "test_clip_study.py",
    "test_colab.py",
    "test_live.py",
    "test_bounds_random.py",
    "test_pretrained_pipeline.py",
    "test_good_start.py",
    "test_runs.py",
)
CHARTS_STARTED = (
    "() => [...document.querySelectorAll('.explore')].every(e => /ready|failed/.test(e.dataset.state))"
)
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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests measured and did not judge: their property "measured" (also under xdist)."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    lines = [value for report in reports for name, value in report.user_properties if name == "measured"]
    for line in dict.fromkeys(lines):
        terminalreporter.write_line(f"measured: {line}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that in the end no worker waits for another's long one."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def extension(name: str) -> Any:
    """A module of book/_ext."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built strictly from the stored outputs: once, however many workers test."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which all workers of this run share
    folder /= "site"
    folder.mkdir(exist_ok=True)
    built = folder / "built"
    with FileLock(folder / "lock"):
        if not built.exists():
            start_page = build.build_pages(build.stage(folder / "stage"), folder)
            built.write_text(str(start_page.parents[1]), encoding="utf-8")
    return Path(built.read_text(encoding="utf-8"))


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


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """The site served on this machine."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@dataclass
class Visit:
    """An open page, with everything it complained of or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    own_bytes: int = 0


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """A function that opens an address with the network cut, in a context of its own."""
    contexts = []

    def open_page(url: str, *, theme: str = "light", width: int = 1300) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=theme)
        contexts.append(context)
        context.add_init_script(f"localStorage.mode = localStorage.theme = '{theme}'")
        visit = Visit(context.new_page())
        visit.page.set_default_timeout(120_000)  # of milliseconds: the machine may be busy
        base = url.partition("/book/")[0] if "://127" in url else "file://"
        _listen(visit, base)
        visit.page.goto(url, wait_until="load")
        visit.page.evaluate("() => window.MathJax && MathJax.startup.promise")
        visit.page.wait_for_function(CHARTS_STARTED)
        return visit

    yield open_page
    for context in contexts:
        context.close()


def _listen(visit: Visit, base: str) -> None:
    host = urlsplit(base).netloc

    def answer(route: Any) -> None:
        parts = urlsplit(route.request.url)
        if parts.scheme in ("data", "blob", "file") or (host and parts.netloc == host):
            route.continue_()
        else:
            visit.outside.append(route.request.url)
            route.abort()

    def weigh(response: Any) -> None:
        asked_by_script = response.request.resource_type in ("fetch", "xhr") and ".html" in response.url
        if asked_by_script and "/search.html" in visit.page.url:
            return  # the search reads the pages that it finds: they are not its own weight
        if "/_static/" not in response.url and not response.url.startswith(("data:", "blob:")):
            visit.own_bytes += len(response.body())

    visit.page.route("**/*", answer)
    visit.page.on("pageerror", lambda error: visit.complaints.append(f"error: {error}"))
    visit.page.on("console", lambda line: _note(visit, line))
    visit.page.on("requestfailed", lambda request: visit.complaints.append(f"not loaded: {request.url}"))
    if host:
        visit.page.on("response", weigh)


def _note(visit: Visit, line: Any) -> None:
    if line.type in ("error", "warning"):
        visit.complaints.append(f"{line.type}: {line.text}")
