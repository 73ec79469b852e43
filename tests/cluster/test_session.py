"""How this process comes to a Ray of its own, or to a cluster's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray
import ray.exceptions

from magic141.cluster import session
from magic141.errors import UserError
from tests.waiting import PATIENCE_S

WITHOUT_HOME = """
import ray
from magic141.cluster.session import ensure_ray
ensure_ray()
here = ray.get_runtime_context().gcs_address  # 'auto' may find another test's Ray
again = f"import ray; ray.init(address='{here}', log_to_driver=False); print('again', ray.is_initialized())"
task = ray.remote(lambda: __import__("subprocess").check_output([__import__("sys").executable, "-c", again], text=True))
print(ray.get(task.remote()))
"""

TERMINATED = """
import os, signal, time
from magic141.cluster.session import ensure_ray
signal.signal(signal.SIGTERM, lambda *_: print("asked to end"))
ensure_ray()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(4)  # Ray's core gives a process three seconds
print("saved")
"""


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The token in the environment at every start of a local Ray, none of which really starts."""
    seen: list[str | None] = []
    for variable in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ.get("RAY_AUTH_TOKEN")))
    return seen


def test_a_local_ray_has_one_token_a_process_that_stays_out_of_its_environment(tokens: list[str | None]) -> None:
    """A process knows only the first token it has used, also when its Ray died and is started again."""
    session.ensure_ray()
    session.ensure_ray()
    assert tokens[0] == tokens[1]
    assert len(str(tokens[0])) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_token_that_was_set_is_kept(tokens: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    session.ensure_ray()
    assert (tokens, os.environ["RAY_AUTH_TOKEN"]) == (["mine"], "mine")


@pytest.mark.slow
def test_a_local_ray_needs_no_home_and_its_workers_can_connect_again() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", WITHOUT_HOME]
    done = subprocess.run(
        command, env={**environment, "HOME": "/dev/null"}, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert "again True" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"),
        ray.exceptions.AuthenticationError("Token authentication is enabled but no authentication token was found."),
    ],
)
def test_a_cluster_that_may_want_a_token_says_how_to_give_it(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        UserError, match=r"^RAY_ADDRESS = 10\.0\.0\.1:6379: [^\n]*RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    ):
        session.ensure_ray()


@pytest.mark.slow
def test_a_process_that_has_started_ray_may_take_its_time_to_end_on_sigterm() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", TERMINATED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["asked to end", "saved", ""])
