"""Prefect's embedded server: there when asked for, there again when it is killed, gone when it is stopped."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from flows.orchestration.server import PrefectServer, _go_around_proxy, _without_settings_of_servers
from magic141.errors import UserError
from tests.waiting import wait_for

PROXIES = ("http_proxy", "no_proxy", "NO_PROXY")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_HOME", *PROXIES):
        monkeypatch.setenv(name, "")  # put back afterwards, also what the server itself sets
        monkeypatch.delenv(name)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_settings_of_a_server_of_ones_own_are_not_the_embedded_servers() -> None:
    """Its database would be opened by a server without most services, and its password asked for."""
    others = "PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_DATABASE_NAME"
    kept = {"PREFECT_HOME": "runs/prefect", "PREFECT_LOGGING_LEVEL": "ERROR", "PATH": "/bin"}
    assert _without_settings_of_servers({**dict.fromkeys(others, "production"), **kept}) == kept


@pytest.mark.slow
def test_a_killed_server_comes_back_and_a_stopped_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody
    log = tmp_path / "prefect" / "server.log"
    log.parent.mkdir()
    log.write_text("of another one, which runs\n")
    server = PrefectServer(tmp_path)
    next_one = FileLock(log.parent / ".start.lock", blocking=False)
    with pytest.raises(Timeout):
        next_one.acquire()
    server.wait()
    next_one.acquire()
    assert log.read_text().startswith("of another one, which runs\n")
    url, first = os.environ["PREFECT_API_URL"], server.process
    assert first is not None
    first.kill()
    first.wait()
    wait_for(lambda: answers(url))
    second = server.process
    assert second is not None
    assert second.pid != first.pid
    server.stop()
    time.sleep(1)
    assert second.poll() is not None
    assert server.process is None
    assert not answers(url)


@pytest.mark.parametrize("home", ["/proc/nothing", "/etc/passwd", "~nobody-of-this-name/x"])
def test_a_home_that_cannot_be_is_named(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", home)
    with pytest.raises(UserError, match=f"^PREFECT_HOME = {home}: .*; set it to a folder of yours, or unset it$"):
        PrefectServer(tmp_path)


@pytest.mark.parametrize(
    ("lower", "upper", "after"),
    [
        ("", "", ("127.0.0.1,localhost", "127.0.0.1,localhost")),
        ("", "corp,localhost", ("corp,localhost,127.0.0.1", "corp,localhost,127.0.0.1")),
        ("a", "b", ("a,127.0.0.1,localhost", "b,127.0.0.1,localhost")),
        ("*", "*", ("*", "*")),
    ],
)
def test_this_machine_needs_no_proxy(
    lower: str, upper: str, after: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", lower)
    monkeypatch.setenv("NO_PROXY", upper)
    for _ in range(2):
        _go_around_proxy()
        assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == after


def test_the_way_to_a_server_of_yours_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    PrefectServer(tmp_path)
    assert not {"no_proxy", "NO_PROXY"} & os.environ.keys()


def test_without_a_proxy_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS it would hide the system's own proxies."""
    monkeypatch.setattr("urllib.request.getproxies_environment", dict)
    _go_around_proxy()
    assert not {"no_proxy", "NO_PROXY"} & os.environ.keys()
