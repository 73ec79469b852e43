"""infra/servers.sh: PostgreSQL, Prefect and MLflow come up, stay as they are, say why they cannot, and go."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from tests.ports import free_port
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("postgres", "prefect", "mlflow")
MISSING = [module for module in ("psycopg2", "asyncpg") if importlib.util.find_spec(module) is None]
POSTGRES = list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: `make servers` installs it"),
    pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL: apt-get install postgresql"),
]


@dataclass(frozen=True)
class Servers:
    """The script, on a folder and ports of its own."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, command: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """`infra/servers.sh COMMAND`."""
        return subprocess.run(
            ["bash", "infra/servers.sh", command],
            cwd=ROOT,
            env={**self.environment, **changes},
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE_S,
        )

    @property
    def password(self) -> str:
        return (self.folder / "password").read_text()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    # not pytest's folder: where the tests run as root, PostgreSQL runs as somebody else, who has to reach it
    folder = Path(tempfile.mkdtemp(prefix="magic141-servers-"))
    folder.chmod(0o755)
    ports = {f"{name.upper()}_PORT": str(free_port()) for name in NAMES}
    own = {"MAGIC141_SERVERS": str(folder), "MAGIC141_PYTHON": sys.executable, "START_SECONDS": "300", **ports}
    servers = Servers(folder, {**os.environ, **own})
    yield servers
    servers("down")
    shutil.rmtree(folder)


def is_listening(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def test_up_status_down(servers: Servers) -> None:
    up = servers("up")
    assert up.returncode == 0, up.stderr
    urls = dict(line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines())
    assert sorted(urls) == ["MLFLOW_TRACKING_URI", "PREFECT_API_URL"]
    for url, body in ((urls["PREFECT_API_URL"], b"true"), (urls["MLFLOW_TRACKING_URI"], b"OK")):
        with urlopen(f"{url}/health", timeout=PATIENCE_S) as answer:
            assert answer.read() == body

    status = servers("status")
    assert (status.returncode, [line.split()[:2] for line in status.stdout.splitlines()]) == (
        0,
        [[name, "up"] for name in NAMES],
    )
    again = servers("up")
    assert again.stdout == up.stdout
    assert again.stderr.splitlines() == [f"{name}: runs already" for name in NAMES]
    _nobody_reads_the_password(servers, up.stdout + up.stderr + status.stdout)
    _everything_is_in_postgres(servers)
    _a_slow_one_is_not_stopped(servers)

    assert servers("down", TZ="JST-9").returncode == 0  # where nobody started them
    assert servers("status").returncode == 1
    assert not any(is_listening(port) for name, port in servers.environment.items() if name.endswith("_PORT"))


def _nobody_reads_the_password(servers: Servers, printed: str) -> None:
    assert len(servers.password) == 48
    assert stat.S_IMODE((servers.folder / "password").stat().st_mode) == 0o600
    arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    logs = "".join(log.read_text() for log in servers.folder.glob("*.log"))
    assert servers.password not in printed + arguments + logs


def _a_slow_one_is_not_stopped(servers: Servers) -> None:
    """Runs may be using it."""
    mlflow = psutil.Process(int((servers.folder / "mlflow.pid").read_text().split()[0]))
    everything = [mlflow, *mlflow.children(recursive=True)]
    for process in everything:
        process.suspend()
    up = servers("up", START_SECONDS="2")
    assert "error: mlflow: runs, but gave no answer in 2 s" in up.stderr
    for process in everything:
        process.resume()
    assert "mlflow: runs already" in servers("up").stderr
    assert mlflow.is_running()


def _everything_is_in_postgres(servers: Servers) -> None:
    import psycopg2

    tables = {"prefect": "flow_run", "mlflow": "runs"}
    for database, table in tables.items():
        port = servers.environment["POSTGRES_PORT"]
        connection = psycopg2.connect(
            host="127.0.0.1", port=port, user="magic141", password=servers.password, dbname=database
        )
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM information_schema.tables WHERE table_name = %s", [table])
            assert cursor.fetchone() == (1,)
        connection.close()


def test_a_taken_port_is_named_and_nothing_stays_half_started(servers: Servers) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        up = servers("up", PREFECT_PORT=taken)
    assert up.returncode == 1
    assert up.stdout == ""
    assert f"error: prefect: port {taken} is taken by another process; set PREFECT_PORT" in up.stderr
    assert not is_listening(servers.environment["POSTGRES_PORT"])


def test_a_server_that_does_not_start_is_named_with_its_log(servers: Servers) -> None:
    version = servers.folder / "postgres" / "PG_VERSION"
    if not version.exists():
        servers("up")
        servers("down")
    right = version.read_text()
    version.write_text("9.6\n")
    up = servers("up")
    version.write_text(right)
    assert (up.returncode, up.stdout) == (1, "")
    assert f"error: postgres: ended while it started; its log: {servers.folder}/postgres.log" in up.stderr
    assert "9.6" in (servers.folder / "postgres.log").read_text()


def test_a_python_without_the_drivers_is_named(servers: Servers, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    up = servers("up", MAGIC141_PYTHON=str(python))
    assert (up.returncode, up.stdout) == (1, "")
    assert f"{python} has no prefect; install this package with its extra servers" in up.stderr
