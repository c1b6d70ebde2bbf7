"""Small data sets in the formats of the public ones, served by this machine to torchvision's own code."""

import errno
import functools
import gzip
import hashlib
import http.client
import http.server
import inspect
import io
import os
import pickle
import re
import resource
import struct
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from PIL import Image

from taskvec_mini.benchmarks.data import SUITES, image_files, load_tasks, torchvision_sets

DRAW = np.random.default_rng(0)


def random_images(count, *shape):
    return DRAW.integers(0, 256, (count, *shape), dtype=np.uint8)


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def pixels(images):
    return sorted(image.tobytes() for image in np.ascontiguousarray(images))


def learnt(task):
    return torch.cat([task.train_images, task.val_images]), torch.cat([task.train_labels, task.val_labels])


def pairs(images, labels):
    """Each image's bytes with its label, sorted: a data set without its order."""
    rows = zip(np.ascontiguousarray(images), np.asarray(labels).tolist(), strict=True)
    return sorted((image.tobytes(), label) for image, label in rows)


# --- a server of files -----------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves `server.files`; cuts in half what `server.cut` names; counts what was asked for."""

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        data = self.server.files.get(name)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if name in self.server.cut else data)
        self.server.served.append(name)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.cut, server.served = {}, set(), []
        server.url = f"http://127.0.0.1:{server.server_address[1]}/"
        threading.Thread(
            target=functools.partial(server.serve_forever, poll_interval=0.05), daemon=True
        ).start()
        yield server
        server.shutdown()


def with_sizes(monkeypatch, name, *sizes):
    known = torchvision_sets.sources()
    monkeypatch.setitem(known, name, replace(known[name], sizes=sizes))


def idx(array):
    """An array in the format of MNIST's files, gzipped."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def serve_mnist(monkeypatch, server, name="mnist", dataset="MNIST", train=200, test=50):
    """Serve a small data set in MNIST's format; its arrays."""
    arrays = {
        "train-images-idx3-ubyte.gz": random_images(train, 28, 28) & 0xF0,  # so that packing halves it
        "train-labels-idx1-ubyte.gz": DRAW.integers(0, 10, train).astype(np.uint8),
        "t10k-images-idx3-ubyte.gz": random_images(test, 28, 28) & 0xF0,
        "t10k-labels-idx1-ubyte.gz": DRAW.integers(0, 10, test).astype(np.uint8),
    }
    server.files |= {file: idx(array) for file, array in arrays.items()}
    made = getattr(torchvision.datasets, dataset)
    monkeypatch.setattr(made, "mirrors", [server.url])
    monkeypatch.setattr(made, "resources", [(file, md5(server.files[file])) for file in arrays])
    with_sizes(monkeypatch, name, train, test)
    return list(arrays.values())


def load(folder, name="mnist", **options):
    return load_tasks([name], suite="torchvision", folder=folder, **options)[name]


def made_files(folder):
    """What a later call would look at, or stumble over: all but the downloads."""
    return sorted(path.name for path in (folder / "torchvision").iterdir() if path.name != "downloads")


def listed_as_there(folder, name):
    return {row["task"]: row[""] for row in SUITES["torchvision"].overview(folder)}[name] == "there"


# --- each data set in its own format ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dataset"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_the_mnist_family(tmp_path, monkeypatch, server, capfd, name, dataset):
    images, labels, test_images, test_labels = serve_mnist(monkeypatch, server, name, dataset)
    task = load(tmp_path / "new" / "folder", name)
    assert pairs(*learnt(task)) == pairs(images, labels)
    assert len(task.val_labels) == 20
    assert np.array_equal(task.test_images.numpy(), test_images)  # grey, and in the order of the data set
    assert task.test_labels.tolist() == test_labels.tolist()
    assert task.class_names == tuple(getattr(torchvision.datasets, dataset).classes)
    assert "200/200" in capfd.readouterr().err  # the progress of reading


