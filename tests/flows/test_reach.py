"""Servers that do not answer are named at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from flows.reach import SERVERS, require_servers, trouble
from magic141.frozen import UserError


class Health(BaseHTTPRequestHandler):
    """/health is fine, /secret/health wants a password, everything else is not there."""

    def do_GET(self) -> None:
        self.send_response({"/health": 200, "/secret/health": 401}.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    httpd = HTTPServer(("127.0.0.1", 0), Health)
    thread = Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def _no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SERVERS:
        monkeypatch.delenv(variable, raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("path", ["", "/", "/secret"])
def test_a_server_that_answers_is_fine(server: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server + path)
    require_servers()


def test_local_stores_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    require_servers()


def test_every_server_that_is_down_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SERVERS:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError) as caught:
        require_servers()
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all("does not answer" in line and "unset" in line for line in lines)


def test_credentials_are_neither_needed_nor_shown(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("http://", "http://ada:s3cret@"))
    require_servers()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:s3cret@127.0.0.1:{free_port()}")
    problem = str(trouble("MLFLOW_TRACKING_URI"))
    assert "does not answer" in problem
    assert "s3cret" not in problem


def test_a_wrong_url_is_told_from_a_dead_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/wrong")
    assert "HTTP 404" in str(trouble("PREFECT_API_URL"))
    assert ":4200/api" in str(trouble("PREFECT_API_URL"))
