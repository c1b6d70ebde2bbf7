"""Downloads from a server on this machine that breaks off, forgets, refuses and lies."""

import errno
import hashlib
import http.server
import os
import re
import threading
from dataclasses import dataclass, field

import pytest

from taskvec_mini.benchmarks.data import downloads
from taskvec_mini.benchmarks.data.downloads import download
from taskvec_mini.errors import FileError, MissingFileError, NoConnectionError, UserError

CONTENT = bytes(range(256)) * 8_000  # 2 MB: several pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does: breaks after so many bytes, so often; knows ranges; says the length."""

    breaks: list[int] = field(default_factory=list)  # bytes after which each of the next answers breaks off
    ranges: bool = True
    length: bool = True
    status: int = 200
    asked: list[str | None] = field(default_factory=list)  # the ranges that were asked for


@pytest.fixture
def server():
    behaviour = Behaviour()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked = self.headers.get("Range")
            behaviour.asked.append(asked)
            self.close_connection = True
            if behaviour.status != 200:
                self.send_error(behaviour.status)
                return
            start = 0
            if asked and behaviour.ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                if start >= len(CONTENT):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            body = CONTENT[start:]
            self.send_response(206 if asked and behaviour.ranges else 200)
            if behaviour.length:
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            broken = behaviour.breaks.pop(0) if behaviour.breaks else None
            sent = body if broken is None else body[:broken]
            if behaviour.length:
                self.wfile.write(sent)
            else:
                for at in range(0, len(sent), 100_000):
                    piece = sent[at : at + 100_000]
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                if broken is None:
                    self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        behaviour.address = f"http://127.0.0.1:{serving.server_port}/file.bin"
        yield behaviour
        serving.shutdown()


@pytest.mark.parametrize("length", [True, False])
def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, tmp_path, length):
    server.length = length
    download(server.address, tmp_path / "file.bin", sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [each.name for each in tmp_path.iterdir()] == ["file.bin"]


def test_what_is_there_is_not_fetched(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"mine")
    download(server.address, tmp_path / "file.bin", sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"
    assert server.asked == []


@pytest.mark.parametrize("length", [True, False])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, tmp_path, length):
    server.length = length
    server.breaks = [700_000, 0, 0, 500_000]
    download(server.address, tmp_path / "file.bin", sha256=SHA256, wait=0)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    starts = [0 if asked is None else int(asked[6:-1]) for asked in server.asked]
    assert len(starts) == 5
    assert starts == sorted(starts)
    assert 0 < starts[1] <= 700_000
    assert starts[4] > starts[3]


def test_a_connection_may_break_as_often_as_it_likes_if_something_arrives(server, tmp_path):
    server.breaks = [300_000] * 6
    download(server.address, tmp_path / "file.bin", sha256=SHA256, attempts=2, wait=0)
    assert len(server.asked) == 7


def test_a_server_that_cannot_begin_in_the_middle_sends_all_again(server, tmp_path):
    server.ranges = False
    server.breaks = [700_000]
    download(server.address, tmp_path / "file.bin", sha256=SHA256, wait=0)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_second_call_goes_on_where_the_first_gave_up(server, tmp_path):
    server.breaks = [900_000, 0, 0]
    with pytest.raises(
        NoConnectionError, match=r"could not be fetched .* call again: the [\d,]+ bytes that arr"
    ):
        download(server.address, tmp_path / "file.bin", attempts=3, wait=0)
    arrived = (tmp_path / "file.bin.part").stat().st_size
    assert 0 < arrived <= 900_000
    assert not (tmp_path / "file.bin").exists()
    download(server.address, tmp_path / "file.bin", sha256=SHA256)
    assert server.asked[-1] == f"bytes={arrived}-"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    download(server.address, tmp_path / "file.bin", sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    download(server.address, tmp_path / "file.bin", sha256=SHA256, wait=0)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_of_another_file_is_noticed_and_deleted(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"something else")
    with pytest.raises(
        UserError, match=rf"has the sha256 [0-9a-f]{{64}}, not {SHA256}, and was deleted; call again"
    ):
        download(server.address, tmp_path / "file.bin", sha256=SHA256)
    assert list(tmp_path.iterdir()) == []
    download(server.address, tmp_path / "file.bin", sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_a_link_leads_nowhere(server, tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "file.bin.part").symlink_to(tmp_path / "precious")
    download(server.address, tmp_path / "file.bin", sha256=SHA256)
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert not (tmp_path / "file.bin").is_symlink()


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_gone_is_not_asked_for_again(server, tmp_path, status):
    server.status = status
    with pytest.raises(
        MissingFileError, match=rf"file.bin is not to be had \({status} .* leave its task out"
    ):
        download(server.address, tmp_path / "file.bin", wait=0)
    assert len(server.asked) == 1


def test_a_server_that_is_busy_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(NoConnectionError, match=r"503.*look at the network connection"):
        download(server.address, tmp_path / "file.bin", attempts=4, wait=0)
    assert len(server.asked) == 4


def test_nobody_answers(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    with pytest.raises(NoConnectionError, match="could not be fetched"):
        download(f"http://127.0.0.1:{port}/x", tmp_path / "x", attempts=2, wait=0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no disk that is always full")
def test_a_full_disk_is_named_with_what_to_do(server, tmp_path, monkeypatch):
    opened = open

    def full(path, mode="r"):
        return opened("/dev/full" if str(path).endswith(".part") else path, mode, buffering=0)

    monkeypatch.setattr(downloads, "open", full, raising=False)
    with pytest.raises(
        FileError, match=r"the disk is full while file.bin was fetched to .* free some space"
    ) as caught:
        download(server.address, tmp_path / "file.bin", wait=0)
    assert caught.value.errno == errno.ENOSPC
    assert len(server.asked) == 1
