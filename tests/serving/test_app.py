"""The web application around a real tiny model, without Ray; the queue is played by the test."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from starlette.testclient import TestClient

from magic141.data.sizes import Size
from magic141.serving.app import BusyError, ModelCard, build_app
from magic141.serving.config import ServingConfig
from magic141.serving.deployment import describe
from magic141.serving.requests import Video, VideoRequest
from magic141.serving.student import Student
from tests.serving.conftest import picture

CARD = ModelCard(model="models:/tiny@champion", height=32, width=32, fps=8, window_seconds=9 / 8, num_steps=4)
CONFIG = ServingConfig(max_image_bytes=50_000, max_seconds=4, timeout_seconds=60)
PROMPT = {"prompt": "a red circle moves up"}


@pytest.fixture(scope="module")
def student(published: Path) -> Student:
    return Student.load(published)


@pytest.fixture(scope="module")
def client(student: Student) -> TestClient:
    async def animate(request: VideoRequest) -> Video:
        assert request.image.shape == (32, 32, 3)  # as small as the model wants it
        return await asyncio.to_thread(student.animate, request)

    return client_of(animate)


def client_of(animate: object, config: ServingConfig = CONFIG, ready: int = 1) -> TestClient:
    async def count_ready() -> int:
        return ready

    return TestClient(build_app(animate, count_ready, CARD, config), raise_server_exceptions=False)  # type: ignore[arg-type]


def num_frames(mp4: bytes) -> int:
    with av.open(io.BytesIO(mp4)) as container:
        frames = list(container.decode(video=0))
    assert {(frame.height, frame.width) for frame in frames} == {(32, 32)}
    return len(frames)


def test_an_upload_that_stalls_loses_its_place(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magic141.serving.app.UPLOAD_SECONDS", 0.1)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if sent or asked:
            await asyncio.sleep(60)
        asked.append(True)
        return {"type": "http.request", "body": b"--b\r\n", "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    asked: list[bool] = []
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers, "query_string": b""}
    asyncio.run(asyncio.wait_for(client.app(scope, receive, send), 10))
    assert sent[0]["status"] == 408
    assert b'"expected":"the whole form within 0.1 s"' in sent[1]["body"]


def test_a_picture_and_a_prompt_become_a_video(client: TestClient, image: bytes) -> None:
    answer = client.post("/generate", files={"image": image}, data={**PROMPT, "seconds": "2", "seed": "3"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "video/mp4"
    assert num_frames(answer.content) == 16
    assert json.loads(answer.headers["x-magic141-remarks"]) == []
    again = client.post("/generate", files={"image": image}, data={**PROMPT, "seconds": "2", "seed": "3"})
    other = client.post("/generate", files={"image": image}, data={**PROMPT, "seconds": "2", "seed": "4"})
    assert again.content == answer.content != other.content


def test_a_student_that_is_ready_has_read_its_encoders(published: Path) -> None:
    """A first request would wait for them, at the real size for minutes."""
    assert "parts" in vars(Student.load(published).bundle.encoders)


def test_what_the_model_does_not_understand_is_said(client: TestClient, image: bytes) -> None:
    answer = client.post("/generate", files={"image": image}, data={"prompt": "a crème brûlée moves up"})
    assert num_frames(answer.content) == 9
    assert "crème, brûlée" in json.loads(answer.headers["x-magic141-remarks"])[0]
    answer = client.post("/generate", files={"image": image}, data={"prompt": "\N{CAT FACE}" * 900})
    assert json.loads(answer.headers["x-magic141-remarks"])[0].endswith("…")
    assert len(answer.headers["x-magic141-remarks"]) < 6000, "clients refuse longer headers"


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"data": {}}, 400, "prompt"),
        ({"files": {}}, 400, "Content-Type"),
        ({"files": {"image": b"text"}}, 422, "image"),
        ({"files": {"image": picture(300, 300)}}, 413, "image"),
        ({"files": {"picture": picture()}}, 400, "picture"),
        ({"files": [("image", picture()), ("image", picture())]}, 400, "image"),
        ({"files": [("image", picture())] * 9}, 400, "request"),
        ({"files": {"image": picture(), "prompt": b"a file"}, "data": {}}, 400, "prompt"),
        ({"data": {**PROMPT, "sed": "1"}}, 400, "sed"),
        ({"data": {"prompt": ["it moves up", "it moves down"]}}, 400, "prompt"),
        ({"data": {**PROMPT, "seconds": "4.5"}}, 422, "seconds"),
        ({"data": {**PROMPT, "seed": "x"}}, 400, "seed"),
    ],
)
def test_errors_are_json_with_field_value_expected_and_remedy(
    client: TestClient, image: bytes, fields: dict[str, object], status: int, field: str
) -> None:
    answer = client.post("/generate", **{"files": {"image": image}, "data": PROMPT, **fields})  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["field"] == field
    assert all(error[name] for name in ("value", "expected", "remedy"))


def test_too_large_a_body_is_not_read_to_its_end(client: TestClient) -> None:
    sent: list[dict[str, Any]] = []
    chunks = iter(
        [b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'] + 1000 * [bytes(10_000)]
    )
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/generate",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(chunks), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 413
    assert len(list(chunks)) > 980


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_what_cannot_be_queued_is_refused_before_its_picture_is_read(image: bytes, num_replicas: int) -> None:
    """Of a large picture that would take half a gigabyte, for nothing."""
    config = CONFIG.model_copy(update={"max_queued": 1, "num_replicas": num_replicas})
    places = 1 + num_replicas
    refused: list[tuple[int, int]] = []

    async def animate(request: VideoRequest) -> Video:
        if request.seed < places:  # in work or waiting; then one more, whose picture is none
            await asyncio.to_thread(post, request.seed + 1)
        return Video(b"mp4", (), 1.0)

    def post(seed: int) -> None:
        picture = image if seed < places else b"no picture"
        answer = client.post("/generate", files={"image": picture}, data={**PROMPT, "seed": str(seed)})
        if answer.status_code != 200:
            refused.append((seed, answer.status_code))

    client = client_of(animate, config)
    with client:  # one event loop for all
        post(0)
    assert refused == [(places, 503)]


def test_a_full_queue_says_when_to_come_back(image: bytes) -> None:
    async def animate(request: VideoRequest) -> Video:
        if request.seed:
            raise BusyError
        return Video(b"mp4", (), 37.4)

    client = client_of(animate)
    assert client.post("/generate", files={"image": image}, data={**PROMPT, "seed": "1"}).headers["retry-after"] == "10"
    assert client.post("/generate", files={"image": image}, data=PROMPT).status_code == 200
    answer = client.post("/generate", files={"image": image}, data={**PROMPT, "seed": "1"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "37")
    assert answer.json()["error"]["remedy"] == "ask again in 37 s"


def test_too_slow_an_answer_is_given_up(image: bytes) -> None:
    async def animate(request: VideoRequest) -> Video:
        await asyncio.sleep(30)
        raise AssertionError

    config = CONFIG.model_copy(update={"timeout_seconds": 0.05})
    answer = client_of(animate, config).post("/generate", files={"image": image}, data=PROMPT)
    assert answer.status_code == 504
    assert "within 0.05 s" in answer.json()["error"]["expected"]


def test_a_failure_shows_no_traceback(image: bytes) -> None:
    async def animate(request: VideoRequest) -> Video:
        raise RuntimeError("secret path")

    answer = client_of(animate).post("/generate", files={"image": image}, data=PROMPT)
    assert answer.status_code == 500
    assert answer.json()["error"]["value"] == "RuntimeError"
    assert "secret" not in answer.text


def test_health_and_page(client: TestClient) -> None:
    health = client.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["model"]) == (200, "ok", CARD.model)
    assert client_of(None, ready=0).get("/health").status_code == 503
    page = client.get("/")
    assert 'min="0.1" max="4.0"' in page.text
    assert CARD.model in page.text
    assert "http" not in page.text  # everything it needs is in it
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_model_of_several_sizes_shows_them_and_takes_the_nearest() -> None:
    shapes = []

    async def animate(request: VideoRequest) -> Video:
        shapes.append(request.image.shape)
        return Video(b"", (), 0.1)

    async def count_ready() -> int:
        return 1

    card = CARD.model_copy(update={"more_sizes": (Size(48, 32),)})
    client = TestClient(build_app(animate, count_ready, card, CONFIG))
    for size in ((30, 30), (30, 60)):
        assert client.post("/generate", files={"image": picture(*size)}, data=PROMPT).status_code == 200
    assert shapes == [(32, 32, 3), (48, 32, 3)]
    assert "32x32 or 48x32 (height x width) at 8 frames" in " ".join(client.get("/").text.split())
    assert client.get("/health").json()["more_sizes"] == [[48, 32]]


def test_the_card_of_a_model_has_all_its_sizes(published: Path, tmp_path: Path) -> None:
    info = json.loads((published / "magic141.json").read_text())
    (tmp_path / "magic141.json").write_text(json.dumps({**info, "more_sizes": [[48, 32]]}))
    assert describe("m", tmp_path).sizes == ((32, 32), (48, 32))
    assert describe("m", published).sizes == ((32, 32),)


def test_a_monitor_may_ask_for_the_head_alone(client: TestClient) -> None:
    assert [client.head(path).status_code for path in ("/", "/health")] == [200, 200]
    assert client_of(None, ready=0).head("/health").status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "status", "remedy"),
    [
        ("GET", "/helth", 404, "did you mean '/health'?"),
        ("GET", "/favicon.ico", 404, "known: /, /generate, /health"),
        ("GET", "/generate", 405, "ask with POST"),
        ("POST", "/", 405, "ask with GET or HEAD"),
    ],
)
def test_a_wrong_address_or_method_is_answered_with_the_right_ones(
    client: TestClient, method: str, path: str, status: int, remedy: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"] == {
        "field": "request",
        "value": f"{method} {path}",
        "expected": "GET /, GET /health or POST /generate with a form",
        "remedy": remedy,
    }
    assert ("allow" in answer.headers) == (status == 405)


def test_a_place_is_free_again_whatever_became_of_its_request(image: bytes) -> None:
    async def animate(request: VideoRequest) -> Video:
        if request.seed:
            raise BusyError if request.seed == 1 else RuntimeError
        return Video(b"mp4", (), 1.0)

    client = client_of(animate)
    for seed, status in (("0", 200), ("1", 503), ("2", 500)):
        assert client.post("/generate", files={"image": image}, data={**PROMPT, "seed": seed}).status_code == status
    assert client.get("/health").json()["in_work"] == 0


def test_a_model_makes_one_video_at_a_time() -> None:
    at_once: list[int] = []
    most: list[int] = []

    def generate(*_: object) -> np.ndarray:
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.1)
        at_once.pop()
        return np.zeros((1, 32, 32, 3), np.uint8)

    bundle: Any = SimpleNamespace(encoders=SimpleNamespace(remarks=lambda _: []), info=CARD, generate=generate)
    student, request = Student(bundle), VideoRequest(np.zeros((32, 32, 3), np.uint8), "a prompt")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(student.animate, [request] * 3))
    assert most == [1] * 3
