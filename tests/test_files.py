"""Files appear whole or not at all, leave nothing behind, and are read only if they are what was written."""

import contextlib
import errno
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from taskvec_mini import _files
from taskvec_mini.errors import FileError, MissingFileError, UserError

POSIX = pytest.mark.skipif(
    os.name != "posix", reason="links, signals and processes as POSIX systems have them"
)


def names(folder):
    return sorted(os.listdir(folder))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "thing.json"
    path.write_text("older")
    return path


# --- whole or not at all ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_the_older_file_stays_until_the_end_of_the_block(path, kind):
    with _files.replacing(kind(path)) as place:
        place.write_text("new")
        assert path.read_text() == "older"
        assert place.suffix == ".json"  # some writers go by it
        assert not list(path.parent.glob("*/thing.json"))
    assert path.read_text() == "new"
    assert names(path.parent) == ["thing.json"]


class Ours(UserError):
    pass


def stop_halfway(path, error, **named):
    with _files.replacing(path, **named) as place:
        place.write_text("half")
        raise error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("k"),
        Ours("mine"),
        FileError("a file"),
        MissingFileError("no file"),
        RuntimeError("r"),
        StopIteration(3),
        KeyboardInterrupt(),
        SystemExit(3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_of_the_block_pass_through_as_they_are(path, error):
    with pytest.raises(type(error)) as caught:
        stop_halfway(path, error)
    assert caught.value is error
    assert path.read_text() == "older"
    assert names(path.parent) == ["thing.json"]


def test_an_error_of_the_system_names_the_path_and_the_remedy(path):
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileError, match=r"thing\.json could not be written \(.*No space.*\); buy a disk"):
        stop_halfway(path, error, remedy="buy a disk")
    assert path.read_text() == "older"
    assert names(path.parent) == ["thing.json"]


def test_a_failure_within_a_failure_is_told_once(tmp_path, path):
    with pytest.raises(FileError) as caught, _files.replacing(tmp_path / "outer"):
        stop_halfway(path, OSError(errno.EIO, "bad block"))
    assert str(caught.value).count("could not be written") == 1
    assert str(path) in str(caught.value)
    assert names(tmp_path) == ["thing.json"]


def test_a_block_that_writes_nothing_is_an_error(path):
    with pytest.raises(FileError, match=r"thing\.json could not be written"), _files.replacing(path):
        pass
    assert path.read_text() == "older"


def test_a_folder_comes_whole_and_replaces_no_full_one(tmp_path):
    target = tmp_path / "folder"
    for content in ("first", "second"):
        with contextlib.suppress(FileError), _files.replacing(target) as place:
            (place / "deeper").mkdir(parents=True)
            (place / "deeper" / "a").write_text(content)
    assert (target / "deeper" / "a").read_text() == "first"
    with pytest.raises(FileError, match="folder could not be written"):
        _files.write_text(target, "a file in its place")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("folder", ["nowhere", "thing.json"])
def test_a_folder_that_is_none_is_named(path, folder):
    with pytest.raises(MissingFileError, match=rf"there is no folder .*{folder} to write a into; make it"):
        _files.write_text(path.parent / folder / "a", "text")


@pytest.mark.parametrize("name", ["x" * 250, "ü 漢.json", "-rf", ".hidden", "[a]*?.json"])
def test_any_name_will_do(tmp_path, name):
    _files.write_text(tmp_path / name, "first")
    _files.write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    assert names(tmp_path) == [name]


def test_texts_are_utf8_with_their_line_ends_as_they_are(path):
    _files.write_text(path, "ü\n漢\r\n")
    assert path.read_bytes() == b"\xc3\xbc\n\xe6\xbc\xa2\r\n"


@POSIX
def test_new_files_have_the_permissions_that_new_files_have(path):
    plain = path.with_name("plain")
    plain.write_text("")
    _files.write_text(path, "new")
    assert path.stat().st_mode == plain.stat().st_mode


