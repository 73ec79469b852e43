"""What `magic141 doctor` says of a broken server or package holds no password."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest

from flows import doctor
from tests.http_servers import Handler, serving

SECRET = "s3cret"


class _OnlyHealth(Handler):
    """MLflow's health check; any other request gets no answer."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, b"OK")


@pytest.fixture
def address() -> Iterator[str]:
    with serving(HTTPServer(("127.0.0.1", 0), _OnlyHealth)) as httpd:
        yield f"127.0.0.1:{httpd.server_port}"


def test_a_request_that_fails_shows_the_address_without_its_password(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:{SECRET}@{address}")
    found = doctor._guarded("MLFLOW_TRACKING_URI", lambda: doctor._store(tmp_path))
    assert not found.ok
    assert f"http://{address}" in found.state
    assert SECRET not in found.state


def _fail(*_: object) -> doctor.Finding:
    raise OSError(f"cannot reach http://ada:{SECRET}@mirror/")


def test_no_failure_shows_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", _fail)
    for found in (doctor._guarded("device", _fail), doctor._package("mlflow", "mlflow", "tracking")):
        assert "cannot reach http://mirror/" in found.state


def test_a_folder_that_no_run_would_take_is_not_fine(tmp_path: Path) -> None:
    finding = doctor._disk(tmp_path / "a?b")
    assert (finding.ok, "cannot name a folder with a ?" in finding.state) == (False, True)
