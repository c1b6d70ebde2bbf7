"""Files of task vectors: they come back as they were, are whole or absent, and never run code."""

import contextlib
import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvec_mini import TaskVector, _files
from taskvec_mini.errors import UserError

POSIX = os.name == "posix"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SMALL = TaskVector(torch.tensor([1.5, -2.0, 0.25]), [("weight", (1, 2)), ("bias", (1,))], ["batches"])
OLD = TaskVector(torch.tensor([7.0]), [("old", (1,))])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.safetensors"


def same(a, b):
    return a.layout == b.layout and a.carried == b.carried and torch.equal(a.flat, b.flat)


def assert_refused(path, message=r"truncated or corrupted \(.*\); copy it again, or make it anew: Task"):
    with pytest.raises(ValueError, match=message) as caught:
        TaskVector.load(path)
    assert str(path) in str(caught.value)


# --- there and back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_comes_back_bit_by_bit(path, dtype):
    values = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    tv = TaskVector(values, [("a.weight", (2, 2)), ("scale", ()), ("empty", (0, 3)), ("b", (1,))], ["n", "m"])
    tv.save(path)
    loaded = TaskVector.load(path)
    assert same(loaded, tv)
    assert loaded.flat.dtype == dtype
    assert loaded.layout == (("a.weight", (2, 2)), ("scale", ()), ("empty", (0, 3)), ("b", (1,)))
    assert same(loaded + tv, 2 * tv)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
shapes = st.lists(st.integers(0, 3), max_size=3)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.dictionaries(names, shapes, max_size=4), st.lists(names, max_size=2))
def test_any_layout_comes_back(tmp_path_factory, layout, carried):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    size = sum(torch.Size(shape).numel() for shape in layout.values())
    tv = TaskVector(torch.arange(float(size)), list(layout.items()), carried)
    tv.save(path)
    assert same(TaskVector.load(path), tv)


def test_a_loaded_vector_applies_as_the_saved_one_did(path):
    pretrained = {"weight": torch.zeros(1, 2), "bias": torch.ones(1), "batches": torch.tensor(3)}
    SMALL.save(path)
    result = TaskVector.load(path).apply_to(pretrained)
    assert result["weight"].tolist() == [[1.5, -2.0]]
    assert result["bias"].tolist() == [1.25]
    assert result["batches"].item() == 3


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_words_or_paths_and_an_older_file_is_replaced(path, kind):
    OLD.save(kind(path))
    SMALL.save(kind(path))
    assert same(TaskVector.load(kind(path)), SMALL)
    assert os.listdir(path.parent) == [path.name]


def test_the_same_vector_gives_the_same_bytes(path):
    SMALL.save(path)
    first = path.read_bytes()
    SMALL.save(path)
    assert path.read_bytes() == first


def test_the_file_is_plain_safetensors_which_others_can_read(path):
    SMALL.save(path)
    assert safetensors.torch.load_file(path)["flat"].tolist() == [1.5, -2.0, 0.25]
    with safetensors.safe_open(path, framework="pt") as stored:
        parts = json.loads(stored.metadata()["taskvec_mini.TaskVector/2"].partition(" ")[2])
    assert parts == {"layout": [["weight", [1, 2]], ["bias", [1]]], "carried": ["batches"]}


def test_a_loaded_vector_does_not_depend_on_its_file(path):
    SMALL.save(path)
    loaded = TaskVector.load(path)
    path.write_bytes(b"x" * path.stat().st_size)
    assert same(loaded, SMALL)


@pytest.mark.parametrize("header", [640, 896, 1152, 1408, 0x4B50])
def test_a_header_whose_length_looks_like_the_start_of_a_pickle_is_none(path, header):
    """A safetensors file starts with the length of its header: 640 reads b"\\x80\\x02", as pickles do."""
    shortest = TaskVector(torch.ones(1), [("", (1,))])
    shortest.save(path)
    length = header - int.from_bytes(path.read_bytes()[:8], "little")
    tv = TaskVector(torch.ones(1), [("x" * length, (1,))])
    tv.save(path)
    assert int.from_bytes(path.read_bytes()[:8], "little") == header
    assert path.read_bytes()[:2] in _files._PICKLES
    assert same(TaskVector.load(path), tv)


# --- whole or not at all ---------------------------------------------------------------------------------


def half_written(error):
    """A save_file that writes a part and then fails."""

    def save_file(tensors, path, metadata):
        Path(path).write_bytes(b"half of it")
        raise error

    return save_file


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    safetensors.SafetensorError("I/O error: No space left on device (os error 28)"),
    KeyboardInterrupt(),
    MemoryError(),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(path, monkeypatch, error):
    OLD.save(path)
    monkeypatch.setattr(_files, "save_file", half_written(error))
    expected = OSError if isinstance(error, safetensors.SafetensorError) else type(error)
    with pytest.raises(expected):
        SMALL.save(path)
    assert os.listdir(path.parent) == [path.name]
    assert same(TaskVector.load(path), OLD)