# --- the disk --------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """What is brought to the disk, and what is renamed, in order."""
    found = []
    fsync = os.fsync
    replace = os.replace

    def note_fsync(number):
        found.append(os.fstat(number).st_ino)
        fsync(number)

    def note_replace(place, target):
        found.append("renamed")
        replace(place, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return found


@POSIX
def test_bytes_are_on_the_disk_before_the_name_is(path, calls):
    _files.write_text(path, "new")
    assert calls == [path.stat().st_ino, "renamed", path.parent.stat().st_ino]


@POSIX
def test_so_are_all_files_of_a_folder(tmp_path, calls):
    with _files.replacing(tmp_path / "folder") as place:
        (place / "deeper").mkdir(parents=True)
        (place / "deeper" / "a").write_text("a")
        (place / "b").write_text("b")
    folder = tmp_path / "folder"
    whole = [folder, folder / "b", folder / "deeper", folder / "deeper" / "a"]
    assert set(calls[: calls.index("renamed")]) == {each.stat().st_ino for each in whole}


@POSIX
def test_a_disk_that_fails_leaves_the_older_file(path, monkeypatch):
    def fail(number):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FileError, match=r"could not be written .*Input/output error"):
        _files.write_text(path, "new")
    assert path.read_text() == "older"
    assert names(path.parent) == ["thing.json"]


@POSIX
def test_a_system_that_brings_no_folders_to_disk_is_no_failure(path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(number):
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(number)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    _files.write_text(path, "new")
    assert path.read_text() == "new"


@POSIX
def test_on_windows_files_are_opened_for_writing_and_folders_not_at_all(path, monkeypatch):
    """There, a file that is open for reading only cannot be flushed, and a folder cannot be opened."""
    opened = []
    real = os.open

    def note(place, flags, *more, **named):
        opened.append((Path(place).is_dir(), flags & os.O_RDWR))
        return real(place, flags, *more, **named)

    monkeypatch.setattr(_files, "_WINDOWS", True)
    with _files.replacing(path) as place:
        place.write_text("new")
        monkeypatch.setattr(os, "open", note)
    assert (False, os.O_RDWR) in opened
    assert all(flags for is_folder, flags in opened if not is_folder)
    monkeypatch.setattr(os, "open", real)
    opened.clear()
    monkeypatch.setattr(os, "open", note)
    _files._to_disk(path.parent)
    assert opened == [(False, os.O_RDWR)]


# --- links -----------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_is_replaced_and_what_it_leads_to_is_untouched(tmp_path, path, dangling):
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "nothing" if dangling else path)
    _files.write_text(link, "new")
    assert not link.is_symlink()
    assert link.read_text() == "new"
    assert path.read_text() == "older"
    assert names(tmp_path) == ["link.json", "thing.json"]


@POSIX
def test_links_beside_the_path_are_not_written_through(tmp_path, path):
    new = tmp_path / "runs.json"
    beside = ["runs.json.part", ".runs.json.part", f".runs.json.{os.getpid()}.part", "new.json"]
    for name in beside:
        (tmp_path / name).symlink_to(path)
    _files.write_json(new, [1])
    assert path.read_text() == "older"
    assert names(tmp_path) == sorted([*beside, "runs.json", "thing.json"])


@POSIX
def test_a_folder_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    _files.write_text(tmp_path / "link" / "a", "text")
    assert (tmp_path / "real" / "a").read_text() == "text"


# --- what killed processes leave -------------------------------------------------------------------------

