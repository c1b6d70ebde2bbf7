"""The engine "ray" of `engines.finetune_all`: one task a worker, checkpoints on storage that all share.

Only names and settings travel to the workers, which load data themselves, and nothing travels back: what a
worker makes is in the task's folder, where this side reads it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from taskvec_mini import _imports
from taskvec_mini._files import SPACE, checksum
from taskvec_mini.benchmarks.encoders import Encoder, state_of
from taskvec_mini.benchmarks.engines.jobs import EngineOptions, Job, JobError, JointJob
from taskvec_mini.benchmarks.training import Run, RunFolder
from taskvec_mini.errors import FileError, NoConnectionError, UserError

_EVERY = 0.5  # seconds between two looks at the folders
_PATIENCE = 5.0  # seconds until an address counts as silent
_OBJECT_STORE = 100 * 2**20  # bytes


class WorkerError(RuntimeError):
    """A bug that showed in a worker; the message holds the traceback from there."""


@dataclass(frozen=True)
class _Failure:
    """What a worker hands back instead of an error, so that Ray neither retries nor rewrites it."""

    reason: str | None  # for a user; None where it is a bug
    traceback: str


def finetune_all(
    load_encoder: Callable[[], Encoder],
    jobs: Mapping[str, Job | JointJob],
    *,
    options: EngineOptions,
    progress: bool,
) -> dict[str, Run]:
    """Arguments, result and errors (JobError, UserError, WorkerError) are those of `engines.finetune_all`."""
    placed: dict[str, Job | JointJob] = {}  # with absolute folders: a worker has another working directory
    owners: dict[Path, str] = {}
    for name, job in jobs.items():
        if job.folder is None:
            raise UserError(
                f"engine='ray' needs a folder for every task, on storage that all machines share; {name!r} "
                "has none"
            )
        folder = Path(job.folder).absolute()
        if folder in owners:
            raise UserError(
                f"{owners[folder]!r} and {name!r} have the same folder {folder}; give each its own"
            )
        owners[folder] = name
        placed[name] = replace(job, folder=folder)
    with opened(options, jobs=len(jobs)) as (ray, needs, _), _marked(owners) as mark:
        pretrained = state_of(load_encoder().model)
        # with retries of its own Ray would say nothing, and never give up where memory runs out
        work = ray.remote(_work).options(max_retries=0, scheduling_strategy="SPREAD", **needs)
        expected = {
            "mark": mark,
            "parameters": checksum(pretrained),
            "threads": torch.get_num_threads(),
        }
        loader = ray.put(load_encoder)
        start = {name: partial(work.remote, job, loader, **expected) for name, job in placed.items()}
        _run_all(
            ray,
            start,
            at_a_time=options.workers or len(jobs),
            retries=options.retries,
            report=_Report(placed, show=progress),
        )
    return {
        name: Run.read(_folder(job), settings=job.settings, pretrained=pretrained, keep=job.keep)
        for name, job in jobs.items()
    }


# --- the cluster -----------------------------------------------------------------------------------------


def load_ray() -> Any:
    """The package Ray; a MissingPackageError names the extra."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody, unless asked for
    return _imports.load("ray", needed_for="engine='ray'", install="taskvec-mini[cluster]")


