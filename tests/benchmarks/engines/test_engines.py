"""Finetuning on many tasks: a Ray cluster gives the bits of one machine, also where a worker is killed."""

import os
import pickle
import re
import signal
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from taskvec_mini import records
from taskvec_mini._files import checksum
from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.data import load_tasks
from taskvec_mini.benchmarks.encoders import load_backbone, state_of
from taskvec_mini.benchmarks.engines import EngineOptions, Job, JobError, finetune_all, opened
from taskvec_mini.benchmarks.engines import ray as ray_engine
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies.clip import MeasuredSpeed, budget, evaluation, rounds, study
from taskvec_mini.benchmarks.training import Experiment, Settings
from taskvec_mini.errors import UserError

TASKS = ("digits", "odd or even")
RAY = EngineOptions(engine="ray")
SETTINGS = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 20}
pocket = partial(load_backbone, "random-pocket")


def parts(name, encoder):
    task = load_tasks([name], suite="digits", limit=60)[name]
    return prototype_head(encoder, task), task


def jobs(folder, names=TASKS, **changes):
    settings = Settings(**{**SETTINGS, **changes})
    return {name: Job(load=partial(parts, name), settings=settings, folder=folder / name) for name in names}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder and the runs of one machine, against which the cluster is judged."""
    folder = tmp_path_factory.mktemp("here")
    return folder, finetune_all(pocket, jobs(folder), progress=False)


@pytest.fixture(scope="module")
def cluster():
    """Ray with room for two workers; no process of it may be left when it ends."""
    ray = ray_engine.load_ray()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    before = psutil.Process().children(recursive=True)
    with ray_engine.opened(EngineOptions(engine="ray", workers=2), jobs=2):
        yield ray
    left = [each for each in psutil.Process().children(recursive=True) if each not in before]
    assert psutil.wait_procs(left, timeout=20)[1] == []


def tensors_of(folder):
    """The tensors in all checkpoints of a run, as bytes, by file."""
    return {
        path.name: {name: part.numpy().tobytes() for name, part in load_file(path).items()}
        for path in folder.glob("*.safetensors")
    }


def file_names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- refusals, before anything is started ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "rey"}, "unknown engine 'rey': did you mean 'ray'?"),
        ({"workers": 2}, "workers=2 is for engine='ray', not for 'local'; leave it out"),
        ({"address": "auto"}, "address='auto' is for engine='ray'"),
        ({"gpus_per_worker": 0}, "gpus_per_worker=0 is for engine='ray'"),
        ({"engine": "ray", "workers": 0}, "workers must be at least 1, got 0"),
        ({"engine": "ray", "retries": -1}, "retries must be at least 0, got -1"),
        ({"engine": "ray", "gpus_per_worker": -1}, "gpus_per_worker must be at least 0, got -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EngineOptions(**options)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_no_jobs_are_refused(engine):
    with pytest.raises(ValueError, match="jobs is empty"):
        finetune_all(pocket, {}, options=EngineOptions(engine=engine))


def test_ray_needs_a_folder_for_each_task(tmp_path):
    load, settings = partial(parts, "digits"), Settings(**SETTINGS)
    with pytest.raises(ValueError, match="on storage that all machines share; 'b' has none"):
        finetune_all(
            pocket,
            {
                "a": Job(load=load, settings=settings, folder=tmp_path),
                "b": Job(load=load, settings=settings),
            },
            options=RAY,
        )
    same = {name: Job(load=load, settings=settings, folder=tmp_path) for name in "ab"}
    with pytest.raises(ValueError, match=r"'a' and 'b' have the same folder .* give each its own"):
        finetune_all(pocket, same, options=RAY)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=re.escape('python -m pip install "taskvec-mini[cluster]"')):
        finetune_all(pocket, jobs(tmp_path), options=RAY)
    assert list(tmp_path.iterdir()) == []


def unconnected(init=None):
    """Ray before `ray.init`."""
    return SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://localhost:{port}", "[::1]:{port}"])
def test_an_address_where_nothing_answers_is_named_within_seconds(tmp_path, monkeypatch, address):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setitem(sys.modules, "ray", unconnected())
    begin, where = time.monotonic(), address.format(port=port)
    with pytest.raises(ConnectionError, match=re.escape(f"no Ray cluster answers at {where} (")):
        finetune_all(pytest.fail, jobs(tmp_path), options=EngineOptions(engine="ray", address=where))
    assert time.monotonic() - begin < 20
    assert list(tmp_path.iterdir()) == []


def test_the_address_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", unconnected())
    monkeypatch.setenv("RAY_ADDRESS", "localhost:99999")
    with pytest.raises(ConnectionError, match="no Ray cluster answers at localhost:99999"):
        finetune_all(pocket, jobs(tmp_path), options=RAY)


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:head", ":6379"])
def test_an_address_without_host_or_port_is_refused(tmp_path, monkeypatch, address):
    monkeypatch.setitem(sys.modules, "ray", unconnected())
    with pytest.raises(ValueError, match=f"HOST:PORT, such as .* got '{address}'"):
        finetune_all(pocket, jobs(tmp_path), options=EngineOptions(engine="ray", address=address))


def test_a_cluster_that_cannot_be_joined_is_named(monkeypatch):
    def init(*_, **__):
        raise RuntimeError("Version mismatch")

    monkeypatch.setitem(sys.modules, "ray", unconnected(init))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(ConnectionError, match=f"{address} could not be joined .Version mismatch"),
            opened(EngineOptions(engine="ray", address=address), jobs=1),
        ):
            pass


def test_a_cluster_that_does_not_start_is_explained(monkeypatch):
    def init(*_, **__):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setitem(sys.modules, "ray", unconnected(init))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(
            UserError, match=r"could not be started on this machine .* timed out .* engine='local'"
        ),
        opened(RAY, jobs=1),
    ):
        pass


# --- one machine -----------------------------------------------------------------------------------------


def test_the_local_engine_names_the_task_that_fails_and_keeps_the_others(tmp_path):
    wrong = jobs(tmp_path, ["mirrored"], optimizer="sgd", learning_rate=1e38)
    with pytest.raises(JobError, match="task 'mirrored': finetuning on mirrored") as caught:
        finetune_all(pocket, {**jobs(tmp_path, ["digits"], epochs=1), **wrong}, progress=False)
    assert caught.value.name == "mirrored"
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert (tmp_path / "digits" / "epoch_001.safetensors").exists()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def broken(_encoder):
    """A bug of ours: no user can put it right."""
    return {}.get("loss")[0]


def test_a_bug_in_a_task_is_raised_as_it_is_with_the_name_of_the_task(tmp_path):
    job = Job(load=broken, settings=Settings(**SETTINGS), folder=tmp_path)
    with pytest.raises(TypeError, match="subscriptable") as caught:
        finetune_all(pocket, {"digits": job}, progress=False)
    assert not isinstance(caught.value, UserError)
    assert caught.value.__notes__ == ["while finetuning on task 'digits'"]


def test_no_folder_is_fine_on_one_machine(here):
    job = Job(load=partial(parts, "digits"), settings=Settings(**SETTINGS), keep=[3])
    run = finetune_all(pocket, {"digits": job}, progress=False)["digits"]
    assert run.epochs == (3,)
    assert torch.equal(run.task_vector().flat, here[1]["digits"].task_vector().flat)


# --- what a worker checks --------------------------------------------------------------------------------


def work(job, **changed):
    """What a worker hands back for a job whose folder, weights and threads are as expected."""
    expected = {"mark": "mark", "parameters": checksum(state_of(pocket().model)), "threads": 1}
    return ray_engine._work(job, pocket, **expected | changed)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_worker_that_does_not_see_the_storage_says_so(one_thread, tmp_path):
    failure = work(jobs(tmp_path)["digits"])
    assert f"does not see the folder {tmp_path / 'digits'}; choose one on storage" in failure.reason
    assert list(tmp_path.iterdir()) == []


def test_a_worker_with_other_weights_says_so(one_thread, tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mark").touch()
    failure = work(jobs(tmp_path)["digits"], parameters="00000000")
    assert "has other weights of random-pocket than this machine" in failure.reason
    assert file_names(tmp_path / "digits") == ["mark"]


def test_a_bug_in_a_worker_has_a_traceback_and_no_reason(one_thread, tmp_path):
    (tmp_path / "mark").touch()
    failure = work(Job(load=broken, settings=Settings(**SETTINGS), folder=tmp_path))
    assert failure.reason is None
    assert 'return {}.get("loss")[0]' in failure.traceback


# --- the queue, over outcomes that are written down ------------------------------------------------------


class Reference:
    """A started job with the outcome that `get` will find."""

    def __init__(self, name, outcome):
        self.name, self.outcome = name, outcome


class ScriptedRay:
    """What the queue asks of Ray; the job that was started last ends first."""

    def __init__(self, **scripts):
        import ray.exceptions

        self.exceptions, self.scripts = ray.exceptions, {name: list(s) for name, s in scripts.items()}
        self.started, self.cancelled, self.at_a_time, self.said = [], [], 0, []

    def run(self, at_a_time, *, retries):
        start = {name: partial(self.begin, name) for name in self.scripts}
        report = SimpleNamespace(look=lambda: None, say=self.said.append)
        ray_engine._run_all(self, start, at_a_time=at_a_time, retries=retries, report=report)

    def begin(self, name):
        self.started.append(name)
        return Reference(name, self.scripts[name].pop(0))

    def wait(self, references, timeout):
        assert 0 < timeout <= 1
        self.at_a_time = max(self.at_a_time, len(references))
        return references[-1:], references[:-1]

    def get(self, reference):
        if isinstance(reference.outcome, BaseException):
            raise reference.outcome
        return reference.outcome

    def cancel(self, reference, *, force):
        self.cancelled.append((reference.name, force))


def deaths():
    import ray.exceptions

    return [
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.NodeDiedError("gone"),
        ray.exceptions.OutOfMemoryError("full"),
    ]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_so_many_jobs_run_at_a_time(limit):
    ray = ScriptedRay(a=[None], b=[None], c=[None])
    ray.run(limit, retries=0)
    assert sorted(ray.started) == ["a", "b", "c"]
    assert ray.at_a_time == min(limit, 3)
    assert ray.cancelled == []


def test_a_lost_worker_is_replaced_as_often_as_allowed():
    ray = ScriptedRay(a=[None], b=[*deaths(), None])
    ray.run(2, retries=3)
    assert sorted(ray.started) == ["a", "b", "b", "b", "b"]
    assert ray.said == [f"b  its worker died; retry {each} of 3" for each in (1, 2, 3)]
    ray = ScriptedRay(a=[None], b=deaths())
    with pytest.raises(JobError, match=r"task 'b': its worker died, and retries=2 is used up; .* full"):
        ray.run(2, retries=2)
    assert ray.cancelled == [("a", True)]


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        ("lower the rate", JobError, "task 'b': lower the rate"),
        (None, ray_engine.WorkerError, "while finetuning on task 'b', in a worker:\nTraceback: line 7"),
    ],
)
def test_an_error_is_not_tried_again_and_ends_the_other_workers(reason, kind, message):
    ray = ScriptedRay(a=[None], b=[ray_engine._Failure(reason, "Traceback: line 7")], c=[None])
    with pytest.raises(kind, match=re.escape(message)) as caught:
        ray.run(2, retries=3)
    assert isinstance(caught.value, UserError) is (reason is not None)
    assert "line 7" in str(caught.value.__cause__ or caught.value)
    assert ray.started == ["a", "b"]
    assert ray.cancelled == [("a", True)]


def test_an_error_of_ray_itself_is_not_tried_again():
    import ray.exceptions

    scripted = ScriptedRay(a=[ray.exceptions.RaySystemError("broken")])
    with pytest.raises(ray.exceptions.RaySystemError, match="broken"):
        scripted.run(1, retries=3)
    assert scripted.started == ["a"]


def test_an_interrupt_ends_all_workers():
    ray = ScriptedRay(a=[None], b=[KeyboardInterrupt()], c=[None])
    with pytest.raises(KeyboardInterrupt):
        ray.run(3, retries=3)
    ray = ScriptedRay(a=[None], b=[None])

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    ray.wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        ray.run(2, retries=3)
    assert ray.cancelled == [("a", True), ("b", True)]


# --- a real cluster --------------------------------------------------------------------------------------


def test_the_cluster_gives_the_bits_of_one_machine(cluster, here, tmp_path, capfd):
    runs = finetune_all(pocket, jobs(tmp_path), options=EngineOptions(engine="ray", workers=2))
    folder, expected = here
    assert list(runs) == list(TASKS)
    assert file_names(tmp_path) == file_names(folder)
    for name in TASKS:
        assert tensors_of(tmp_path / name) == tensors_of(folder / name)
        settings = [(each / name / "settings.json").read_bytes() for each in (tmp_path, folder)]
        assert settings[0] == settings[1]
        assert runs[name].losses == expected[name].losses
        assert runs[name].accuracies == expected[name].accuracies
        assert runs[name].epochs == expected[name].epochs == (1, 2, 3)
        for epoch in range(4):
            assert torch.equal(runs[name].task_vector(epoch).flat, expected[name].task_vector(epoch).flat)
    lines = capfd.readouterr().err.splitlines()
    said = [re.match(r"(digits|odd or even) +epoch (\d)/3  loss \d\.\d{4}  accuracy", line) for line in lines]
    assert sorted(each.groups() for each in said) == [(name, str(e)) for name in TASKS for e in (1, 2, 3)]
    assert [int(re.search(r"\((\d) of 6 epochs of all tasks\)", line)[1]) for line in lines] == [*range(1, 7)]


def test_nothing_is_reported_to_the_makers_of_ray(cluster):
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def mortal(folder, marker):
    """An encoder that kills its process, once, in the middle of epoch 2."""
    encoder = pocket()

    def strike(*_):
        record = folder / "epoch_001.json"
        if record.exists() and not marker.exists():
            marker.write_bytes(record.read_bytes())
            os.kill(os.getpid(), signal.SIGKILL)

    encoder.model.register_forward_pre_hook(strike)
    return encoder


def test_a_killed_worker_goes_on_after_its_last_whole_epoch(cluster, here, tmp_path, capfd):
    marker = tmp_path / "killed"
    start = partial(mortal, tmp_path / "runs" / "digits", marker)
    run = finetune_all(start, jobs(tmp_path / "runs", ["digits"]), options=RAY)["digits"]
    assert (run.folder / "epoch_001.json").read_bytes() == marker.read_bytes(), "epoch 1 was not repeated"
    assert tensors_of(run.folder) == tensors_of(here[0] / "digits")
    assert "digits  its worker died; retry 1 of 3" in capfd.readouterr().err.splitlines()


def test_an_error_on_the_cluster_names_the_task_and_keeps_the_others(cluster, here, tmp_path, capfd):
    wrong = jobs(tmp_path, ["mirrored"], optimizer="sgd", learning_rate=1e38)
    with pytest.raises(JobError, match="task 'mirrored': finetuning on mirrored") as caught:
        finetune_all(
            pocket, {**jobs(tmp_path, ["digits"]), **wrong}, options=EngineOptions(engine="ray", workers=1)
        )
    assert caught.value.name == "mirrored"
    assert "trainer.py" in str(caught.value.__cause__), "the worker's traceback"
    assert tensors_of(tmp_path / "digits") == tensors_of(here[0] / "digits")
    assert not list(tmp_path.rglob(".shared-*"))
    assert "retry" not in capfd.readouterr().err


def count_threads(_):
    raise UserError(f"{torch.get_num_threads()} threads")


def test_workers_have_as_many_threads_as_the_caller(cluster, tmp_path):
    job = Job(load=count_threads, settings=Settings(**SETTINGS), folder=tmp_path)
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            with pytest.raises(JobError, match=f"task 'a': {threads} threads"):
                finetune_all(pocket, {"a": job}, options=RAY)
        torch.set_num_threads(3)
        with pytest.raises(
            ValueError, match=r"needs 3 CPUs .* have: 2 CPUs, .* set OMP_NUM_THREADS to fewer"
        ):
            finetune_all(pocket, {"a": job}, options=RAY)
    finally:
        torch.set_num_threads(before)


def test_an_open_connection_cannot_take_another_address(cluster, tmp_path):
    with pytest.raises(ValueError, match="Ray is connected already, so address='auto' cannot be joined"):
        finetune_all(pocket, jobs(tmp_path), options=EngineOptions(engine="ray", address="auto"))
    assert cluster.is_initialized()


@pytest.mark.parametrize("backbone", ["random-pocket", "tiny-clip"])
def test_the_command_line_prints_and_writes_the_same_with_both_engines(
    cluster, tmp_path, capsys, monkeypatch, backbone
):
    monkeypatch.chdir(tmp_path)  # the paths are relative, and a worker has another working directory
    words = [
        "finetune",
        "--suite",
        "digits",
        "--backbone",
        backbone,
        "--limit",
        "60",
        "--tasks",
        *TASKS,
    ]
    printed = []
    for engine in ("local", "ray"):
        assert command_line.main([*words, "--device", "cpu", "--out", engine, "--engine", engine]) == 0
        table = capsys.readouterr().out.replace(f"checkpoints are in {engine}", "checkpoints are in it")
        printed.append([re.sub(r" +\d+$", "", line) for line in table.splitlines()])  # but for the speed
    assert len(printed[0]) == 4
    assert printed[0] == printed[1]
    assert file_names(tmp_path / "local") == file_names(tmp_path / "ray")
    for name in TASKS:
        assert tensors_of(tmp_path / "local" / name) == tensors_of(tmp_path / "ray" / name)
    assert command_line.main([*words, "--workers", "2"]) == 2
    assert "workers=2 is for engine='ray'" in capsys.readouterr().err


def study_words(folder, *more):
    """The study of CLIP on small digits, with its checkpoints in a folder and its record beside."""
    words = "record clip --budget-minutes 600 --backbone tiny-clip --suite digits --tasks"
    return [*words.split(), *TASKS, "--runs", str(folder), "--out", f"{folder}.json", *more]


@pytest.fixture
def short_study(monkeypatch):
    """Two rounds, few images judged; workers train on what the settings of their job say."""
    pytest.importorskip("open_clip")
    measured = MeasuredSpeed(training=1000.0, evaluation=1000.0, memory="")
    monkeypatch.setattr(budget, "measure_speed", lambda *_args, speed, **_more: (measured, speed))
    recipe = replace(rounds.RECIPE, learning_rate=1e-3, batch_size=200)
    monkeypatch.setattr(rounds, "RECIPE", recipe)
    monkeypatch.setattr(study, "MOST", 3)
    monkeypatch.setattr(evaluation, "TEST", 100)
    monkeypatch.setattr(evaluation, "VALIDATION", 30)


def test_the_study_of_clip_finds_on_a_cluster_what_one_machine_finds(
    cluster, short_study, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)  # the paths are relative, and a worker has another working directory
    found, asked, spread = [], [], ray_engine.finetune_all

    def watched(encoder, given, *, options, progress):
        asked.append((list(given), options.workers))
        return spread(encoder, given, options=options, progress=progress)

    monkeypatch.setattr(ray_engine, "finetune_all", watched)
    for folder, more in (("here", ()), ("there", ("--engine", "ray", "--workers", "2"))):
        assert command_line.main(study_words(folder, "--joint", *more)) == 0
        found.append(records.read(tmp_path / f"{folder}.json"))
        found[-1]["results"].pop("training_seconds")
    assert found[1]["results"] == found[0]["results"]
    assert found[0]["results"]["epochs"] == [1, 3]
    assert [each["settings"].pop("workers") for each in found] == [1, 2]
    assert found[1]["settings"] == found[0]["settings"]
    assert found[1]["command"] == f"{found[0]['command']} --engine ray"
    assert file_names(tmp_path / "there") == file_names(tmp_path / "here")
    for name in ("", *TASKS, Experiment(tmp_path).joint(TASKS).path.name):
        assert tensors_of(tmp_path / "there" / name) == tensors_of(tmp_path / "here" / name)
    later = sorted([*TASKS, "joint"])
    assert [sorted(names) for names, _ in asked] == [sorted(TASKS), ["joint"], later, later], "all rounds"
    assert {workers for _, workers in asked} == {2}
    said = capfd.readouterr().err
    assert "2 workers, each taken to be as fast as this machine" in said
    assert cluster.is_initialized()
    assert command_line.main(study_words("here", "--joint", "--engine", "ray")) == 0, (
        "a run may change its engine"
    )
    assert records.read(tmp_path / "here.json")["results"]["merged"] == found[0]["results"]["merged"]


@pytest.mark.parametrize(("jobs", "workers", "expected"), [(8, None, 2), (1, None, 1), (8, 1, 1), (8, 9, 2)])
def test_an_opened_engine_tells_how_many_jobs_it_does_at_a_time(cluster, jobs, workers, expected):
    options = EngineOptions(engine="ray", gpus_per_worker=0, workers=workers)
    with opened(options, jobs=jobs) as at_a_time:
        assert at_a_time == expected


def test_a_worker_that_fits_no_machine_is_refused(cluster):
    with (
        pytest.raises(ValueError, match=r"needs 1 CPUs .* and 1 GPUs on one machine"),
        opened(EngineOptions(engine="ray", gpus_per_worker=1), jobs=2),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=f"{tmp_path / 'file' / 'digits'} could not be written"),
        ray_engine._marked({tmp_path / "file" / "digits": "digits"}),
    ):
        pass
