"""Determines whether the process of a run is still alive."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from mlflow.entities import Run

from magic141.tracking.tags import TAG_HEARTBEAT, TAG_HOST, TAG_PID, TAG_PROCESSES, TAG_STARTED

# Many heartbeats, because stores may be down for a while and clocks may differ. A living run that was taken for dead
# gets its true status when it ends.
STALE_SECONDS = 15 * 60
_BOOT, _NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"


def process_tags() -> dict[str, str]:
    """Tags by which `is_dead` recognises later whether this process is still alive."""
    return {
        TAG_HOST: socket.gethostname(),
        TAG_PROCESSES: processes(),
        TAG_PID: str(os.getpid()),
        TAG_STARTED: _start_of(os.getpid()),
        TAG_HEARTBEAT: f"{time.time():.0f}",
    }


def processes() -> str:
    """Identifies the scope in which process ids are valid: a machine since its last boot, and a container in it."""
    try:
        return f"{_BOOT.read_text().strip()} {os.readlink(_NAMESPACE)}"
    except OSError:  # not Linux
        return socket.gethostname()


def is_dead(run: Run) -> bool:
    """Whether a run's process is gone: looked up on this machine, judged by its last heartbeat on others."""
    tags = run.data.tags
    if tags.get(TAG_PROCESSES) != processes():  # not the host, as containers may share its name but not its processes
        return _is_silent(tags)
    pid = int(tags[TAG_PID])
    try:
        if abs(float(_start_of(pid)) - float(tags[TAG_STARTED])) <= 2:
            return False
        return _is_silent(tags)  # another process with its number, unless the clock was set: start times move with it
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # a machine may hide others' processes from its users
        return _is_silent(tags) if _is_somebodys(pid) else True


def _is_silent(tags: Mapping[str, str]) -> bool:
    return TAG_HEARTBEAT in tags and time.time() - float(tags[TAG_HEARTBEAT]) > STALE_SECONDS


def _is_somebodys(pid: int) -> bool:
    """Whether there is such a process, though perhaps of another user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _start_of(pid: int) -> str:
    return f"{psutil.Process(pid).create_time():.0f}"
