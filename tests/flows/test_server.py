"""Prefect's embedded server: there when asked for, there again when it is killed, gone when it is stopped."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from flows.server import START_TIMEOUT_SECONDS, PrefectServer
from magic141.errors import UserError

pytestmark = pytest.mark.slow


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_a_killed_server_comes_back_and_a_stopped_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.setenv(name, "")  # put back afterwards, also what the server itself sets
        monkeypatch.delenv(name)
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
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not answers(url):
        assert time.monotonic() < deadline
        time.sleep(0.2)
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
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", home)
    with pytest.raises(UserError, match=f"^PREFECT_HOME = {home}: .*; set it to a folder of yours, or unset it$"):
        PrefectServer(tmp_path)