WRITER = """
import sys, time
from taskvec_mini import _files
with _files.replacing(sys.argv[1]) as place:
    place.write_text("of the child")
    print("writing", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing a file."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "child.txt")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


@POSIX
def test_what_a_killed_process_leaves_is_swept_by_the_next_who_writes_there(tmp_path, writer):
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(names(tmp_path)) == 1  # it did leave something
    _files.write_text(tmp_path / "other.txt", "text")
    assert names(tmp_path) == ["other.txt"]


@POSIX
def test_a_process_that_is_still_writing_is_left_alone(tmp_path, writer):
    _files.write_text(tmp_path / "other.txt", "text")
    _files.write_text(tmp_path / "child.txt", "earlier")
    assert len(names(tmp_path)) == 3
    writer.communicate("\n", timeout=60)
    assert names(tmp_path) == ["child.txt", "other.txt"]
    assert (tmp_path / "child.txt").read_text() == "of the child"


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leftover(folder, machine, process, *, days=0.0):
    place = folder / f".taskvec_mini-{machine}-{process}-abc_1"
    place.mkdir()
    (place / "new.txt").write_text("half")
    then = place.stat().st_mtime - days * 86_400
    os.utime(place, (then, then))
    return place.name


@POSIX
@pytest.mark.parametrize("host", ["plain", "with.dots.example", "with-dash", "ü"])
def test_processes_are_asked_for_on_their_own_machine_only(tmp_path, monkeypatch, gone, host):
    monkeypatch.setattr("socket.gethostname", lambda: host)
    own = _files._machine()
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert _files._machine() != own
    there = leftover(tmp_path, own, gone)
    _files.write_text(tmp_path / "a", "text")
    assert names(tmp_path) == sorted([there, "a"])  # of another machine, and fresh
    monkeypatch.setattr("socket.gethostname", lambda: host)
    _files.write_text(tmp_path / "a", "text")
    assert names(tmp_path) == ["a"]


@POSIX
def test_what_another_machine_left_is_swept_after_a_day(tmp_path):
    fresh = leftover(tmp_path, "00000000", 1, days=0.9)
    leftover(tmp_path, "00000001", 1, days=1.1)
    _files.write_text(tmp_path / "a", "text")
    assert names(tmp_path) == sorted([fresh, "a"])


@POSIX
def test_on_windows_a_day_decides_as_well(tmp_path, monkeypatch, gone):
    monkeypatch.setattr(_files, "_WINDOWS", True)  # os.kill(process, 0) would end the process there
    monkeypatch.setattr(os, "kill", None)
    fresh = leftover(tmp_path, _files._machine(), gone)
    leftover(tmp_path, _files._machine(), gone + 1, days=1.1)
    _files.write_text(tmp_path / "a", "text")
    assert names(tmp_path) == sorted([fresh, "a"])


@POSIX
def test_nothing_else_is_swept(tmp_path, gone):
    own = f".taskvec_mini-{_files._machine()}-{gone}"
    precious = tmp_path / "precious"
    (precious / "deeper").mkdir(parents=True)
    (tmp_path / f"{own}-link").symlink_to(precious)
    (tmp_path / f"{own}-file").write_text("text")
    (tmp_path / ".taskvec_mini").mkdir()
    (tmp_path / f"x{own}-abc").mkdir()
    os.utime(tmp_path / f"x{own}-abc", (0, 0))
    leftover(tmp_path, _files._machine(), 10**25)
    leftover(tmp_path, _files._machine(), "x")
    leftover(tmp_path, _files._machine(), os.getpid())  # of another thread, say
    before = names(tmp_path)
    _files.write_text(tmp_path / "zz", "text")
    assert names(tmp_path) == [*before, "zz"]
    assert (precious / "deeper").is_dir()


# --- JSON ------------------------------------------------------------------------------------------------


def test_json_comes_back(path):
    value = {"b": [1, 2.5, None, "ü"], "a": {"deep": True}}
    _files.write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert _files.read_json(path, what="list of runs", remedy="x") == value


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": 1', b"[1]", b"3", b"null", b"\xff\xfe\xfa", b'{"a": "\xe9"}', b'{"a":' * 100_000],
)
def test_what_is_no_json_object_is_named_with_the_remedy(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"thing\.json is damaged, .* no list of runs.*; ask for another"):
        _files.read_json(path, what="list of runs", remedy="ask for another")


def test_json_that_is_not_there_or_is_a_folder_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"there is no list of runs .*no\.json; make it"):
        _files.read_json(tmp_path / "no.json", what="list of runs", remedy="make it")
    with pytest.raises(FileError, match=r"could not be read \(.*\); make it"):
        _files.read_json(tmp_path, what="list of runs", remedy="make it")


# --- tensors ---------------------------------------------------------------------------------------------

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor(3),
    "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
}
READ = {"kind": "test/1", "what": "test file", "remedy": "write it anew"}


def test_tensors_and_what_describes_them_come_back(path):
    _files.write_tensors(path, TENSORS, {"epoch": 3, "names": ["ü"]}, kind="test/1")
    tensors, description = _files.read_tensors(path, **READ)
    assert description == {"epoch": 3, "names": ["ü"]}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_tensors_of_any_strides_and_tensors_that_are_one_are_written(path):
    turned = torch.arange(24.0).reshape(2, 3, 2, 2)
    shared = torch.arange(10.0)
    state = {
        "turned": turned.transpose(0, 1),
        "channels": turned.to(memory_format=torch.channels_last),
        "every other": shared[::2],
        "repeated": torch.ones(1).expand(3),
        "first": shared,
        "tied": shared,
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    _files.write_safetensors(path, state, metadata={"format": "pt"})
    loaded = safetensors.torch.load_file(path)
    assert {name: part.tolist() for name, part in loaded.items()} == {n: p.tolist() for n, p in state.items()}


def test_what_was_read_does_not_depend_on_the_file(path):
    _files.write_tensors(path, TENSORS, {}, kind="test/1")
    tensors, _ = _files.read_tensors(path, **READ)
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(tensors["b"], TENSORS["b"])


def raw(path, header, data=b""):
    """A safetensors file, byte by byte."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_files_of_another_kind_are_called_what_they_are(path):
    _files.write_tensors(path, TENSORS, {}, kind="taskvec_mini.Other/7")
    with pytest.raises(UserError, match=r"is a taskvec_mini\.Other/7 but no test file; write it anew"):
        _files.read_tensors(path, **READ)
    safetensors.torch.save_file(TENSORS, path)
    with pytest.raises(UserError, match="is a safetensors file but no test file; write it anew"):
        _files.read_tensors(path, **READ)


