"""A tracking server with a broken database is named in seconds; during a run MLflow's client stays patient."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from magic141.tracking import Tracker
from tests.http_servers import Handler, serving

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")
MAX_SECONDS = 15


class Broken(HTTPServer):
    """Healthy, but its answers to all else have the given status codes; the last one stays."""

    codes: list[int]
    text = ""


class Answers(Handler):
    server: Broken

    def do_GET(self) -> None:
        codes = self.server.codes
        if self.path == "/health":
            self.answer(200, b"OK")
            return
        body = self.server.text or json.dumps({"experiments": []})
        self.answer(codes.pop(0) if len(codes) > 1 else codes[0], body.encode(), {"Retry-After": "60"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    server = Broken(("127.0.0.1", 0), Answers)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    for variable in ("PREFECT_API_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    with serving(server):
        yield server


@pytest.mark.parametrize(("code", "command"), [(500, ("compare", "a", "b")), (502, ("plan", DEMO)), (503, ("gc",))])
def test_a_server_that_answers_with_errors_is_named_at_once(
    server: Broken, code: int, command: tuple[str, ...]
) -> None:
    server.codes = [code]
    start = time.monotonic()
    result = CliRunner().invoke(app, list(command))
    assert time.monotonic() - start < MAX_SECONDS
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (2, 1)
    assert "error: MLFLOW_TRACKING_URI = http://127.0.0.1:" in result.stderr
    assert f"answers with HTTP {code}; see its log" in result.stderr


def test_doctor_sees_more_than_the_health_check(server: Broken) -> None:
    server.codes = [500]
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "answers with HTTP 500" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("code", "text", "line"),
    [
        (401, "", "refuses the credentials (HTTP 401); set MLFLOW_TRACKING_USERNAME"),
        (403, "", "refuses the credentials (HTTP 403)"),
        (
            403,
            "Invalid Host header - possible DNS rebinding attack detected",
            "does not know itself under the name 127.0.0.1; start it with MLFLOW_SERVER_ALLOWED_HOSTS",
        ),
    ],
)
def test_a_server_that_refuses_is_seen_by_doctor_and_plan(server: Broken, code: int, text: str, line: str) -> None:
    server.codes, server.text = [code], text
    for command in (["doctor"], ["plan", DEMO]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code in (1, 2)
        assert line in " ".join((result.stdout + result.stderr).split())


def test_after_the_first_answer_a_restart_is_waited_for(
    server: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
    server.codes = [200]
    tracker = Tracker(tmp_path, "magic141")
    server.codes = [503, 503, 200]
    assert tracker.client.search_experiments() == []
    server.codes = [503, 200]
    Tracker(tmp_path, "another member of a sweep")
    assert server.codes == [503, 200]
