"""A run whose environment is full of secrets leaves none of them behind: not on the console, in files, or in MLflow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.ports import free_port
from tests.waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cret0f0urs"
TINY = [
    *("--set", "data.shapes.num_train=32"),
    *("--set", "data.shapes.num_validation=8"),
    *("--set", "data.shapes.num_heldout=8"),
    *("--set", "data.codec.num_fit_clips=16"),
]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Place:
    """A workspace, an MLflow server and Ray's logs, all below one folder, and an environment with secrets."""

    folder: Path
    environment: dict[str, str]

    def magic141(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """The command line."""
        command = [sys.executable, "-c", "from flows.cli import app; app()", *arguments]
        environment = {**self.environment, **changes}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="m-"))  # short: Ray's sockets have long names
    port = free_port()
    (folder / "server").mkdir()
    secrets = {
        "MLFLOW_TRACKING_URI": f"http://ada:{SECRET}@127.0.0.1:{port}",
        "MAGIC141_NOTIFY_URL": f"http://127.0.0.1:9/{SECRET}",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "HF_TOKEN": SECRET,
        "RAY_AUTH_TOKEN": SECRET,
    }
    own = {"MAGIC141_HOME": str(folder / "home"), "RAY_TMPDIR": str(folder / "ray"), "PYTHONPATH": str(ROOT)}
    inherited = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "RAY_ADDRESS")}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server" / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder / "server", env={**inherited, **quiet}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: is_healthy(f"http://127.0.0.1:{port}/health"))
        yield Place(folder, {**inherited, "OMP_NUM_THREADS": "1", **own, **secrets})
    finally:
        server.terminate()
        server.wait(PATIENCE_S)
        shutil.rmtree(folder)


def is_healthy(url: str) -> bool:
    with urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)


def leaks(folder: Path) -> list[str]:
    """Files that hold the secret."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [str(file) for file in files if SECRET.encode() in file.read_bytes()]


def test_no_secret_is_left_behind(place: Place) -> None:
    finished = place.magic141("run", "configs/smoke.yaml", "--until", "prepare_data", *TINY)
    assert finished.returncode == 0, finished.stderr
    assert "mlflow  run" in finished.stdout
    videos = place.folder / "videos"
    videos.mkdir()
    folder = ["--set", "data.source=folder", "--set", f"data.path={videos}"]
    failed = place.magic141("run", "configs/smoke.yaml", "--until", "prepare_data", *folder, "--debug")
    assert failed.returncode != 0
    assert "the notification of the failure was not sent" in failed.stdout + failed.stderr
    printed = [done.stdout + done.stderr for done in (finished, failed)]
    assert [SECRET in text for text in printed] == [False, False]
    assert leaks(place.folder) == []
    assert (place.folder / "home" / "artifacts").is_dir()
    assert list((place.folder / "server").rglob("config.yaml"))
    assert list((place.folder / "ray").rglob("*.out"))


def test_mistakes_quote_no_secret(place: Place) -> None:
    nothing = f"http://ada:{SECRET}@127.0.0.1:{free_port()}"
    for variable, url in (("MLFLOW_TRACKING_URI", nothing), ("PREFECT_API_URL", f"{nothing}/api")):
        done = place.magic141("eval", "--run", "abc", **{variable: url})
        assert done.returncode == 2
        assert f"{variable} = http://127.0.0.1:" in done.stderr
        assert SECRET not in done.stdout + done.stderr
    unknown = place.magic141("eval", "--run", "abc")
    assert "run abc: no such run in http://127.0.0.1:" in unknown.stderr
    assert SECRET not in unknown.stdout + unknown.stderr