@pytest.mark.parametrize(("axes", "message"), [(65, "'w' has 65 axes, above 64"), (10_000, "10000 axes")])
def test_more_axes_than_torch_can_handle_are_refused(path, axes, message):
    entry = {"dtype": "F32", "shape": [1] * axes, "data_offsets": [0, 4]}
    raw(path, {"__metadata__": {"test/1": "00000000 {}"}, "w": entry}, bytes(4))
    with pytest.raises(UserError, match=rf"thing\.json is no test file: .*{message}.*; write it anew"):
        _files.read_tensors(path, **READ)


@pytest.mark.parametrize("shape", [[2**62, 4], [2**63], [-1], [1.5]])
def test_impossible_shapes_are_refused(path, shape):
    raw(
        path,
        {
            "__metadata__": {"test/1": "00000000 {}"},
            "w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]},
        },
    )
    with pytest.raises(UserError, match=r"thing\.json is no test file, or it is truncated .*; write it anew"):
        _files.read_tensors(path, **READ)


def test_tensors_that_are_not_there_or_are_a_folder_are_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"there is no test file .*no\.st; write it anew"):
        _files.read_tensors(tmp_path / "no.st", **READ)
    with pytest.raises(FileError, match=r"could not be read \(.*\); write it anew"):
        _files.read_tensors(tmp_path, **READ)


# --- checksums -------------------------------------------------------------------------------------------


def test_the_checksum_is_the_crc_32_of_names_dtypes_shapes_and_entries():
    told = b"said" + b"a torch.int64 ()" + struct.pack("<q", -2) + b"b torch.float32 (2, 2)"
    expected = f"{zlib.crc32(told + struct.pack('<4f', 1, 2, 3, 4)):08x}"
    tensors = {"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a": torch.tensor(-2)}
    assert _files.checksum(tensors, "said") == expected
    turned = {"a": tensors["a"], "b": torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T}
    assert _files.checksum(turned, "said") == expected


def test_whatever_differs_gives_another_checksum():
    one = torch.tensor([1.0, 2.0])
    states = [
        {"w": one},
        {"v": one},
        {"w": one.reshape(2, 1)},
        {"w": one.reshape(1, 2)},
        {"w": one.view(torch.int32)},
        {"w": one.double()},
        {"w": one.flip(0)},
        {"w": one, "v": one[:0]},
        {},
    ]
    found = {_files.checksum(state) for state in states} | {_files.checksum({"w": one}, "text")}
    assert len(found) == len(states) + 1


@pytest.mark.parametrize("piece", [1, 24, 100, 4_000_000])
def test_pieces_change_nothing(monkeypatch, piece):
    monkeypatch.setattr(_files, "_PIECE", piece)
    whole = torch.arange(120, dtype=torch.int16).reshape(4, 5, 6)
    for view in (whole, whole.transpose(0, 2), whole[:, 1::2], whole.expand(2, 4, 5, 6), whole[0, 0, 0]):
        head = f"w torch.int16 {tuple(view.shape)}".encode()
        expected = zlib.crc32(np.ascontiguousarray(view.numpy()).tobytes(), zlib.crc32(head))
        assert _files.checksum({"w": view}) == f"{expected:08x}"


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of b"abc", from FIPS 180-2


def test_the_sha256_of_a_file(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert _files.sha256(path) == ABC
    _files.check_sha256(path, ABC, remedy="x")
    wrong = ABC.replace("b", "c")
    with pytest.raises(
        UserError, match=rf"abc is truncated or corrupted \(3 bytes\): .*{wrong} .*{ABC}; load it"
    ):
        _files.check_sha256(path, wrong, remedy="load it again")
    with pytest.raises(MissingFileError, match=r"there is no file .*nothing"):
        _files.sha256(tmp_path / "nothing")
    with pytest.raises(FileError, match="could not be read"):
        _files.sha256(tmp_path)
