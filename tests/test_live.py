"""Sliders with a kernel: a notebook opened in Notebook 7 in a real Chromium, run, dragged."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from scripts.execute import METADATA

CELL = """
from taskvec_mini.explore import Lines, Range, explore

def descend(learning_rate):
    if learning_rate > 1.5:
        raise ValueError("the run diverged; lower the learning rate")
    return [{"epoch": k, "loss": (1 - learning_rate) ** (2 * k)} for k in range(4)]

explore(
    descend,
    ranges={"learning_rate": Range.linear(0, 2, step=0.25, default=0.5)},
    charts=Lines("epoch", "loss"),
    question="How fast does the loss fall?",
    description="The loss against the epoch.",
    say=lambda panels: f"loss after one epoch: {panels['chart'][1]['loss']:.6f}",
)
"""
SAID = re.compile(r"loss after one epoch: ([\d.]+)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def notebook_server(tmp_path: Path) -> Iterator[str]:
    """The address of tiny.ipynb in a Notebook 7 that knows no settings of the user's own."""
    cell = nbformat.v4.new_code_cell(CELL.strip())
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=METADATA), tmp_path / "tiny.ipynb")
    port = free_port()
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = (
        os.environ | {name: str(tmp_path / name) for name in folders} | {"TASKVEC_MINI_EXPLORE": "auto"}
    )
    command = [
        sys.executable,
        "-m",
        "notebook",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
    ]
    command += ["--IdentityProvider.token=token", "--LabApp.news_url=None", "--ServerApp.port_retries=0"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_up(f"http://127.0.0.1:{port}/api?token=token", server, tmp_path / "server.log")
            yield f"http://127.0.0.1:{port}/notebooks/tiny.ipynb?token=token"
        finally:
            stop(server)


def wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(url, timeout=30).close()
            return
        time.sleep(0.25)
    pytest.fail(f"Notebook did not start: {log.read_text()[-2000:]}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its kernels."""
    if hasattr(os, "killpg"):
        os.killpg(server.pid, signal.SIGTERM)
    else:
        server.terminate()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def run_all(page: Any) -> None:
    """Run > Run All Cells, again until it takes: while the kernel starts, Notebook drops the command."""
    for _ in range(12):
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_timeout(2500)
        if page.locator(".jp-Dialog").count():  # "the kernel is still starting, please try again"
            page.locator(".jp-Dialog .jp-mod-accept").click()
            continue
        if page.locator(".jp-CodeCell .jp-InputPrompt").first.inner_text().strip() != "[ ]:":
            return
    pytest.fail("the kernel did not take the cell within half a minute")


def text_of(page: Any) -> str:
    text: str = page.locator(".jp-Notebook").inner_text()
    return text


def wait_for_text(page: Any, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('.jp-Notebook').innerText.includes(text)", arg=text, timeout=60_000
    )


def drag(page: Any, share: float) -> None:
    """Drag the slider's handle to a share of its track."""
    handle, track = page.locator(".widget-slider .noUi-handle"), page.locator(".widget-slider .noUi-base")
    handle.scroll_into_view_if_needed()
    start, whole = handle.bounding_box(), track.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(whole["x"] + share * whole["width"], start["y"] + start["height"] / 2, steps=8)
    page.mouse.up()


def test_run_all_drag_and_a_bad_value(browser: Any, notebook_server: str) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(notebook_server)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    run_all(page)
    page.wait_for_selector(".widget-slider .noUi-handle")
    wait_for_text(page, "loss after one epoch: 0.250000")
    picture = page.locator(".jp-OutputArea img").get_attribute("src")

    drag(page, 0.44)  # to about 0.88, between the stops
    page.wait_for_function(
        "() => !document.querySelector('.jp-Notebook').innerText.includes('epoch: 0.250000')"
    )
    value = float(page.locator(".widget-readout").inner_text())
    said = SAID.search(text_of(page))
    assert said is not None
    assert 0.5 < value < 1.5
    assert float(said.group(1)) == pytest.approx((1 - value) ** 2, abs=1e-6)
    page.wait_for_function(
        "old => document.querySelector('.jp-OutputArea img')?.getAttribute('src') !== old", arg=picture
    )

    drag(page, 0.98)
    wait_for_text(page, "ValueError: the run diverged; lower the learning rate")
    page.locator("[role=alert]").wait_for(state="visible")
    page.locator(".jp-OutputArea img").wait_for(state="detached")

    page.get_by_role("button", name="Reset").click()
    wait_for_text(page, "loss after one epoch: 0.250000")
    page.locator("[role=alert]").wait_for(state="detached")
    page.close()
