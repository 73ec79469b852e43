"""The application on a real local Ray Serve, started the way the command line does."""

from __future__ import annotations

import asyncio
import importlib
import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import httpx
import psutil
import pytest
import ray
import yaml
from ray.exceptions import ActorDiedError
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeDeploySchema, ServeStatus

from flows.serving import require_free, serve
from magic141.errors import UserError
from magic141.serving import deployment
from magic141.serving.config import ServingConfig
from magic141.serving.requests import Video, VideoRequest
from tests.ports import free_port
from tests.serving.conftest import picture
from tests.waiting import PATIENCE_S

SERVE = """
import sys
from pathlib import Path
from flows.serving import serve
serve(Path(sys.argv[1]), sys.argv[2], "127.0.0.1", int(sys.argv[3]), settings=["max_queued=1"])
"""
SERVED = ApplicationStatusOverview(ApplicationStatus.RUNNING, message="", last_deployed_time_s=0.0, deployments={})


def wait_for(process: subprocess.Popen[bytes], line: str, timeout: float) -> None:
    """Reads what the server says up to a line; Ray may say something too."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    while select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
        said = process.stdout.readline()
        assert said, f"the server ended with exit code {process.wait(PATIENCE_S)}"
        if said.decode().strip() == line:
            return
    raise AssertionError(f"not said within {timeout} s: {line}")


@pytest.fixture
def server(published: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", SERVE, str(tmp_path), str(published), str(port)],
        stdout=subprocess.PIPE,
        bufsize=0,  # what was read ahead would not be seen by select
        env=environment,
        start_new_session=True,  # a process group of its own, with its Ray
    )
    try:
        wait_for(process, f"{published} answers at http://127.0.0.1:{port}/ (Ctrl-C stops it)", PATIENCE_S)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)


@pytest.mark.slow
def test_more_copies_than_fit_are_refused(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said: list[str] = []
    with pytest.raises(UserError, match=r"num_replicas = 9999: with cpus_per_replica = 1 they take 9999 CPUs"):
        serve(tmp_path, str(published), "127.0.0.1", free_port(), settings=["num_replicas=9999"], say=said.append)
    assert said == [f"starts Ray Serve with {published}"]
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_posted_picture_becomes_a_playable_video_and_a_full_queue_is_refused(
    server: tuple[subprocess.Popen[bytes], str],
) -> None:
    process, url = server

    def post(seconds: str) -> httpx.Response:
        fields = {"prompt": "a red circle moves up", "seconds": seconds}
        return httpx.post(f"{url}/generate", files={"image": picture()}, data=fields, timeout=PATIENCE_S)

    assert httpx.head(f"{url}/health", timeout=PATIENCE_S).status_code == 200
    answer = post("2")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4"), answer.text
    with av.open(io.BytesIO(answer.content)) as container:
        assert container.streams.video[0].average_rate == 8
        shapes = [(frame.height, frame.width) for frame in container.decode(video=0)]
    assert shapes == [(32, 32)] * 16
    with ThreadPoolExecutor(4) as pool:
        posts = [pool.submit(post, "20") for _ in range(4)]
        health: dict[str, Any] = {"in_work": 0}
        while not health["in_work"] and not all(future.done() for future in posts):
            health = httpx.get(f"{url}/health", timeout=PATIENCE_S).json()
        answers = [future.result() for future in posts]
    assert (health["status"], health["ready_replicas"]) == ("ok", 1)
    assert health["in_work"] >= 1  # it answered while videos were made
    refused = [a for a in answers if a.status_code == 503]
    assert 1 <= len(refused) <= 3
    assert all(int(a.headers["retry-after"]) >= 1 and a.json()["error"]["field"] == "request" for a in refused)
    assert {a.status_code for a in answers} == {200, 503}
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopped", PATIENCE_S)
    assert process.wait(PATIENCE_S) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.slow
def test_it_ends_with_its_ray(server: tuple[subprocess.Popen[bytes], str]) -> None:
    """So that whatever watches the process can start it again."""
    process, _ = server
    (daemon,) = (child for child in psutil.Process(process.pid).children() if child.name() == "raylet")
    daemon.kill()
    assert process.wait(PATIENCE_S) == 1


@pytest.mark.slow
def test_it_stops_in_good_order_though_its_ray_is_stopped_at_the_same_moment(
    server: tuple[subprocess.Popen[bytes], str],
) -> None:
    """As systemd and Slurm stop a service: every process gets the signal."""
    process, _ = server
    os.killpg(process.pid, signal.SIGTERM)
    wait_for(process, "stopped", 55)  # a call to a Ray that is gone takes 60 seconds
    assert process.wait(PATIENCE_S) == 0


class SlowStudent:
    """Takes a while, and a thread cannot be stopped meanwhile."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def animate(self, request: VideoRequest) -> Video:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        return Video(b"mp4", (), 0.0)