@contextlib.contextmanager
def room_for(size):
    """No file may grow beyond `size` bytes: the system itself stops the writer, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(not POSIX, reason="limits on the size of files are a matter of POSIX systems")
def test_a_disk_without_space_leaves_the_old_file_and_says_so(path):
    OLD.save(path)
    large = TaskVector(torch.ones(100_000), [("w", (100_000,))])
    with room_for(50_000), pytest.raises(OSError, match=r"could not be written .*is there space on the disk"):
        large.save(path)
    assert os.listdir(path.parent) == [path.name]
    assert same(TaskVector.load(path), OLD)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SMALL.save(tmp_path / "nowhere" / "saved.safetensors")


# --- damaged files ---------------------------------------------------------------------------------------


def test_a_file_cut_at_any_byte_is_refused(path):
    SMALL.save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_refused(path)


@pytest.mark.parametrize("more", [b"\0", b"12345678", "the same again"])
def test_a_file_with_something_behind_it_is_refused(path, more):
    SMALL.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole + (more if isinstance(more, bytes) else whole))
    assert_refused(path)


def loads_equal_or_is_refused(path, content, expected):
    """A damaged file must not be taken for another vector; damage to mere white space does no harm."""
    path.write_bytes(content)
    try:
        loaded = TaskVector.load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        return False
    assert same(loaded, expected)
    return True


@pytest.mark.parametrize("mask", [0x01, 0x11, 0x20, 0x80, 0xFF])
def test_no_changed_byte_goes_unnoticed(path, mask):
    tv = TaskVector(torch.tensor([1.5]), [("bias", (1,))])
    tv.save(path)
    whole = path.read_bytes()
    harmless = 0
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]
        harmless += loads_equal_or_is_refused(path, changed, tv)
    assert harmless <= 8  # the padding behind the header is white space


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.data())
def test_random_damage_does_not_go_unnoticed(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    SMALL.save(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=16))
    content[place : place + len(patch)] = patch
    loads_equal_or_is_refused(path, bytes(content), SMALL)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"not a vector at all", b"{}", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000), b"\xff" * 50],
)
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"taskvec_mini.TaskVector/0": "{}"}])
def test_safetensors_files_of_others_are_no_task_vectors(path, metadata):
    safetensors.torch.save_file({"flat": torch.ones(3)}, path, metadata=metadata)
    assert_refused(path, "but no task vector; copy it again, or make it anew: TaskVector.between")


def test_a_file_without_the_checksum_is_refused(path):
    metadata = {"taskvec_mini.TaskVector/2": '{"layout": [["w", [3]]], "carried": []}'}
    safetensors.torch.save_file({"flat": torch.ones(3)}, path, metadata=metadata)
    assert_refused(path, "its checksum does not fit")


@pytest.mark.parametrize(
    ("tensors", "description"),
    [
        ({}, {"layout": [["w", [3]]], "carried": []}),
        ({"flat": torch.ones(3)}, {"layout": [["w", [3]]]}),
        ({"flat": torch.ones(3)}, {"layout": [["w", [4]]], "carried": []}),
        ({"flat": torch.ones(3)}, {"layout": 3, "carried": []}),
        ({"flat": torch.ones(3, dtype=torch.int32)}, {"layout": [["w", [3]]], "carried": []}),
    ],
)
def test_a_file_that_somebody_else_put_together_is_refused(path, tensors, description):
    _files.write_tensors(path, tensors, description, kind="taskvec_mini.TaskVector/2")
    with pytest.raises(
        UserError, match=r"saved\.safetensors does not hold what a task vector needs .*; copy"
    ):
        TaskVector.load(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        TaskVector.load(path)


# --- pickles ---------------------------------------------------------------------------------------------


class Payload:
    """An object whose unpickling makes a file: the harmless stand-in for any code at all."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def torch_file(payload, path, *, zipped):
    torch.save({"weight": payload}, path, _use_new_zipfile_serialization=zipped)


def plain_pickle(payload, path, *, protocol):
    path.write_bytes(pickle.dumps({"weight": payload}, protocol=protocol))


PICKLES = {
    "torch.save": lambda payload, path: torch_file(payload, path, zipped=True),
    "legacy torch.save": lambda payload, path: torch_file(payload, path, zipped=False),
    **{f"pickle {n}": lambda p, path, n=n: plain_pickle(p, path, protocol=n) for n in (2, 3, 4, 5)},
}
TEXT_PICKLES = {f"pickle {n}": lambda p, path, n=n: plain_pickle(p, path, protocol=n) for n in (0, 1)}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_named_and_refused_without_being_run(path, name):
    marker = path.parent / "it ran"
    PICKLES[name](Payload(marker), path)
    assert_refused(
        path, r"is a pickle .* is not loaded, because a pickle can run any code; .* TaskVector.between"
    )
    assert not marker.exists()


@pytest.mark.parametrize("name", TEXT_PICKLES)
def test_the_oldest_pickles_are_refused_without_being_run(path, name):
    marker = path.parent / "it ran"
    TEXT_PICKLES[name](Payload(marker), path)
    assert_refused(path)
    assert not marker.exists()


def test_the_payload_would_have_run(path):
    """The tests above have teeth: whoever unpickles the file runs the code."""
    marker = path.parent / "it ran"
    PICKLES["pickle 4"](Payload(marker), path)
    pickle.loads(path.read_bytes())
    assert marker.exists()


def test_a_pickle_of_weights_alone_is_refused_too(path):
    torch.save({"weight": torch.ones(2)}, path)
    assert_refused(path, "is a pickle")