def test_svhn(tmp_path, monkeypatch, server):
    lists, expected = {}, {}
    for part, count in (("train", 60), ("test", 20)):
        images, labels = random_images(count, 32, 32, 3), DRAW.integers(1, 11, count)
        file = io.BytesIO()
        scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)})
        server.files[f"{part}_32x32.mat"] = file.getvalue()
        lists[part] = [f"{server.url}{part}_32x32.mat", f"{part}_32x32.mat", md5(file.getvalue())]
        expected[part] = pairs(images, labels % 10)  # the file calls the digit 0 ten
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    with_sizes(monkeypatch, "svhn", 60, 20)
    task = load(tmp_path, "svhn")
    assert pairs(*learnt(task)) == expected["train"]
    assert pairs(task.test_images, task.test_labels) == expected["test"]
    assert task.class_names == tuple("0123456789")


def tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def test_cifar10(tmp_path, monkeypatch, server):
    images, labels = random_images(60, 32, 32, 3), DRAW.integers(0, 10, 60)
    rows = images.transpose(0, 3, 1, 2).reshape(60, -1)
    batches = {
        f"data_batch_{i + 1}": {
            "data": rows[i * 10 : i * 10 + 10],
            "labels": labels[i * 10 : i * 10 + 10].tolist(),
        }
        for i in range(5)
    } | {"test_batch": {"data": rows[50:], "labels": labels[50:].tolist()}}
    batches["batches.meta"] = {"label_names": list("abcdefghij")}
    data = {name: pickle.dumps(batch) for name, batch in batches.items()}
    server.files["c.tar.gz"] = tar({f"cifar-10-batches-py/{name}": each for name, each in data.items()})
    made = torchvision.datasets.CIFAR10
    names = list(data)
    monkeypatch.setattr(made, "url", f"{server.url}c.tar.gz")
    monkeypatch.setattr(made, "tgz_md5", md5(server.files["c.tar.gz"]))
    monkeypatch.setattr(made, "train_list", [[name, md5(data[name])] for name in names[:5]])
    monkeypatch.setattr(made, "test_list", [[names[5], md5(data[names[5]])]])
    monkeypatch.setattr(made, "meta", made.meta | {"md5": md5(data["batches.meta"])})
    with_sizes(monkeypatch, "cifar10", 50, 10)
    task = load(tmp_path, "cifar10")
    assert pairs(*learnt(task)) == pairs(images[:50], labels[:50])
    assert np.array_equal(task.test_images.numpy(), images[50:])
    assert task.class_names == tuple("abcdefghij")


def encoded(image, kind):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()


