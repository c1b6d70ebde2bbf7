"""Finetuning on many tasks: one after the other on this machine, or one a worker on a Ray cluster.

Both engines do the same work, `training.finetune`, in the same folders, so a run may be begun by one and
ended by the other. They give the same bits as long as workers have the same versions, the same kind of
processor and the same number of threads; the number is the caller's (`torch.get_num_threads()`, which the
environment variable OMP_NUM_THREADS sets) and is handed on to every worker. GPUs of another kind may round
differently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from taskvec_mini import _checks
from taskvec_mini.benchmarks.encoders import Encoder
from taskvec_mini.benchmarks.engines import ray as ray_engine
from taskvec_mini.benchmarks.engines.jobs import EngineOptions, Job, JobError, JointJob
from taskvec_mini.benchmarks.training import Run
from taskvec_mini.errors import UserError


def finetune_all(
    load_encoder: Callable[[], Encoder],
    jobs: Mapping[str, Job | JointJob],
    *,
    options: EngineOptions | None = None,
    progress: bool = True,
) -> dict[str, Run]:
    """Finetune one encoder on each of several tasks, each into a folder of its own.

    It may be stopped at any moment: the same call goes on after the last whole epoch of every task. With
    "ray" a worker whose process dies is started again from there; an error is not tried again. The first
    error ends the call and its workers, and all checkpoints stay.

    With "ray" the functions in `load_encoder` and `jobs` travel to the workers. A function of a module is
    sent as its name, so the workers must be able to import it; one of a notebook or script is sent whole.

    Args:
        load_encoder: loads the encoder; `functools.partial(load_backbone, "pocket")`, for instance.
        jobs: what to do, by the name of the task.
        options: the engine and how it works; by default this process.
        progress: show how far the tasks are, on stderr.

    Returns:
        The runs by name, in the order of the jobs.

    Raises:
        JobError: if a task fails for a reason that a user can put right, with its name, a worker that died
            too often among them. Any other error of a task is a bug: it is raised as it is with a note that
            names the task or, with "ray", as a `ray.WorkerError` that holds the traceback of the worker.
        UserError: if there are no jobs, a folder is missing or given twice, or no machine of the cluster has
            room for a worker.
        MissingPackageError: if Ray is not installed.
        NoConnectionError: if no Ray cluster answers at the address.

    Example:
        >>> from functools import partial
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> from taskvec_mini.benchmarks.heads import prototype_head
        >>> from taskvec_mini.benchmarks.training import Settings
        >>> task = load_tasks(["digits"], suite="digits", limit=60)["digits"]
        >>> job = Job(load=lambda encoder: (prototype_head(encoder, task), task), settings=Settings())
        >>> runs = finetune_all(partial(load_backbone, "random-pocket"), {"digits": job}, progress=False)
        >>> runs["digits"].epochs
        (1,)
    """
    options = options or EngineOptions()
    _checks.not_empty("jobs", jobs)
    if options.engine == "ray":
        return ray_engine.finetune_all(load_encoder, jobs, options=options, progress=progress)
    encoder, runs = load_encoder(), {}
    for name, job in jobs.items():
        try:
            runs[name] = job.run(encoder, progress=progress)
        except UserError as error:
            raise JobError(name, str(error)) from error
        except Exception as error:
            error.add_note(f"while finetuning on task {name!r}")
            raise
    return runs


@contextlib.contextmanager
def opened(options: EngineOptions, *, jobs: int) -> Iterator[int]:
    """An engine for several calls of `finetune_all`; gives how many jobs it does at a time.

    With "ray" the cluster is joined, or started on this machine, once for all of them.

    Args:
        options: the engine and how it works. The calls in between take the same, but for the address, which
            is joined already: `dataclasses.replace(options, address=None)`.
        jobs: the most jobs of a call.

    Raises:
        UserError: if no machine has room for a worker.
        MissingPackageError: if Ray is not installed.
        NoConnectionError: if no Ray cluster answers at the address.

    Example:
        >>> with opened(EngineOptions(), jobs=8) as at_a_time:
        ...     at_a_time
        1
    """
    if options.engine == "local":
        yield 1
        return
    with ray_engine.opened(options, jobs=jobs) as (_, _, room):
        yield min(jobs, room, options.workers or room)
