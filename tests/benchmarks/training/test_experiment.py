"""The folder of a run: resumed to the same bits after any kill, whole or absent files, clear refusals."""

import dataclasses
import errno
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from test_finetune import jointly, nan_in_step, two_tasks

from conftest import ROOT
from small_encoder import tiny_backbone, tiny_head, tiny_run, tiny_task
from taskvec_mini import _files
from taskvec_mini.benchmarks.encoders import state_of
from taskvec_mini.benchmarks.heads import PrototypeHead, prototype_head
from taskvec_mini.benchmarks.training import DivergedError, Experiment, Run
from taskvec_mini.errors import UserError

HEAVY = {"optimizer": "sgd", "momentum": 0.9}  # an optimiser with a memory
posix = pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")


def weights(folder):
    """Name and bytes of every checkpoint in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("epoch_*.safetensors"))}


def records(folder):
    """What the JSON files say, but for the time it took."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("epoch_*.json"))]
    return [{n: v for n, v in each.items() if n not in ("seconds", "images_per_second")} for each in found]


def leftovers(folder):
    """What lies there beside the files of a run."""
    own = ("settings.json", "epoch_*", "latest.safetensors", "head.safetensors", ".lock")
    return [path.name for path in folder.iterdir() if not any(map(path.match, own))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of three epochs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_run(folder=folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")


def back_to(folder, epoch):
    """A folder as a run of so many epochs leaves it."""
    shutil.rmtree(folder)
    tiny_run(folder=folder, epochs=epoch)


# --- what stands in the folder ---------------------------------------------------------------------------


def test_a_run_in_a_folder_is_the_run_in_memory(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        ".lock",
        *(f"epoch_00{epoch}.{kind}" for epoch in (1, 2, 3) for kind in ("json", "safetensors")),
        "latest.safetensors",
        "settings.json",
    ]
    in_folder, in_memory = tiny_run(folder=whole), tiny_run()
    for epoch in (1, 2, 3):
        found, expected = in_folder.task_vector(epoch), in_memory.task_vector(epoch)
        assert found.layout == expected.layout  # safetensors lists names in an order of its own
        assert torch.equal(found.flat, expected.flat)
    assert in_folder.losses == in_memory.losses
    assert in_folder.accuracies == in_memory.accuracies


def test_a_finished_run_is_read_and_not_repeated(folder):
    (folder / "latest.safetensors").unlink()  # only a run that goes on needs it
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert tiny_run(folder=folder).epochs == (1, 2, 3)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "gd"}])
def test_a_run_with_a_constant_rate_can_be_prolonged(tmp_path, changes):
    """A shorter run is a longer one's beginning, the optimiser's memory included."""
    for epochs in (1, 3, 2):
        run = tiny_run(folder=tmp_path / "a", epochs=epochs, **changes)
        assert len(run.losses) == epochs
    tiny_run(folder=tmp_path / "b", epochs=3, **changes)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert records(tmp_path / "a") == records(tmp_path / "b")


def test_epochs_that_were_not_kept_have_no_file_and_cannot_be_asked_for_later(tmp_path):
    tiny_run(folder=tmp_path, keep=[1, 3])
    assert list(weights(tmp_path)) == ["epoch_001.safetensors", "epoch_003.safetensors"]
    assert len(records(tmp_path)) == 3
    with pytest.raises(
        ValueError, match=r"the checkpoint of epoch 2 is not in .*; ask for an epoch that was kept"
    ):
        tiny_run(folder=tmp_path)


def test_joint_training_is_resumed_too(tmp_path):
    heads, tasks = two_tasks()
    for name, epochs in (("a", [1, 3]), ("b", [3])):
        for each in epochs:
            jointly(heads, tasks, folder=tmp_path / name, epochs=each)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != {}


# --- kill -9 ---------------------------------------------------------------------------------------------


