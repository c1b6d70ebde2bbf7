"""Finetuning on many tasks: one after the other on this machine, or one a worker on a Ray cluster.

Both engines do the same work, `finetuning.finetune`, in the same folders, so a run may be begun by one and
ended by the other. They give the same bits as long as workers have the same versions, the same kind of
processor and the same number of threads; the number is the caller's (`torch.get_num_threads()`, which the
environment variable OMP_NUM_THREADS sets) and is handed on to every worker. GPUs of another kind may round
differently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from taskvec_mini import _checks
from taskvec_mini.benchmarks.engines import ray as _ray_engine
from taskvec_mini.benchmarks.engines.jobs import Job, JobError, JointJob, error_words
from taskvec_mini.benchmarks.training.finetune import Run
from taskvec_mini.errors import UserError

if TYPE_CHECKING:
    from taskvec_mini.benchmarks.encoders.protocols import Encoder

__all__ = ["ENGINES", "Job", "JobError", "JointJob", "finetune_all", "opened"]

ENGINES = ("local", "ray")


def finetune_all(
    backbone: Callable[[], Encoder],
    jobs: Mapping[str, Job | JointJob],
    *,
    engine: str = "local",
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    retries: int = 3,
    progress: bool = True,
) -> dict[str, Run]:
    """Finetune one encoder on each of several tasks, each into a folder of its own.

    It may be stopped at any moment: the same call goes on after the last whole epoch of every task. With
    "ray" a worker whose process dies is started again from there; an error is not tried again. The first
    error ends the call and its workers, and all checkpoints stay.

    With "ray" the functions in `backbone` and `jobs` travel to the workers. A function of a module is sent
    as its name, so the workers must be able to import it; one of a notebook or script is sent whole.

    Args:
        backbone: loads the encoder; `functools.partial(load_backbone, "pocket")`, for instance.
        jobs: what to do, by the name of the task.
        engine: "local", one task after the other in this process; or "ray", one task a worker.
        workers: of "ray", how many tasks run at a time; by default as many as there is room for.
        gpus_per_worker: of "ray", by default one where the cluster has any, else none. A worker without a GPU
            takes as many CPUs as it has threads, one with a GPU takes one CPU.
        address: of "ray", the head of a running cluster as HOST:PORT, or "auto" for the one that runs on this
            machine. By default what the environment variable RAY_ADDRESS names, else a cluster is started
            on this machine and ended again. Where `ray.init` was called before, that connection is used.
        retries: of "ray", how often a task may lose its worker and be started again.
        progress: show how far the tasks are, on stderr.

    Returns:
        The runs by name, in the order of the jobs.

    Raises:
        JobError: if a task fails, with its name; the cause is the error itself or, with "ray", its traceback.
        ValueError: if there are no jobs, the engine is unknown, an option is not for it, a folder is missing
            or given twice, or no machine of the cluster has room for a worker.
        ImportError: if Ray is not installed.
        ConnectionError: if no Ray cluster answers at the address.

    Example:
        >>> from functools import partial
        >>> from taskvec_mini.benchmarks.encoders.load import load_backbone
        >>> from taskvec_mini.benchmarks.data.suites import load_tasks
        >>> from taskvec_mini.benchmarks.heads.fitted import prototype_head
        >>> from taskvec_mini.benchmarks.training.settings import Settings
        >>> task = load_tasks(["digits"], suite="digits", limit=60)["digits"]
        >>> job = Job(
        ...     load=lambda encoder: (prototype_head(encoder, task), task),
        ...     settings=Settings(learning_rate=1e-4, epochs=1),
        ... )
        >>> runs = finetune_all(partial(load_backbone, "random-pocket"), {"digits": job}, progress=False)
        >>> runs["digits"].epochs
        (1,)
    """
    _check(engine, workers=workers, gpus_per_worker=gpus_per_worker, address=address)
    _checks.not_empty("jobs", jobs)
    _checks.whole_number("retries", retries, minimum=0)
    if engine == "ray":
        return _ray_engine.finetune_all(backbone, jobs, workers, gpus_per_worker, address, retries, progress)
    return _one_by_one(backbone, jobs, progress)


@contextlib.contextmanager
def opened(
    engine: str = "local",
    *,
    jobs: int,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
) -> Iterator[int]:
    """An engine for several calls of `finetune_all`, which leave the address out; how many jobs at a time.

    With "ray" the cluster is joined, or started on this machine, once for all of them.

    Args:
        engine: "local", which has one job at a time, or "ray".
        jobs: the most jobs of a call.
        workers: as in `finetune_all`, and so are the others.
        gpus_per_worker: of "ray".
        address: of "ray".

    Raises:
        ValueError: if the engine is unknown, an option is not for it, or no machine has room for a worker.
        ImportError: if Ray is not installed.
        ConnectionError: if no Ray cluster answers at the address.

    Example:
        >>> with opened("local", jobs=8) as at_a_time:
        ...     at_a_time
        1
    """
    _check(engine, workers=workers, gpus_per_worker=gpus_per_worker, address=address)
    if engine == "local":
        yield 1
        return
    with _ray_engine.opened(jobs, workers, gpus_per_worker, address) as (_, _, room):
        yield min(jobs, room, workers or room)


def _check(engine: str, *, workers: int | None, gpus_per_worker: float | None, address: str | None) -> None:
    _checks.named_choice("engine", engine, dict.fromkeys(ENGINES))
    if workers is not None:
        _checks.whole_number("workers", workers)
    if gpus_per_worker is not None and _checks.finite_number("gpus_per_worker", gpus_per_worker) < 0:
        raise UserError(f"gpus_per_worker must be at least 0, got {gpus_per_worker}")
    of_ray = {"workers": workers, "gpus_per_worker": gpus_per_worker, "address": address}
    for name, value in of_ray.items():
        if engine == "local" and value is not None:
            raise UserError(f"{name}={value!r} is for engine='ray', not for 'local'; leave it out")


def _one_by_one(
    backbone: Callable[[], Encoder], jobs: Mapping[str, Job | JointJob], progress: bool
) -> dict[str, Run]:
    encoder, runs = backbone(), {}
    for name, job in jobs.items():
        try:
            runs[name] = job.run(encoder, progress=progress)
        except Exception as error:
            raise JobError(name, error_words(error)) from error
    return runs
