"""Faults of machine and servers, as they really come: one line that names what to repair."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from flows.failures.faults import explaining
from flows.failures.resume import Outage
from magic141.errors import UserError
from magic141.tracking import Tracker

HOME = Path("/data/runs")


def line_of(error: BaseException) -> str:
    with pytest.raises(Outage) as caught, explaining(HOME):
        raise error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_full_disk() -> None:
    with pytest.raises(UserError, match="workspace /data/runs: the disk is full; free some space"), explaining(HOME):
        Path("/dev/full").write_text("x")
    elsewhere = OSError(errno.ENOSPC, "No space left on device", "/tmp/checkpoint/model.pt")
    assert line_of(elsewhere).startswith("/tmp/checkpoint/model.pt: the disk is full; free some space there, or set")
    inside = OSError(errno.ENOSPC, "No space left on device", "/data/runs/training/model.pt")
    assert line_of(inside).startswith("workspace /data/runs: the disk is full")
    wrapped = RuntimeError("a worker failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "the disk is full" in line_of(wrapped)
    assert "the disk is full" in line_of(sqlite3.OperationalError("database or disk is full"))


def test_a_folder_that_cannot_be_written() -> None:
    for code in (errno.EACCES, errno.EROFS):
        error = OSError(code, "Read-only file system", "/data/runs/artifacts")
        assert line_of(error).startswith("/data/runs/artifacts: Read-only file system; give this user the right")


@pytest.mark.slow  # MLflow waits for 20 seconds
def test_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, "locked")
    run = tracker.start_parent("test", "pipeline", {})
    other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match=r"^the tracking database is locked: another process"), explaining(tmp_path):
        run.tags({"a": "b"})
    other.execute("ROLLBACK")
    other.close()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "500 Server Error: INTERNAL SERVER ERROR for url: http://host/api/2.0/mlflow-artifacts/artifacts/1/x",
            "could not store an artifact; its artifact root may be full or not writable",
        ),
        ("API request to endpoint /api/2.0/x failed with error code 401 != 200", "the server refuses the credentials"),
        ("API request to http://host failed with exception HTTPConnectionPool", "does not answer any more"),
        ("No module named 'boto3'", "MLFLOW_TRACKING_URI: its artifact store is on S3, which needs boto3; install the"),
        ("All connection attempts failed", "PREFECT_API_URL: the server does not answer any more"),
        (
            "(sqlite3.DatabaseError) database disk image is malformed",
            "mlflow.db is damaged, or no database; put a",
        ),
        ("(sqlite3.OperationalError) attempt to write a readonly database", "cannot be written; give this user"),
    ],
)
def test_what_libraries_say_is_recognised(text: str, line: str) -> None:
    assert line in line_of(RuntimeError(text))


def test_a_broken_database_is_named_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = RuntimeError("file is not a database")
    assert line_of(broken).startswith(f"{HOME}/mlflow.db is damaged")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////else/where.db")
    assert line_of(broken).startswith("MLFLOW_TRACKING_URI = sqlite:////else/where.db is damaged, or no database")


def test_everything_else_passes_as_it_is() -> None:
    for error in (ValueError("loss is nan"), UserError("data.path = x: no such folder"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, explaining(HOME):
            raise error
        assert caught.value is error