def test_a_request_that_was_given_up_keeps_its_place_while_its_thread_runs() -> None:
    student = SlowStudent()
    replica = object.__new__(deployment.Replica)
    replica._student = student  # type: ignore[assignment]

    async def give_up() -> None:
        waiting = asyncio.create_task(replica.animate(object()))  # type: ignore[arg-type]
        await asyncio.to_thread(student.begun.wait)
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=0.2)
        assert not waiting.done()
        student.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_seconds", "--set max_seconds: expected FIELD=VALUE, such as --set max_seconds=10"),
        ("max_second=3", "max_second = 3: unknown field; did you mean 'max_seconds'?"),
        ("max_seconds=.inf", "expected a finite number (longest video, in seconds); change it with --set max_seconds="),
        ("max_queued=0", "max_queued = 0: expected greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_else(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        serve(tmp_path, str(tmp_path), "127.0.0.1", 8141, [text])
    assert message in str(caught.value)


def test_nothing_starts_on_a_taken_port_or_without_a_model(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"cannot listen there \(Address already in use\)"):
            serve(tmp_path, str(tmp_path), "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="--port 0: expected a port from 1 to 65535"):
        require_free("127.0.0.1", 0)
    with pytest.raises(UserError, match="cannot listen there"):
        require_free("192.0.2.1", free_port())  # an address of nobody
    with pytest.raises(UserError, match=r"not an exported model; expected magic141\.json"):
        serve(tmp_path, str(tmp_path), "127.0.0.1", free_port())


def test_the_kubernetes_example_builds_this_application(published: Path) -> None:
    file = Path(__file__).resolve().parents[2] / "infra" / "kuberay" / "rayservice.yaml"
    spec = yaml.safe_load(file.read_text())["spec"]
    (head,) = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert "dashboard" in {port["name"] for port in head["ports"]}, "the operator deploys through it"
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    built = getattr(importlib.import_module(module), name)({**application.args, "model": str(published)})
    (student,) = built._bound_deployment.init_args[:1]
    assert student._bound_deployment.num_replicas == application.args["num_replicas"] == 2
    assert student._bound_deployment.ray_actor_options == {"num_cpus": 1, "num_gpus": 1}
    waiting = application.args.get("max_queued", ServingConfig().max_queued)
    assert (student._bound_deployment.max_ongoing_requests, student._bound_deployment.max_queued_requests) == (
        1,
        waiting,
    )


def test_wrong_arguments_of_a_serve_config(published: Path) -> None:
    with pytest.raises(UserError, match=r"args\.model: not set"):
        deployment.build({})
    with pytest.raises(UserError, match="did you mean 'max_queued'"):
        deployment.build({"model": str(published), "max_queue": 3})
    with pytest.raises(UserError, match="not an exported model"):
        deployment.build({"model": str(published.parent)})


def test_what_a_cluster_serves_already_is_not_replaced_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray.serve, "status", lambda: ServeStatus(applications={"another": SERVED}))
    deployment.require_unserved()
    monkeypatch.setattr(ray.serve, "status", lambda: ServeStatus(applications={deployment.APP: SERVED}))
    with pytest.raises(UserError, match=r"^Ray cluster head:6379: it serves an application magic141 already"):
        deployment.require_unserved()
    monkeypatch.delenv("RAY_ADDRESS")
    deployment.require_unserved()  # this machine's own Ray


@pytest.mark.parametrize(("deployed_s", "gone"), [(SERVED.last_deployed_time_s, True), (1.0, False), (None, True)])
def test_what_took_the_place_of_ours_stays(
    deployed_s: float | None, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray.serve, "status", lambda: ServeStatus(applications={deployment.APP: SERVED}))
    monkeypatch.setattr(ray.serve, "delete", deleted.append)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    deployment.stop(deployed_s)
    assert deleted == [deployment.APP] * gone


def _shut_down() -> ServeStatus:
    raise ActorDiedError


def test_a_cluster_serves_until_somebody_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for status, served in (
        (lambda: ServeStatus(applications={deployment.APP: SERVED}), True),
        (lambda: ServeStatus(applications={"another": SERVED}), False),
        (_shut_down, False),
    ):
        monkeypatch.setattr(ray.serve, "status", status)
        assert deployment.is_served() == served
    deployment.stop(0.0)


def test_nothing_is_asked_of_a_local_ray_that_may_have_died(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(deployment, "is_alive", lambda: False)
    monkeypatch.setattr(ray.serve, "status", lambda: pytest.fail("it would end this process"))
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    assert not deployment.is_served()
    deployment.stop(0.0)
    assert ended == [True]