def train(folder, epochs, deadly=None):
    """Run in a process of its own, which kills itself before or after its so-manieth renaming of a file."""
    count, replace = 0, os.replace

    def replace_or_die(source, target):
        nonlocal count
        for moment in (0, 1):
            if moment == 1:
                replace(source, target)
            if count == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    if deadly is not None:
        os.replace = replace_or_die
    tiny_run(folder=folder, epochs=epochs, **HEAVY)


@pytest.fixture(scope="module")
def spawn():
    """A function that starts `train` in a fresh process, from a server that has imported all that is slow.

    The server does not see the folders of the tests: a module from there it would leave out without a word.
    """
    context = multiprocessing.get_context("forkserver")
    slow = [
        "torch._dynamo",
        "taskvec_mini.benchmarks.training",
        "pytest",
        "scripts.build",
        "scripts.get_chromium",
    ]
    context.set_forkserver_preload(slow)

    def start(*words):
        process = context.Process(target=train, args=words)
        process.start()
        return process

    return start


def finished(process):
    process.join(300)
    return process.exitcode


@posix
def test_ten_kills_at_random_moments_change_no_bit(tmp_path, spawn):
    """Each comes after no, one or two further epochs, then somewhere in the next two."""
    epochs, source = 60, random.Random(0)
    assert finished(spawn(tmp_path / "whole", epochs)) == 0
    seconds = tiny_run(folder=tmp_path / "whole", epochs=epochs, **HEAVY).records[-1]["seconds"]
    exits = []
    for _ in range(10):
        done, process = len(records(tmp_path / "killed")), spawn(tmp_path / "killed", epochs)
        wait_for(process, tmp_path / "killed", min(epochs, done + source.randrange(3)))
        time.sleep(source.uniform(0, 4) * seconds)
        process.kill()
        exits.append(finished(process))
        assert len(records(tmp_path / "killed")) >= done
    assert exits.count(-signal.SIGKILL) >= 3  # all ten, unless this process had to wait for long
    assert finished(spawn(tmp_path / "killed", epochs)) == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert len(weights(tmp_path / "whole")) == epochs
    assert leftovers(tmp_path / "killed") == []


def wait_for(process, folder, epoch):
    """Until so many epochs are complete, or the process has ended."""
    while process.is_alive() and not (folder / "settings.json").exists():
        time.sleep(0.001)
    while process.is_alive() and epoch and not (folder / f"epoch_{epoch:03}.json").exists():
        time.sleep(0.001)


@posix
def test_a_kill_around_every_renaming_changes_no_bit(tmp_path, spawn):
    """Settings, then three files an epoch; before and after each of them."""
    assert finished(spawn(tmp_path / "whole", 2)) == 0
    for deadly in range(15):
        folder = tmp_path / str(deadly)
        assert finished(spawn(folder, 2, deadly)) == (-signal.SIGKILL if deadly < 14 else 0)
        for path in folder.glob("epoch_*.json"):  # an epoch counts once its record is there
            assert path.with_suffix(".safetensors").exists()
        tiny_run(folder=folder, epochs=2, **HEAVY)
        assert weights(folder) == weights(tmp_path / "whole")
        assert records(folder) == records(tmp_path / "whole")


# --- a disk that is full ---------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="finds the name of an open file in /proc")
@pytest.mark.parametrize(
    ("turn", "name"), [(1, "epoch_003.safetensors"), (2, "latest.safetensors"), (3, "epoch_003.json")]
)
def test_a_full_disk_leaves_earlier_checkpoints_and_the_run_goes_on_later(
    folder, whole, monkeypatch, turn, name
):
    """Half of the file is on the disk, then there is no space."""
    back_to(folder, 2)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fsync, written = os.fsync, []

    def fsync_or_fill(number):
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{number}"))
        if path.is_file():
            written.append(path)
        if len(written) == turn:
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync_or_fill)
        with pytest.raises(
            OSError, match=r"No space left on device.*free some space and start the same run"
        ) as caught:
            tiny_run(folder=folder)
    assert str(folder / name) in str(caught.value)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "epoch_003.json" not in after
    assert leftovers(folder) == []
    for each in set(before) - {"latest.safetensors"}:
        assert after[each] == before[each]
    tiny_run(folder=folder)
    assert weights(folder) == weights(whole)
    assert records(folder) == records(whole)


