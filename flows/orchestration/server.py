"""Starts a quiet Prefect server for the time of a command, if none is configured."""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from magic141.errors import UserError
from magic141.urls import settle_credentials

EMBEDDED_VARIABLE = "MAGIC141_EMBEDDED_PREFECT"  # set for processes that use such a server
START_TIMEOUT_SECONDS = 180.0
SILENT_SECONDS = 5.0  # waiting time for another command's server before it is reported
MAX_RESTARTS = 3
ENOUGH_BYTES = 10_000_000  # of disk, for its database and its log
SERVER_SETTINGS = ("PREFECT_SERVER_", "PREFECT_API_DATABASE_")  # variables of a server, not of its clients
# Services that a server for a single flow run does not need.
IDLE_SERVICES = (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "CANCELLATION_CLEANUP",
    "CLEANUP_RECONCILER",
    "TRIGGERS",
    "EVENT_LOGGER",
    "DB_VACUUM",
)

_LIBC = ctypes.CDLL(None)  # loaded here, because little may be done between fork and exec


class PrefectServer:
    """The embedded server's process; the constructor returns at once, `wait` blocks until it answers.

    Its process takes seconds to import: start it early, import other modules meanwhile, then wait. If it dies, it is
    started again on the same port and database; Prefect's clients retry for about a minute. With PREFECT_API_URL set
    there is nothing to start. Servers that start at the same time on a new folder would break its database, so each
    waits until the previous one answers.
    """

    def __init__(self, home: Path) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.log_file = home / "prefect" / "server.log"
        self._lock = threading.Lock()
        _quiet(home)
        if os.environ.get("PREFECT_API_URL"):
            return
        _go_around_proxy()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._starting = _start_lock()
        _await_turn(self._starting)
        port = free_port()
        self.process = self._start(port)
        self._guard = threading.Thread(target=self._restart_if_dead, args=(port,), name="prefect-guard", daemon=True)
        atexit.register(self.stop)  # before Prefect is imported, so that Prefect's own exit handlers run first
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        os.environ[EMBEDDED_VARIABLE] = "1"

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        idle = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in IDLE_SERVICES}
        own = {
            "PREFECT_UI_ENABLED": "0",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }
        app = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
        where = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *app, *where],
                env={**_without_settings_of_servers(os.environ), **idle, **own},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C must not stop it: the flow still reports its end
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    @property
    def embedded(self) -> bool:
        """Whether this process has started the server; False with PREFECT_API_URL set."""
        return self.process is not None

    def wait(self) -> None:
        """Blocks until the server answers.

        Raises:
            UserError: if it does not start.
        """
        if self.process is None:
            return
        try:
            self._wait(self.process)
        finally:
            self._starting.release()
        self._guard.start()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        health = f"{os.environ['PREFECT_API_URL']}/health"
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(health, timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        if shutil.disk_usage(self.log_file.parent).free < ENOUGH_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.log_file))
        raise UserError(
            f"Prefect's embedded server did not start: see {self.log_file}; if its database is damaged, delete "
            f"{self.log_file.parent}, which holds no results; or set PREFECT_API_URL to a running server"
        )

    def _restart_if_dead(self, port: int) -> None:
        """Restarts the server if it dies; outlives the last one, as a server dies with the thread that started it."""
        for left in range(MAX_RESTARTS, -1, -1):
            process = self.process
            if process is None:
                return
            process.wait()
            with self._lock:
                if self.process is process and left:  # it was not stopped on purpose
                    self.process = self._start(port)

    def stop(self) -> None:
        """Ends the server."""
        with self._lock:
            process, self.process = self.process, None
        if process is None:
            return
        for name in ("PREFECT_API_URL", EMBEDDED_VARIABLE):
            os.environ.pop(name, None)
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._starting.release()


def _without_settings_of_servers(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what is meant for a server of one's own, whose database must not become this one's."""
    return {name: value for name, value in environment.items() if not name.startswith(SERVER_SETTINGS)}


def _quiet(home: Path) -> None:
    """Sets Prefect's environment variables: files in the workspace, no telemetry, no log lines among ours."""
    settle_credentials("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    if not os.environ.get("PREFECT_API_URL"):
        os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")


def _go_around_proxy() -> None:
    """Adds this machine to the hosts that need no proxy, which could not reach the server; before Prefect is imported.

    Where both spellings are set, clients differ in which one they read.
    """
    if not urllib.request.getproxies_environment():
        return
    lower, upper = (os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    for name, hosts in (("no_proxy", lower or upper), ("NO_PROXY", upper or lower)):
        if hosts != "*":  # every host, but only if nothing follows
            os.environ[name] = ",".join(dict.fromkeys([*filter(None, hosts.split(",")), "127.0.0.1", "localhost"]))


def _start_lock() -> FileLock:
    """The lock of the folder with Prefect's database."""
    named = os.environ["PREFECT_HOME"]
    try:
        home = Path(named).expanduser()
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"PREFECT_HOME = {named}: {error}; set it to a folder of yours, or unset it") from None
    return FileLock(home / ".start.lock", thread_local=False)


def _await_turn(lock: FileLock) -> None:
    try:
        lock.acquire(timeout=SILENT_SECONDS)
    except Timeout:
        print(f"waiting for another command whose Prefect server starts ({lock.lock_file})", file=sys.stderr)
        lock.acquire()


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """On Linux, ends the server with this process even if that is killed, so that it does not hold the database."""
    pr_set_pdeathsig = 1
    _LIBC.prctl(pr_set_pdeathsig, signal.SIGTERM)
