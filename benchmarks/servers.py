"""Real MLflow and Prefect servers on loopback, with SQLite in a folder, for benchmarks to use, kill and restart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from flows.orchestration.server import free_port

START_TIMEOUT_S, STOP_TIMEOUT_S = 180.0, 20.0


@dataclass
class Server:
    """One server, which may be several processes.

    Attributes:
        name: mlflow or prefect.
        variable: the environment variable by which runs find it.
        url: the variable's value.
        command: starts it in the foreground.
        environment: what it needs besides this process's own environment.
        log: file that its output is added to.
    """

    name: str
    variable: str
    url: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # all its processes are one group, to be signalled together
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the {self.name} server did not start: see {self.log}")
            time.sleep(0.2)

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            with urlopen(f"{self.url}/health", timeout=5):
                return True
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Asks it to end; kills what does not."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, number)
            self.process.wait(STOP_TIMEOUT_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            return


def mlflow_server(folder: Path) -> Server:
    """MLflow with the database and artifacts in `folder`, which may be the workspace of earlier runs."""
    port = free_port()
    store = f"sqlite:///{folder / 'mlflow.db'}"
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--backend-store-uri", store]
    artifacts = ["--artifacts-destination", str(folder / "mlflow-artifacts")]
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    url = f"http://127.0.0.1:{port}"
    return Server("mlflow", "MLFLOW_TRACKING_URI", url, [*command, *artifacts], environment, folder / "mlflow.log")


def prefect_server(folder: Path) -> Server:
    """Prefect with the database in `folder`, which may be the workspace of earlier runs."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    return Server("prefect", "PREFECT_API_URL", url, command, environment, folder / "prefect.log")


@contextmanager
def running(*servers: Server) -> Iterator[dict[str, str]]:
    """Starts servers, yields the environment that runs find them by, ends them."""
    try:
        for server in servers:
            server.start()
        yield {server.variable: server.url for server in servers}
    finally:
        for server in servers:
            server.stop()