def fill(folder):
    """In a process of its own: no file may grow beyond a kilobyte, which the system enforces."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    try:
        tiny_run(folder=folder)
    except OSError as error:
        os._exit(7 if "could not be written" in str(error) else 8)


@posix
def test_a_write_that_the_system_refuses_is_reported(folder, whole, spawn):
    back_to(folder, 2)
    before = weights(folder)
    process = multiprocessing.get_context("forkserver").Process(target=fill, args=(folder,))
    process.start()
    assert finished(process) == 7
    assert weights(folder) == before
    tiny_run(folder=folder)
    assert weights(folder) == weights(whole)


# --- files that are not what they should be --------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


def braces(path):
    path.write_text("{}")


def a_list(path):
    path.write_text("[]")


def replace_by_another(path):
    save_file({"a": torch.ones(2)}, path)


tensors_spoiled = pytest.mark.parametrize("spoil", [truncate, flip_a_bit, empty, replace_by_another])
json_spoiled = pytest.mark.parametrize("spoil", [truncate, empty, braces, a_list])


def refused(call, path):
    """The message with which a damaged file is refused before anything is changed."""
    before = {each: each.read_bytes() for each in path.parent.iterdir()}
    with pytest.raises(UserError) as caught:
        call()
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == before
    message = str(caught.value)
    assert str(path) in message
    return message


@tensors_spoiled
def test_a_spoiled_checkpoint_is_named_and_comes_back_from_another_folder(folder, tmp_path, spoil):
    path, expected = folder / "epoch_002.safetensors", tiny_run(folder=folder).state(2)
    spoil(path)
    run = tiny_run(folder=folder)
    message = refused(lambda: run.task_vector(2), path)
    assert "finetune again into another folder and copy this file from there" in message
    assert len(run.task_vector(1)) == len(run.task_vector(3))
    tiny_run(folder=tmp_path / "other")
    shutil.copy(tmp_path / "other" / path.name, path)
    assert all(torch.equal(part, expected[name]) for name, part in run.state(2).items())


@tensors_spoiled
def test_a_run_does_not_go_on_from_a_spoiled_file_and_begins_anew_without_it(folder, tmp_path, spoil):
    path = folder / "latest.safetensors"
    spoil(path)
    message = refused(lambda: tiny_run(folder=folder, epochs=4), path)
    assert "delete this file and finetune again: the run then begins anew" in message
    path.unlink()
    tiny_run(folder=folder, epochs=4)
    tiny_run(folder=tmp_path / "other", epochs=4)
    assert weights(folder) == weights(tmp_path / "other")


@json_spoiled
@pytest.mark.parametrize("epochs", [3, 4])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_spoiled_record_is_found_first_and_comes_back_without_training(folder, spoil, epoch, epochs):
    path, before = folder / f"epoch_00{epoch}.json", records(folder)
    expected = path.read_bytes()
    spoil(path)
    message = refused(lambda: tiny_run(folder=folder, epochs=epochs), path)
    assert "delete this file and finetune again: the same command writes it anew from latest" in message
    path.unlink()
    run = tiny_run(folder=folder, epochs=epochs)
    assert path.read_bytes() == expected
    assert records(folder)[:3] == before
    assert len(run.records) == epochs


def test_a_record_of_a_finished_run_from_which_nothing_goes_on_comes_back_by_training(folder):
    path, before = folder / "epoch_002.json", records(folder)
    (folder / "latest.safetensors").unlink()
    empty(path)
    assert "delete this file and finetune again: the run begins anew" in refused(
        lambda: tiny_run(folder=folder), path
    )
    path.unlink()
    tiny_run(folder=folder)
    assert records(folder) == before


@json_spoiled
def test_spoiled_settings_are_found_first_and_come_back(folder, spoil):
    path = folder / "settings.json"
    expected = path.read_bytes()
    spoil(path)
    message = refused(lambda: tiny_run(folder=folder, epochs=4), path)
    assert "delete this file and give the command that made the run again" in message
    path.unlink()
    tiny_run(folder=folder)
    assert path.read_bytes() == expected


def test_without_settings_the_files_of_another_run_are_refused_all_the_same(folder):
    (folder / "settings.json").unlink()
    with pytest.raises(UserError, match=r"epoch_001.json is the record of another run than .*settings.json"):
        tiny_run(folder=folder, seed=1)


# --- files of another run --------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path):
    """The folder of a run on another task."""
    tiny_run(folder=tmp_path / "other", task=tiny_task("other", seed=3))
    return tmp_path / "other"


def test_the_checkpoint_of_another_run_is_refused(folder, other):
    path = folder / "epoch_003.safetensors"
    shutil.copy(other / path.name, path)
    message = refused(lambda: tiny_run(folder=folder).state(), path)
    assert "is the checkpoint of another run than" in message


def test_the_checkpoint_of_another_epoch_is_refused(folder):
    path = folder / "epoch_003.safetensors"
    shutil.copy(folder / "epoch_002.safetensors", path)
    assert "holds the parameters after epoch 2" in refused(lambda: tiny_run(folder=folder).state(), path)


def test_a_run_does_not_go_on_from_the_state_of_another(folder, other):
    path = folder / "latest.safetensors"
    shutil.copy(other / path.name, path)
    assert "is of another run than" in refused(lambda: tiny_run(folder=folder, epochs=4), path)


def test_a_checkpoint_is_no_state_to_go_on_from_and_the_other_way_round(folder):
    latest, checkpoint = folder / "latest.safetensors", folder / "epoch_002.safetensors"
    shutil.copy(latest, checkpoint)
    assert "but no checkpoint" in refused(lambda: tiny_run(folder=folder).state(2), checkpoint)
    shutil.copy(folder / "epoch_003.safetensors", latest)
    message = refused(lambda: tiny_run(folder=folder, epochs=4), latest)
    assert "but no state of a run to go on from" in message


def test_the_record_of_another_run_or_epoch_is_refused(folder, other):
    path = folder / "epoch_002.json"
    shutil.copy(folder / "epoch_001.json", path)
    assert "is damaged, it is no record of epoch 2" in refused(lambda: tiny_run(folder=folder), path)
    shutil.copy(other / path.name, path)
    assert "is the record of another run than" in refused(lambda: tiny_run(folder=folder), path)


def test_leftovers_of_every_machine_are_swept_but_links_are_left(folder, tmp_path):
    with _files.replacing(folder / "any") as place:
        place.touch()
        own = place.parent.name
    (folder / "any").unlink()
    _, process, letters = own.removeprefix(".taskvec_mini-").split("-")
    for name in (own, f".taskvec_mini-00000000-{process}-{letters}"):
        (folder / name).mkdir()
        (folder / name / ".tmpAbCdEf").write_bytes(b"what safetensors had begun")
    kept = tmp_path / "kept"
    kept.mkdir()
    (folder / ".taskvec_mini-00000000-7-link").symlink_to(kept, target_is_directory=True)
    tiny_run(folder=folder)
    assert leftovers(folder) == [".taskvec_mini-00000000-7-link"]
    assert kept.is_dir()


# --- another run in the same folder ----------------------------------------------------------------------


def other_loss(model, _):
    return next(model.parameters()).sum()


def brighter(task):
    return dataclasses.replace(task, train_images=task.train_images + 1)


OTHERS = {
    r"settings.learning_rate = 0.01, but this run has 0.02": {"learning_rate": 0.02},
    r"settings.batch_size = 16, but this run has 8": {"batch_size": 8},
    r"settings.clip_norm = None, but this run has 1.0": {"clip_norm": 1},
    r"settings.seed = 0, but this run has 3": {"seed": 3},
    r"settings.optimizer = 'adamw', but this run has 'sgd'": {"optimizer": "sgd"},
    r"settings.schedule = 'constant', but this run has 'cosine'": {"schedule": "cosine"},
    r"extra_loss = None, but this run has 'other_loss'": {"extra_loss": other_loss},
    r"backbone.parameters = '\w{8}', but this run has '\w{8}'": {"backbone": tiny_backbone(1)},
    r"backbone.preparation = ": {"backbone": dataclasses.replace(tiny_backbone(), std=(0.5, 0.5, 0.5))},
    r"tasks.quarters.head = '\w{8}', but this run has '\w{8}'": {"head": tiny_head(seed=1)},
    r"tasks.quarters.train_data = ": {"task": brighter(tiny_task())},
    r"task_order = \['quarters'\], but this run has \['other'\]": {"task": tiny_task("other")},
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_folder_of_another_run_is_refused_with_the_field_and_both_values(folder, message):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=rf"holds a run with {message}"):
        tiny_run(folder=folder, **OTHERS[message])
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_scale_of_a_head_is_part_of_the_run(folder):
    with pytest.raises(ValueError, match=r"tasks.quarters.head"):
        tiny_run(folder=folder, head=PrototypeHead(tiny_head().prototypes, tiny_head().centre, 6.0))


def test_a_cosine_run_of_other_length_is_another_run(tmp_path):
    tiny_run(folder=tmp_path, schedule="cosine")
    with pytest.raises(ValueError, match=r"settings.epochs = 3, but this run has 4"):
        tiny_run(folder=tmp_path, schedule="cosine", epochs=4)


# --- a run that diverges ---------------------------------------------------------------------------------


def test_a_run_that_diverges_leaves_earlier_checkpoints_untouched(tmp_path):
    with pytest.raises(DivergedError, match="in epoch 3, step 1 of it"):
        tiny_run(folder=tmp_path / "a", extra_loss=nan_in_step(7))
    tiny_run(folder=tmp_path / "b", extra_loss=nan_in_step(99), epochs=2)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert len(weights(tmp_path / "a")) == len(records(tmp_path / "a")) == 2


# --- two processes in one folder -------------------------------------------------------------------------

HOLDING = """
import pathlib, sys, time
from taskvec_mini.benchmarks.training import RunFolder
with RunFolder(pathlib.Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    words = [sys.executable, "-c", HOLDING, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as first:
        try:
            assert first.stdout.readline().strip() == b"held"
            written = tmp_path / ".taskvec_mini-00000000-1-x"  # what the first one is writing
            written.mkdir()
            with pytest.raises(OSError, match=r"another process is finetuning in .*; wait for it, or give"):
                tiny_run(epochs=1, folder=tmp_path)
            assert written.exists()
        finally:
            first.kill()  # the system lets its lock go
    assert tiny_run(epochs=1, folder=tmp_path).epochs == (1,)
    assert not written.exists()


# --- an experiment ---------------------------------------------------------------------------------------

SHARED = {"suite": "digits", "backbone": "tiny", "heads": "prototypes", "limit": None, "seed": 0}
BACKBONE = tiny_backbone()


@pytest.fixture
def experiment(tmp_path):
    """Two tasks of two and three epochs, and both jointly."""
    experiment = Experiment(tmp_path / "runs", SHARED)
    experiment.create()
    tasks = {name: tiny_task(name, seed=seed) for name, seed in (("a", 0), ("b", 3))}
    for epochs, (name, task) in enumerate(tasks.items(), 2):
        tiny_run(
            head=experiment.head(BACKBONE, task), task=task, epochs=epochs, folder=experiment.run(name).path
        )
    heads = {name: experiment.head(BACKBONE, task) for name, task in tasks.items()}
    jointly(heads, tasks, folder=experiment.joint().path, epochs=1)
    return experiment


def test_an_experiment_knows_its_tasks_epochs_parameters_and_heads(experiment):
    opened = Experiment.open(experiment.folder)
    assert opened.shared == SHARED
    assert opened.chosen(None) == ["a", "b"]
    assert opened.chosen(["b"]) == ["b"]
    assert (opened.epoch(["a", "b"], None), opened.epoch(["b"], None), opened.epoch(["b"], 1)) == (2, 3, 1)
    states = opened.states(["a", "b"], 2, pretrained=state_of(BACKBONE.model))
    assert list(states["a"]) == list(state_of(BACKBONE.model))
    assert all(torch.equal(part, opened.run("b").state(2)[name]) for name, part in states["b"].items())
    assert torch.equal(
        opened.heads(["a"])["a"].prototypes, prototype_head(BACKBONE, tiny_task("a")).prototypes
    )


def test_what_an_experiment_has_not_is_named(experiment):
    with pytest.raises(UserError, match=r"unknown run in .*runs: 'c': "):
        experiment.chosen(["c"])
    with pytest.raises(UserError, match="the task 'a' is given twice"):
        experiment.chosen(["a", "a"])
    with pytest.raises(UserError, match=r"the runs of a, b in .* have not epoch 3 in common; there is 1, 2"):
        experiment.epoch(["a", "b"], 3)
    with pytest.raises(UserError, match=r"the run of a in .* began with other weights of tiny than"):
        experiment.states(["a"], 1, pretrained=state_of(tiny_backbone(1).model))
    with pytest.raises(FileNotFoundError, match=r"holds no runs; make some with `finetune`"):
        Experiment.open(experiment.run("a").path)


def test_an_experiment_of_other_runs_is_refused_before_anything_is_written(experiment, tmp_path):
    with pytest.raises(UserError, match=r"holds runs with seed = 0, not 1; choose another folder with --out"):
        Experiment.prepare(experiment.folder, {**SHARED, "seed": 1})
    assert Experiment.prepare(experiment.folder, SHARED).shared == SHARED
    Experiment.prepare(tmp_path / "new", SHARED)
    assert not (tmp_path / "new").exists()


@json_spoiled
def test_a_spoiled_description_is_found_first_and_comes_back(experiment, spoil):
    path = experiment.folder / "experiment.json"
    expected = path.read_bytes()
    spoil(path)
    for call in (Experiment.open, lambda folder: Experiment.prepare(folder, SHARED)):
        with pytest.raises(UserError, match=r"experiment.json is damaged.*delete this file and give"):
            call(experiment.folder)
    path.unlink()
    Experiment.prepare(experiment.folder, SHARED).create()
    assert path.read_bytes() == expected


def test_the_head_of_another_run_is_refused(experiment):
    shutil.copy(experiment.run("b").head, experiment.run("a").head)
    with pytest.raises(UserError, match=r"a/head.safetensors is not the head that the run of a was trained"):
        experiment.heads(["b", "a"])


def test_the_parameters_of_the_start_are_kept_once(experiment):
    state = state_of(BACKBONE.model)
    experiment.keep_pretrained(state)
    before = experiment.pretrained.read_bytes()
    experiment.keep_pretrained(state)
    assert experiment.pretrained.read_bytes() == before
    with pytest.raises(UserError, match="holds other parameters than the encoder has now"):
        experiment.keep_pretrained(state_of(tiny_backbone(1).model))
    truncate(experiment.pretrained)
    with pytest.raises(UserError, match=r"pretrained.safetensors .*; delete this file and give the same"):
        experiment.keep_pretrained(state)


def test_a_run_that_is_read_is_the_run_that_was_finetuned(folder):
    run = tiny_run(folder=folder, keep=[1, 3])
    found = Run.read(folder, settings=run.settings, pretrained=run.pretrained, keep=[1, 3])
    assert (found.epochs, found.records) == (run.epochs, run.records)
    assert torch.equal(found.task_vector().flat, run.task_vector().flat)
    (folder / "epoch_003.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"epoch_003.json"):
        Run.read(folder, settings=run.settings, pretrained=run.pretrained)
