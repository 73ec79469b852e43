"""Connects to Ray: to the cluster at RAY_ADDRESS, or to a quiet local one that it starts."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray
import ray.data
import ray.exceptions

from magic141.accelerator import settle_accelerator
from magic141.cluster.address import VARIABLE, ray_address_trouble, ray_cluster
from magic141.cluster.room import cpus_here, shortage
from magic141.environment import temporary_environment
from magic141.errors import UserError, first_line

_REPOSITORY = Path(__file__).resolve().parents[2]
_MIN_OBJECT_STORE_BYTES = 500_000_000
_SHARED_MEMORY = Path("/dev/shm")
# by default glibc returns every large tensor's memory and gets zeroed pages for the next: a seventh of a training step;
# and where the kernel leaves it to processes, it asks for no huge pages: a twentieth, when two workers train
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# of the local Rays of this process, which keeps the first one it has used; without one Ray would write it below HOME,
# which may be read-only, and where it changes how later clusters start
_TOKEN = secrets.token_hex(32)
_NUM_START_ATTEMPTS = 3  # Ray gives its daemons 30 seconds, too few on a machine busy with other work


def ensure_ray() -> None:
    """Connects this process to Ray unless it already is; a local Ray that has died since is started again.

    With RAY_ADDRESS set, that cluster is used as it is: its nodes must have magic141 installed and have their own
    limits. Otherwise a local Ray starts, whose workers find this package and use one thread each. Ray Data's progress
    bars are off: stages show their own.

    Raises:
        UserError: if RAY_ADDRESS is not an address that can be used, or its cluster lets nobody in.
    """
    if problem := ray_address_trouble():
        raise UserError(problem)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a FutureWarning in every process
    settle_accelerator()
    if ray.is_initialized() and not is_alive():
        ray.shutdown()  # the next call to a dead daemon would end this process without a message
    if not ray.is_initialized():
        with _sigterm_left_alone():
            (_join_cluster if ray_cluster() else _start_local)()
    _quiet_ray_data()


def is_alive() -> bool:
    """Whether the daemon that this process started still runs; always true for a cluster, which Ray itself watches."""
    if ray_cluster():
        return True
    children = psutil.Process().children()
    return any(child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE for child in children)


def require_room(field: str, number: int, each: Mapping[str, float]) -> None:
    """Refuses what a local Ray has no room for: it would wait for other machines for ever. A cluster may still grow.

    Args:
        field: config field that sets `number`.
        number: workers or replicas.
        each: config field -> CPUs or GPUs that one of them takes.

    Raises:
        UserError: if this machine has less.
    """
    if ray_cluster():
        return
    if lacking := shortage(field, number, each, ray.cluster_resources()):
        raise UserError(lacking)


@contextmanager
def _sigterm_left_alone() -> Iterator[None]:
    """Keeps what SIGTERM does in this process, such as that of a flow's run, which lets a training save a checkpoint.

    Ray replaces it, and puts a handler of its core before it that aborts the process three seconds later. Where nothing
    was set, Ray's stays, for it shuts down what it has started.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if callable(before) else signal.getsignal(signal.SIGTERM))


def _join_cluster() -> None:
    """Connects to the cluster at RAY_ADDRESS; Ray takes one that wants a token for one that does not answer."""
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        reason = first_line(str(error)).partition(". ")[0].rstrip(".")
        raise UserError(
            f"{VARIABLE} = {ray_cluster()}: {reason}; see that the cluster runs; if it asks for a token, "
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the content of its head's ~/.ray/auth_token"
        ) from None


def _start_local() -> None:
    """Starts a local Ray; workers inherit the daemon's environment, which is faster than a runtime environment."""
    path = os.pathsep.join(filter(None, (str(_REPOSITORY), os.environ.get("PYTHONPATH"))))
    # at Ray's default niceness of 15, workers starve if the machine does anything else
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    settings["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or _TOKEN
    with temporary_environment(settings | {name: os.environ.get(name) or value for name, value in _MEMORY.items()}):
        for attempt in range(1, _NUM_START_ATTEMPTS + 1):
            try:
                _init_local()
                return
            except Exception as error:  # Ray raises no narrower class here
                if "timed out during startup" not in str(error) or attempt == _NUM_START_ATTEMPTS:
                    raise
                ray.shutdown()


def _init_local() -> None:
    ray.init(
        address="local",
        num_cpus=cpus_here(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_object_store_bytes(),
    )


def _object_store_bytes() -> int:
    """Size of the store for clips in flight, 0.2 GB each at 13B: a tenth of the memory if /dev/shm has room for it."""
    room = shutil.disk_usage(_SHARED_MEMORY).free // 2 if _SHARED_MEMORY.is_dir() else 0
    return max(_MIN_OBJECT_STORE_BYTES, min(psutil.virtual_memory().total // 10, room))


def _quiet_ray_data() -> None:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