def seen(data):
    """The 64 x 64 pixels of an encoded image: the short side resized, then the middle; with Pillow alone."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 64 / min(image.size)
    width, height = (max(64, int(side * scale)) for side in image.size)
    left, top = round((width - 64) / 2), round((height - 64) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + 64, top + 64)))


def unpacked_by(monkeypatch, module, archives):
    """Let a torchvision module "download" these archives, from memory."""
    calls = []

    def unpack(url, download_root, **_):
        calls.append(url)
        with zipfile.ZipFile(io.BytesIO(archives[url.rpartition("/")[2]])) as archive:
            archive.extractall(download_root)

    monkeypatch.setattr(module, "download_and_extract_archive", unpack)
    return calls


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def test_gtsrb_is_resized_and_split_by_track(tmp_path, monkeypatch):
    train = {
        f"GTSRB/Training/{sign:05d}/{track:05d}_{frame:05d}.ppm": encoded(
            random_images(1, 20 + 9 * track, 31, 3)[0], "PPM"
        )
        for sign in range(2)
        for track in range(10)
        for frame in range(3)
    }
    test = {f"{i:05d}.ppm": encoded(random_images(1, 70 + i, 80, 3)[0], "PPM") for i in range(4)}
    table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    table += "".join(f"{name};1;1;1;1;1;1;{i % 2}\n" for i, name in enumerate(test))
    archives = {
        "GTSRB-Training_fixed.zip": zipped(train),
        "GTSRB_Final_Test_Images.zip": zipped({f"GTSRB/Final_Test/Images/{k}": v for k, v in test.items()}),
        "GTSRB_Final_Test_GT.zip": zipped({"GT-final_test.csv": table.encode()}),
    }
    unpacked_by(monkeypatch, torchvision.datasets.gtsrb, archives)
    with_sizes(monkeypatch, "gtsrb", 60, 4)
    assert not listed_as_there(tmp_path, "gtsrb")
    task = load(tmp_path, "gtsrb")
    assert listed_as_there(tmp_path, "gtsrb")
    assert pairs(*learnt(task)) == pairs([seen(data) for data in train.values()], np.repeat([0, 1], 30))
    assert np.array_equal(task.test_images.numpy(), np.stack([seen(data) for data in test.values()]))
    assert task.test_labels.tolist() == [0, 1, 0, 1]
    track_of = {seen(data).tobytes(): name.rpartition("_")[0] for name, data in train.items()}
    sides = [
        {track_of[i.numpy().tobytes()] for i in images} for images in (task.train_images, task.val_images)
    ]
    assert [len(side) for side in sides] == [18, 2]
    assert not sides[0] & sides[1]
    with np.load(tmp_path / "torchvision" / "gtsrb_64.npz") as stored:
        assert len(np.unique(stored["train_groups"])) == 20  # a track has its number in its class alone
    assert len(task.class_names) == 43
    assert task.class_names[14] == "stop"


def test_eurosat_gets_a_test_part_that_no_seed_changes(tmp_path, monkeypatch):
    members = {
        f"2750/{name}/{name}_{i}.jpg": encoded(random_images(1, 64, 64, 3)[0], "JPEG")
        for name in ("River", "Forest")
        for i in range(50)
    }
    calls = unpacked_by(monkeypatch, torchvision.datasets.eurosat, {"EuroSAT.zip": zipped(members)})
    with_sizes(monkeypatch, "eurosat", 90, 10)
    first, other = load(tmp_path, "eurosat", seed=0), load(tmp_path, "eurosat", seed=1)
    assert len(calls) == 1
    assert [len(first.part(part)[1]) for part in ("train", "val", "test")] == [81, 9, 10]
    assert torch.equal(first.test_images, other.test_images)
    assert torch.equal(first.test_images, load(tmp_path / "anew", "eurosat").test_images)
    assert set(pixels(first.val_images)) != set(pixels(other.val_images))
    assert first.class_names == ("Forest", "River")
    images, labels = learnt(first)
    expected = pairs([seen(data) for data in members.values()], np.repeat([1, 0], 50))
    whole = torch.cat([images, first.test_images]), torch.cat([labels, first.test_labels])
    assert pairs(*whole) == expected
    assert first.test_labels.unique().tolist() == [0, 1]  # drawn from all, not the first of a sorted list


def test_dtd_trains_on_the_train_and_val_lists_of_its_first_partition(tmp_path, monkeypatch, server):
    images = {
        f"{name}/{name}_{i:04d}.jpg": encoded(random_images(1, 70 + i, 90, 3)[0], "JPEG")
        for name in ("banded", "dotted")
        for i in range(10)
    }
    names = list(images)
    lists = {
        "train": names[0:5] + names[10:15],
        "val": names[5:8] + names[15:18],
        "test": names[8:10] + names[18:20],
    }
    members = {f"dtd/images/{name}": data for name, data in images.items()}
    members |= {f"dtd/labels/{part}1.txt": "\n".join(listed).encode() for part, listed in lists.items()}
    server.files["dtd-r1.0.1.tar.gz"] = tar(members)
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{server.url}dtd-r1.0.1.tar.gz")
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", md5(server.files["dtd-r1.0.1.tar.gz"]))
    with_sizes(monkeypatch, "dtd", 16, 4)
    task = load(tmp_path, "dtd")
    expected = [
        (seen(images[name]), int(name.startswith("dotted"))) for name in lists["train"] + lists["val"]
    ]
    assert pairs(*learnt(task)) == pairs(*zip(*expected, strict=True))
    assert np.array_equal(task.test_images.numpy(), np.stack([seen(images[name]) for name in lists["test"]]))
    assert task.class_names == ("banded", "dotted")


def test_the_table_fits_torchvision():
    for source in torchvision_sets.sources().values():
        accepted = inspect.signature(getattr(torchvision.datasets, source.dataset)).parameters
        for options in (*source.train, *source.test, {"root": "", "transform": None, "download": True}):
            assert set(options) <= set(accepted)


# --- what is kept, what is done again --------------------------------------------------------------------


def test_a_second_call_needs_neither_network_nor_archives(tmp_path, monkeypatch, server):
    serve_mnist(monkeypatch, server)
    assert not listed_as_there(tmp_path, "mnist")
    first = load(tmp_path)
    assert listed_as_there(tmp_path, "mnist")
    served = list(server.served)
    assert made_files(tmp_path) == ["mnist.npz", "mnist.npz.sha256"]
    file = tmp_path / "torchvision" / "mnist.npz"
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (tmp_path / "torchvision" / "mnist.npz.sha256").read_text() == f"{found}  mnist.npz\n"
    unpacked = [path.name for path in (tmp_path / "torchvision" / "downloads").rglob("*ubyte")]
    assert not unpacked
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    second = load(tmp_path)
    assert torch.equal(first.train_images, second.train_images)
    assert first.sha256 == second.sha256 == found
    assert server.served == served


def test_a_damaged_file_is_refused_and_made_anew_when_deleted(tmp_path, monkeypatch, server):
    serve_mnist(monkeypatch, server)
    first, served = load(tmp_path), list(server.served)
    file = tmp_path / "torchvision" / "mnist.npz"
    file.write_bytes(file.read_bytes()[:-100])
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    message = f"its sha256 should be {first.sha256} and is {found}; delete it and call again"
    with pytest.raises(ValueError, match=re.escape(str(file)) + ".*" + re.escape(message)):
        load(tmp_path)
    file.unlink()
    assert load(tmp_path).sha256 == first.sha256
    (tmp_path / "torchvision" / "mnist.npz.sha256").unlink()
    assert not listed_as_there(tmp_path, "mnist")
    assert load(tmp_path).sha256 == first.sha256
    assert server.served == served  # the archives were still there


def test_without_a_network_the_error_tells_cause_and_remedy(tmp_path, monkeypatch, server):
    serve_mnist(monkeypatch, server)
    monkeypatch.setattr(
        torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/", "https://127.0.0.1:1/"]
    )
    message = r"task 'mnist' could not be downloaded to .*mnist: Error downloading train-images-idx3-ubyte.gz"
    remedy = r"refused.*; look at the network connection and call again .*suite='digits', which needs no"
    with pytest.raises(OSError, match=f"{message}.*{remedy}"):
        load(tmp_path)
    assert made_files(tmp_path) == []
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [server.url])
    assert len(load(tmp_path).test_labels) == 50


def test_a_download_cut_short_is_noticed_and_only_that_file_fetched_again(tmp_path, monkeypatch, server):
    images, labels, *_ = serve_mnist(monkeypatch, server)
    server.cut = {"t10k-images-idx3-ubyte.gz"}
    for _ in range(2):
        with pytest.raises(
            OSError, match=r"'mnist' could not be downloaded to .*: .*t10k-images.*corrupted; look"
        ):
            load(tmp_path)
        assert made_files(tmp_path) == []
    server.cut = set()
    assert pairs(*learnt(load(tmp_path))) == pairs(images, labels)
    fetched = [server.served.count(file) // 2 for file in server.files]  # torchvision asks twice each time
    assert fetched == [1, 1, 3, 1]


def test_what_an_interrupted_call_left_unpacked_is_not_taken_for_complete(tmp_path, monkeypatch, server):
    images, labels, *_ = serve_mnist(monkeypatch, server)
    unpack = torchvision.datasets.utils._decompress

    def interrupted(path, *arguments, **options):
        whole = unpack(path, *arguments, **options)
        if "train-images" in whole.name:
            whole.write_bytes(whole.read_bytes()[:5_000])
            raise KeyboardInterrupt
        return whole

    with monkeypatch.context() as context:
        context.setattr(torchvision.datasets.utils, "_decompress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path)
    left = list((tmp_path / "torchvision" / "downloads").rglob("train-images-idx3-ubyte"))
    assert [path.stat().st_size for path in left] == [5_000]  # it did stop half way
    assert made_files(tmp_path) == []
    assert pairs(*learnt(load(tmp_path))) == pairs(images, labels)


def test_a_half_unpacked_folder_which_torchvision_takes_for_whole_is_unpacked_anew(tmp_path, monkeypatch):
    members = {
        f"2750/{c}/{i}.jpg": encoded(random_images(1, 64, 64, 3)[0], "JPEG") for c in "ab" for i in range(20)
    }
    unpacked_by(monkeypatch, torchvision.datasets.eurosat, {"EuroSAT.zip": zipped(members)})
    with_sizes(monkeypatch, "eurosat", 36, 4)
    left = tmp_path / "torchvision" / "downloads" / "eurosat" / "eurosat" / "2750" / "a" / "0.jpg"
    left.parent.mkdir(parents=True)
    left.write_bytes(members["2750/a/0.jpg"])
    kept = left.parents[2] / "EuroSAT.zip"
    kept.write_bytes(b"an archive")
    assert len(torchvision.datasets.EuroSAT(str(left.parents[3]), download=True)) == 1
    assert len(learnt(load(tmp_path, "eurosat"))[1]) == 36
    assert [path.name for path in left.parents[3].rglob("*")] == ["eurosat", "EuroSAT.zip"]


def test_another_number_of_images_is_refused(tmp_path, monkeypatch, server):
    serve_mnist(monkeypatch, server)
    with_sizes(monkeypatch, "mnist", 60_000, 10_000)
    message = (
        r"'mnist' has 200 train and 50 test images in .*, not 60000 and 10000; delete that folder and call"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    assert made_files(tmp_path) == []
    with_sizes(monkeypatch, "mnist", 200, 51)
    with pytest.raises(ValueError, match=r"200 train and 50 test images in .*, not 200 and 51"):
        load(tmp_path)


def test_a_connection_that_breaks_off_is_no_bug(tmp_path, monkeypatch):
    def broken(_dataset):
        raise http.client.IncompleteRead(b"the first half")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", broken)
    with pytest.raises(OSError, match=r"'mnist' could not be downloaded to .*IncompleteRead.*; look"):
        load(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_found_behind_other_errors(number):
    middle, last = RuntimeError("while writing"), ValueError("in the end")
    middle.__context__, last.__cause__ = OSError(number, "no room"), middle
    assert image_files.full_disk(last).errno == number
    assert image_files.full_disk(OSError(errno.EACCES, "not yours")) is None


@pytest.mark.parametrize("room", [1_000, 120_000, 170_000], ids=["archive", "unpacked", "file"])
def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path, monkeypatch, server, room):
    serve_mnist(monkeypatch, server)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # no file may grow larger
        with pytest.raises(
            OSError, match=r"the disk is full while task 'mnist' was being made in .*free some"
        ) as e:
            load(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert e.value.errno == errno.EFBIG
    assert made_files(tmp_path) == []
    assert len(load(tmp_path).test_labels) == 50


def test_an_older_file_stays_when_a_new_one_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "x.npz"
    image_files.write_arrays(file, {"old": np.zeros(3)})
    before = file.read_bytes()

    def fail(file, **_):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space left"):
        image_files.write_arrays(file, {"new": np.ones(3)})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [
        "x.npz"
    ]  # and no checksum that says it is the new one


def test_no_checksum_tells_of_a_file_that_is_not_in_its_place_yet(tmp_path, monkeypatch):
    file, replace_file = tmp_path / "x.npz", os.replace

    def interrupted(source, target):
        if target == file:
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        image_files.write_arrays(file, {"new": np.ones(3)})
    assert list(tmp_path.iterdir()) == []


def test_without_torchvision_the_error_tells_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match=r'needs torchvision .*python -m pip install "torchvision"'):
        load(tmp_path)
