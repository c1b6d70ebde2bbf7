"""Progress is a bar on a terminal, lines in a log file, and nothing that stays in a notebook."""

import io
import sys

import pytest

from small_encoder import tiny_backbone, tiny_head, tiny_task
from taskvec_mini._progress import progress_bar
from taskvec_mini.benchmarks.training import Settings, finetune


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Notebook(io.StringIO):
    """As the stderr of a notebook's kernel is."""


Notebook.__module__ = "ipykernel.iostream"


def shown(monkeypatch, stream, **options):
    """What a run of two epochs writes."""
    monkeypatch.setattr(sys, "stderr", stream)
    finetune(tiny_backbone(), tiny_head(), tiny_task(), settings=Settings(epochs=2), **options)
    return stream.getvalue()


def last_look(text):
    """What a terminal of one line shows in the end, and the lines above it."""
    *lines, rest = text.split("\n")
    screen = [""]
    for part in rest.split("\r"):
        screen[0] = part + screen[0][len(part) :]
    return [line.rpartition("\r")[2].rstrip() for line in lines], screen[0].strip()


def test_a_log_file_has_a_line_an_epoch(monkeypatch):
    text = shown(monkeypatch, io.StringIO())
    assert "\r" not in text
    first, *lines = text.splitlines()
    assert first.startswith("quarters  memory on cpu: ")
    assert [line.split("  ")[:2] for line in lines] == [["quarters", "epoch 1/2"], ["quarters", "epoch 2/2"]]
    assert all("images/s" in line and line.endswith(" left") for line in lines)
    assert lines[-1].endswith("00:00 left")


def test_a_terminal_has_a_bar_that_is_gone_in_the_end_above_which_the_lines_stay(monkeypatch):
    log = shown(monkeypatch, io.StringIO()).splitlines()
    text = shown(monkeypatch, Terminal())
    assert "quarters:   0%" in text
    lines, rest = last_look(text)
    assert rest == ""
    assert [line.split("  ")[:2] for line in lines] == [line.split("  ")[:2] for line in log]


def test_a_notebook_has_a_bar_of_which_nothing_stays(monkeypatch):
    monkeypatch.delenv("TASKVEC_MINI_EXPLORE", raising=False)
    text = shown(monkeypatch, Notebook())
    assert "quarters:   0%" in text
    assert last_look(text) == ([], "")


def test_a_notebook_of_the_book_shows_nothing(monkeypatch):
    monkeypatch.setenv("TASKVEC_MINI_EXPLORE", "static")
    assert shown(monkeypatch, Notebook()) == ""


@pytest.mark.parametrize("stream", [io.StringIO, Terminal, Notebook])
def test_progress_can_be_silenced(monkeypatch, stream):
    assert shown(monkeypatch, stream(), progress=False) == ""


def test_the_bar_counts_in_the_unit_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar("news", total=200, unit="texts") as bar:
        bar.update(100)
        bar.refresh()
        assert "100/200 " in sys.stderr.getvalue()
        assert "texts/s" in sys.stderr.getvalue()