@contextlib.contextmanager
def opened(options: EngineOptions, *, jobs: int) -> Iterator[tuple[Any, dict[str, Any], int]]:
    """Ray, connected; what each worker takes of a machine; and how many workers there is room for.

    A connection that the caller has made stays; a new one ends, with all its workers.

    Raises:
        MissingPackageError: if Ray is not installed.
        NoConnectionError: if no cluster answers at the address.
        UserError: if a cluster cannot be started here, or no machine has room for a worker.
    """
    ray, threads = load_ray(), torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            fit = max(1, (os.cpu_count() or 1) // threads, torch.cuda.device_count())
            stack.callback(ray.shutdown)
            _connect(ray, options.address, cpus=(options.workers or min(jobs, fit)) * threads)
        elif options.address is not None:
            raise UserError(
                f"Ray is connected already, so address={options.address!r} cannot be joined; leave address "
                "out, or call ray.shutdown() first"
            )
        gpus = options.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        cpus = 1 if gpus else threads
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        sizes = {name: size for name, size in (("CPU", cpus), ("GPU", gpus)) if size}
        room = sum(min(int(each.get(name, 0) / size) for name, size in sizes.items()) for each in machines)
        if not room:  # Ray would wait for one for ever
            found = "; ".join(
                f"{each.get('CPU', 0):g} CPUs, {each.get('GPU', 0):g} GPUs" for each in machines
            )
            raise UserError(
                f"a worker needs {cpus} CPUs (one a thread) and {gpus:g} GPUs on one machine, but the "
                f"machines have: {found}; set OMP_NUM_THREADS to fewer threads, or gpus_per_worker to fewer "
                "GPUs"
            )
        yield ray, {"num_cpus": cpus, "num_gpus": gpus}, room


def _connect(ray: Any, address: str | None, *, cpus: int) -> None:
    """Join the cluster at the address, by default the one of RAY_ADDRESS, or start one on this machine."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        # the store lies in an ordinary folder, because /dev/shm is tiny in many containers
        store = {"object_store_memory": _OBJECT_STORE, "_plasma_directory": tempfile.gettempdir()}
        try:
            ray.init("local", num_cpus=cpus, include_dashboard=False, **store, **quiet)
        except Exception as error:  # Ray raises a bare Exception where its processes do not come up in time
            raise UserError(
                f"a Ray cluster could not be started on this machine ({error}); it needs some seconds of a "
                "free core to start: try again when the machine is less busy, or use engine='local'"
            ) from error
        return
    if address != "auto":
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if not (host and port.isdecimal()):
            raise UserError(f"address must be HOST:PORT, such as 10.0.0.1:6379, or auto; got {address!r}")
        try:  # where nothing listens, Ray itself would go on trying
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise NoConnectionError(
                f"no Ray cluster answers at {address} ({error}); start its head with `ray start --head` and "
                "name the address that this prints, or leave the address out to start one on this machine"
            ) from error
    try:
        ray.init(address, **quiet)
    except (RuntimeError, OSError, ValueError) as error:
        raise NoConnectionError(
            f"the Ray cluster at {address} could not be joined ({error}); is it running, with the same "
            "versions of Ray and Python as here?"
        ) from error


@contextlib.contextmanager
def _marked(folders: Mapping[Path, str]) -> Iterator[str]:
    """An empty file of a new name in each folder while the jobs run, by which a worker knows the storage."""
    mark = f".shared-{uuid.uuid4().hex}"
    try:
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / mark).touch()
            except OSError as error:
                raise FileError(f"{folder} could not be written ({error}); {SPACE}") from error
        yield mark
    finally:
        for folder in folders:
            with contextlib.suppress(OSError):
                (folder / mark).unlink()


# --- a worker --------------------------------------------------------------------------------------------


def _work(
    job: Job | JointJob, load_encoder: Callable[[], Encoder], *, mark: str, parameters: str, threads: int
) -> _Failure | None:
    """What a worker does: it hands back an error, and leaves all else in the folder.

    Args:
        job: what to do.
        load_encoder: loads the encoder.
        mark: the name of a file in the folder, if that is the one of the caller.
        parameters: the checksum of the caller's encoder.
        threads: how many the caller has; another number would give other bits.
    """
    torch.set_num_threads(threads)
    host = socket.gethostname()
    try:
        if not (_folder(job) / mark).exists():
            raise UserError(
                f"the worker on {host} does not see the folder {job.folder}; choose one on storage that all "
                "machines share under one path"
            )
        encoder = load_encoder()
        if checksum(state_of(encoder.model)) != parameters:
            raise UserError(
                f"the worker on {host} has other weights of {encoder.name} than this machine; give all "
                "machines the same files"
            )
        job.run(encoder, progress=False)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else None
        return _Failure(reason, traceback.format_exc())
    return None


# --- this side -------------------------------------------------------------------------------------------


def _run_all(
    ray: Any,
    start: Mapping[str, Callable[[], Any]],
    *,
    at_a_time: int,
    retries: int,
    report: _Report,
) -> None:
    """Run all jobs, so many at a time; whatever ends this early ends the workers too."""
    waiting = list(start)
    running: dict[Any, str] = {}
    lost: Counter[str] = Counter()
    died = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    )
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                name = waiting.pop(0)
                running[start[name]()] = name
            ended, _ = ray.wait(list(running), timeout=_EVERY)
            report.look()
            for reference in ended:
                name = running.pop(reference)
                try:
                    failure = ray.get(reference)
                except died as error:
                    lost[name] += 1
                    if lost[name] > retries:
                        raise JobError(
                            name,
                            f"its worker died, and retries={retries} is used up; is there enough memory? The "
                            f"epochs it finished are kept. The last time: {type(error).__name__}: {error}",
                        ) from error
                    report.say(f"{name}  its worker died; retry {lost[name]} of {retries}")
                    running[start[name]()] = name
                    continue
                if failure is not None and failure.reason is not None:
                    raise JobError(name, failure.reason) from WorkerError(failure.traceback)
                if failure is not None:
                    raise WorkerError(f"while finetuning on task {name!r}, in a worker:\n{failure.traceback}")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


class _Report:
    """One line on stderr for each epoch of each task, read from the folders as the records appear there."""

    def __init__(self, jobs: Mapping[str, Job | JointJob], *, show: bool):
        self.jobs = jobs
        self.show = show
        self.done = {name: self._finished(name) for name in jobs}  # by an earlier call

    def look(self) -> None:
        """Say what has come since the last look."""
        width = max(map(len, self.jobs))
        total = sum(job.settings.epochs for job in self.jobs.values())
        for name, job in self.jobs.items():
            for epoch in range(self.done[name] + 1, self._finished(name) + 1):
                self.done[name] = epoch
                record = RunFolder(_folder(job)).read_record(epoch)
                self.say(
                    f"{name:{width}}  epoch {record['epoch']}/{job.settings.epochs}  "
                    f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}  "
                    f"{record['images_per_second']:,.0f}/s  "
                    f"({sum(self.done.values())} of {total} epochs of all tasks)"
                )

    def say(self, line: str) -> None:
        """Write a line."""
        if self.show:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def _finished(self, name: str) -> int:
        """How many of the epochs that are wanted are finished."""
        job = self.jobs[name]
        return min(RunFolder(_folder(job)).finished, job.settings.epochs)


def _folder(job: Job | JointJob) -> Path:
    return Path(os.fspath(job.folder or ""))
