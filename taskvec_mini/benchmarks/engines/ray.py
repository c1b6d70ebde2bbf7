"""The engine "ray" of `engines.finetune_all`: one task a worker, checkpoints on storage that all share.

Only names and settings travel to the workers, which load data themselves, and nothing travels back: what a
worker makes is in the task's folder, where this side reads it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskvec_mini.benchmarks.encoders.parameters import checksum, state_of
from taskvec_mini.benchmarks.engines import _ray_cluster
from taskvec_mini.benchmarks.engines.jobs import Job, JobError, JointJob, error_words
from taskvec_mini.benchmarks.training import checkpoints
from taskvec_mini.benchmarks.training.finetune import Run
from taskvec_mini.errors import UserError

if TYPE_CHECKING:
    from taskvec_mini.benchmarks.encoders.protocols import Encoder

_EVERY = 0.5  # seconds between two looks at the folders


class _WorkerError(Exception):
    """Where in a worker an error came from: its traceback, as words."""


@dataclass(frozen=True)
class _Failure:
    """What a worker hands back instead of an error, so that Ray neither retries nor rewrites it."""

    why: str
    where: str


@dataclass(frozen=True)
class _Rules:
    """What a worker must find and keep to, so that its bits are those of this machine."""

    mark: str  # an empty file in the folder
    parameters: str  # the checksum of the encoder
    threads: int


def finetune_all(
    backbone: Callable[[], Encoder],
    jobs: Mapping[str, Job | JointJob],
    workers: int | None,
    gpus: float | None,
    address: str | None,
    retries: int,
    progress: bool,
) -> dict[str, Run]:
    """See `engines.finetune_all`, which checks the arguments."""
    placed = _placed(jobs)
    with opened(len(jobs), workers, gpus, address) as (ray, needs, _), _marked(placed) as mark:
        pretrained = state_of(backbone().model)
        # with retries of its own Ray would say nothing, and never give up where memory runs out
        work = ray.remote(_work).options(max_retries=0, scheduling_strategy="SPREAD", **needs)
        given = ray.put(backbone), _Rules(mark, checksum(pretrained), torch.get_num_threads())
        start = {name: partial(work.remote, job, *given) for name, job in placed.items()}
        _Queue(ray, start, retries, _Watch(placed, progress)).run(workers or len(jobs))
    return {name: _read(job, pretrained) for name, job in jobs.items()}


@contextlib.contextmanager
def opened(
    jobs: int, workers: int | None, gpus: float | None, address: str | None
) -> Iterator[tuple[Any, dict[str, Any], int]]:
    """Ray, connected; what each worker takes of a machine; and how many workers there is room for."""
    ray, threads = _ray_cluster.load_ray(), torch.get_num_threads()
    address = _ray_cluster.find(ray, address)
    cpus = _ray_cluster.room(workers, jobs, threads) * threads
    with _ray_cluster.connected(ray, address, cpus):
        each = (1.0 if ray.cluster_resources().get("GPU") else 0.0) if gpus is None else gpus
        needs: dict[str, Any] = {"num_cpus": 1 if each else threads, "num_gpus": each}
        yield ray, needs, _ray_cluster.check_room(ray, **needs)


def _placed(jobs: Mapping[str, Job | JointJob]) -> dict[str, Job | JointJob]:
    """The jobs with absolute folders, because a worker has another working directory."""
    placed: dict[str, Job | JointJob] = {}
    for name, job in jobs.items():
        if job.folder is None:
            raise UserError(
                f"engine='ray' needs a folder for every task, on storage that all machines share; {name!r} "
                "has none"
            )
        folder = Path(job.folder).absolute()
        for other, there in placed.items():
            if folder == there.folder:
                raise UserError(f"{other!r} and {name!r} have the same folder {folder}; give each its own")
        placed[name] = replace(job, folder=folder)
    return placed


@contextlib.contextmanager
def _marked(jobs: Mapping[str, Job | JointJob]) -> Iterator[str]:
    """An empty file of a new name in each folder while the jobs run, by which a worker knows the storage."""
    mark = f".shared-{uuid.uuid4().hex}"
    files = [_folder(job) / mark for job in jobs.values()]
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        yield mark
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _folder(job: Job | JointJob) -> Path:
    return Path(os.fspath(job.folder or ""))


# --- a worker --------------------------------------------------------------------------------------------


def _work(job: Job | JointJob, backbone: Callable[[], Encoder], rules: _Rules) -> _Failure | None:
    """What a worker does; it hands back an error, and leaves all else in the folder."""
    torch.set_num_threads(rules.threads)
    here = socket.gethostname()
    try:
        if not (_folder(job) / rules.mark).exists():
            raise UserError(
                f"the worker on {here} does not see the folder {job.folder}; choose one on storage that all "
                "machines share under one path"
            )
        encoder = backbone()
        if checksum(state_of(encoder.model)) != rules.parameters:
            raise UserError(
                f"the worker on {here} has other weights of {encoder.name} than this machine; give all "
                "machines the same files"
            )
        job.run(encoder, progress=False)
    except Exception as error:
        return _Failure(error_words(error), traceback.format_exc())
    return None


# --- this side -------------------------------------------------------------------------------------------


@dataclass
class _Queue:
    """Jobs, those that run now, and how often each lost its worker."""

    ray: Any
    start: Mapping[str, Callable[[], Any]]
    retries: int
    watch: _Watch
    running: dict[Any, str] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def run(self, limit: int) -> None:
        """Run all jobs, so many at a time; whatever ends this early ends the workers too."""
        waiting = list(self.start)
        try:
            while waiting or self.running:
                while waiting and len(self.running) < limit:
                    self._begin(waiting.pop(0))
                ended, _ = self.ray.wait(list(self.running), timeout=_EVERY)
                self.watch.look()
                for reference in ended:
                    self._end(reference, self.running.pop(reference))
        finally:
            for reference in self.running:
                self.ray.cancel(reference, force=True)

    def _begin(self, name: str) -> None:
        self.running[self.start[name]()] = name

    def _end(self, reference: Any, name: str) -> None:
        errors = self.ray.exceptions
        try:
            failure = self.ray.get(reference)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            self._again(name, error)
            return
        except errors.RayError as error:
            raise JobError(name, error_words(error)) from error
        if failure is not None:
            raise JobError(name, failure.why) from _WorkerError(failure.where)

    def _again(self, name: str, error: Exception) -> None:
        """Put a job whose worker died back to work, unless that happened too often."""
        self.lost[name] = self.lost.get(name, 0) + 1
        if self.lost[name] > self.retries:
            raise JobError(
                name,
                f"its worker died, and retries={self.retries} is used up; is there enough memory? The "
                f"epochs it finished are kept. The last time: {error_words(error)}",
            ) from error
        self.watch.say(f"{name}  its worker died; retry {self.lost[name]} of {self.retries}")
        self._begin(name)


class _Watch:
    """One line on stderr for each epoch of each task, read from the folders as the records appear there."""

    def __init__(self, jobs: Mapping[str, Job | JointJob], show: bool):
        self.jobs, self.show = jobs, show
        self.width = max(map(len, jobs))
        self.total = sum(job.settings.epochs for job in jobs.values())
        self.done = dict.fromkeys(jobs, 0)
        self.done = {name: len(self._new(name)) for name in jobs}  # by an earlier call

    def look(self) -> None:
        """Say what has come since the last look."""
        for name, job in self.jobs.items():
            for path in self._new(name):
                self.done[name] += 1
                record = checkpoints.read_json(path)
                self.say(
                    f"{name:{self.width}}  epoch {record['epoch']}/{job.settings.epochs}  "
                    f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}  "
                    f"{record['images_per_second']:,.0f}/s  "
                    f"({sum(self.done.values())} of {self.total} epochs of all tasks)"
                )

    def say(self, words: str) -> None:
        """Write a line."""
        if self.show:
            print(words, file=sys.stderr, flush=True)

    def _new(self, name: str) -> list[Path]:
        """The records of the epochs after those that are counted, up to the first that is not there."""
        job, found = self.jobs[name], []
        there = set(os.listdir(_folder(job)))  # asks the server of a network folder anew
        for epoch in range(self.done[name] + 1, job.settings.epochs + 1):
            path = _folder(job) / f"epoch_{epoch:03}.json"
            if path.name not in there:
                break
            found.append(path)
        return found


def _read(job: Job | JointJob, pretrained: dict[str, Tensor]) -> Run:
    """The run that a worker left in its folder."""
    folder = _folder(job)
    store = checkpoints.RunFolder(folder, checkpoints.read_json(folder / "settings.json"), ignore=frozenset())
    every = range(1, job.settings.epochs + 1)
    kept = tuple(sorted(set(every if job.keep is None else job.keep)))
    records = tuple(checkpoints.read_json(store.record(epoch)) for epoch in every)
    return Run(job.settings, pretrained, kept, records, store.path, store)
