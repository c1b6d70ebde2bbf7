"""A connection to a Ray cluster: one that runs already, or one on this machine while it is needed."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from taskvec_mini.errors import NoConnectionError, UserError

_PATIENCE = 5.0  # seconds until an address counts as silent
_OBJECT_STORE = 100 * 2**20  # bytes


def load_ray() -> Any:
    """The package Ray, or an ImportError that names the extra."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody, unless asked for
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(
            f"engine='ray' needs Ray ({error}): python -m pip install \"taskvec-mini[cluster]\""
        ) from error


def room(workers: int | None, jobs: int, threads: int) -> int:
    """How many workers a cluster on this machine alone gets room for."""
    return workers or min(jobs, max(1, (os.cpu_count() or 1) // threads, torch.cuda.device_count()))


def find(ray: Any, address: str | None) -> str | None:
    """The address to join, None where there is nothing to join: Ray is connected, or will be started here.

    Raises:
        ValueError: if the address is no HOST:PORT, or Ray is connected already.
        ConnectionError: if nothing listens there.
    """
    if ray.is_initialized():
        if address is not None:
            raise UserError(
                f"Ray is connected already, so address={address!r} cannot be joined; leave address out, or "
                "call ray.shutdown() first"
            )
        return None
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _check_answers(address)
    return address


@contextlib.contextmanager
def connected(ray: Any, address: str | None, cpus: int) -> Iterator[None]:
    """A connection to Ray: the caller's own, which stays, or a new one, which ends with all its workers."""
    if ray.is_initialized():
        yield
        return
    try:
        _connect(ray, address, cpus)
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # the store lies in an ordinary folder, because /dev/shm is tiny in many containers
        store = {"object_store_memory": _OBJECT_STORE, "_plasma_directory": tempfile.gettempdir()}
        try:
            ray.init("local", num_cpus=cpus, include_dashboard=False, **store, **quiet)
        except Exception as error:  # Ray raises a bare Exception where its processes do not come up in time
            raise RuntimeError(
                f"a Ray cluster could not be started on this machine ({error}); it needs some seconds of a "
                "free core to start: try again when the machine is less busy, or use engine='local'"
            ) from error
        return
    try:
        ray.init(address, **quiet)
    except (RuntimeError, OSError, ValueError) as error:
        raise NoConnectionError(
            f"the Ray cluster at {address} could not be joined ({error}); is it running, with the same "
            "versions of Ray and Python as here?"
        ) from error


def _check_answers(address: str) -> None:
    """A ConnectionError within seconds where nothing listens; Ray itself would go on trying."""
    if address == "auto":
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        raise UserError(f"address must be HOST:PORT, such as 10.0.0.1:6379, or auto; got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise NoConnectionError(
            f"no Ray cluster answers at {address} ({error}); start its head with `ray start --head` and name "
            "the address that this prints, or leave the address out to start one on this machine"
        ) from error


def check_room(ray: Any, num_cpus: int, num_gpus: float) -> int:
    """How many workers fit the machines; a ValueError where none does: Ray would wait for one for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = {"CPU": num_cpus, "GPU": num_gpus}
    fit = sum(min(int(m.get(what, 0) / size) for what, size in needs.items() if size) for m in machines)
    if not fit:
        found = "; ".join(f"{each.get('CPU', 0):g} CPUs, {each.get('GPU', 0):g} GPUs" for each in machines)
        raise UserError(
            f"a worker needs {num_cpus} CPUs (one a thread) and {num_gpus:g} GPUs on one machine, but the "
            f"machines have: {found}; set OMP_NUM_THREADS to fewer threads, or gpus_per_worker to fewer GPUs"
        )
    return fit
