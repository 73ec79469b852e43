"""The web application: a page, an endpoint that makes videos, a health check. Independent of Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, PackageLoader
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message

from magic141.config.errors import nearest
from magic141.data.sizes import Size
from magic141.data.videos.video import fit_nearest
from magic141.errors import shortened
from magic141.frozen import FrozenConfig
from magic141.serving.config import MIN_SECONDS, ServingConfig
from magic141.serving.requests import (
    FIELDS,
    MALFORMED,
    RequestError,
    Video,
    VideoRequest,
    check_image_bytes,
    check_names,
    check_request,
)

FORM_OVERHEAD_BYTES = 64_000  # boundaries and the other fields
MAX_FIELDS = 8
MAX_UNPACKING = 2  # pictures decoded at once: one of the largest takes half a gigabyte
FIRST_RETRY_SECONDS = 10  # until the first video shows how long one takes
MAX_REMARK_CHARS = 200  # twelve bytes each at most in JSON; clients refuse headers of more than about 8,000
BUSY, TOO_SLOW, FAILED = 503, 504, 500
UPLOAD_TOO_SLOW, UPLOAD_SECONDS = 408, 60.0
UNKNOWN_PATH, WRONG_METHOD = 404, 405
PATHS = ("/", "/health", "/generate")

Animate = Callable[[VideoRequest], Awaitable[Video]]
CountReady = Callable[[], Awaitable[int]]


class ModelCard(FrozenConfig):
    """What /health and the page show of the model."""

    model: str
    height: int
    width: int
    fps: float
    window_seconds: float
    num_steps: int
    more_sizes: tuple[Size, ...] = ()

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All sizes of its videos."""
        return (Size(self.height, self.width), *self.more_sizes)


class BusyError(Exception):
    """The queue is full."""


class Endpoints:
    """The application's three endpoints and their shared state.

    Args:
        animate: makes a video, waiting for its turn; raises BusyError if the queue is full.
        count_ready: counts the copies of the model that can work.
        card: description of the model.
        config: limits.
    """

    def __init__(self, animate: Animate, count_ready: CountReady, card: ModelCard, config: ServingConfig) -> None:
        self._animate = animate
        self._count_ready = count_ready
        self._card = card
        self._config = config
        self._in_work = 0
        self._unpacking = asyncio.Semaphore(MAX_UNPACKING)
        self._last_seconds = float(FIRST_RETRY_SECONDS)

    async def page(self) -> HTMLResponse:
        """GET /: the page on which to upload a picture, type a prompt and watch the video."""
        environment = Environment(loader=PackageLoader("magic141", "serving"), autoescape=True)
        values = {"card": self._card, "config": self._config, "min_seconds": MIN_SECONDS}
        html = environment.get_template("page.html.j2").render(values)
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        policy += "img-src blob:; media-src blob:; connect-src 'self'"
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    async def health(self) -> JSONResponse:
        """GET /health: 200 if a copy of the model can work, else 503."""
        ready = await self._count_ready()
        state = {"status": "ok" if ready else "unavailable", "ready_replicas": ready, "in_work": self._in_work}
        return JSONResponse({**state, **self._card.model_dump()}, 200 if ready else BUSY)

    async def generate(self, request: Request) -> Response:
        """POST /generate: a form with image, prompt and optionally seconds and seed; returns the mp4 file."""
        if self._in_work >= self._config.max_queued + self._config.num_replicas:
            return self._busy()  # before any work on its picture
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):  # a client that is gone must not keep its place
                checked = await self._read(request)
        except TimeoutError:
            expected = f"the whole form within {UPLOAD_SECONDS:g} s"
            return _problem(UPLOAD_TOO_SLOW, "request", "not complete", expected, "send it again, or a smaller picture")
        self._in_work += 1
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                video = await self._animate(checked)
        except BusyError:
            return self._busy()
        except TimeoutError:
            value, expected = "in work or waiting", f"an answer within {self._config.timeout_seconds:g} s"
            return _problem(TOO_SLOW, "request", value, expected, "ask for fewer seconds, or again later")
        finally:
            self._in_work -= 1
        self._last_seconds = video.seconds
        # as JSON: headers must be ASCII, and there may be several remarks
        remarks = json.dumps([shortened(remark, MAX_REMARK_CHARS) for remark in video.remarks])
        headers = {"X-Magic141-Seconds": f"{video.seconds:.2f}", "X-Magic141-Remarks": remarks}
        return Response(video.mp4, media_type="video/mp4", headers=headers)

    async def _read(self, request: Request) -> VideoRequest:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            value = request.headers.get("content-type", "(missing)")
            raise RequestError("Content-Type", value, "multipart/form-data", "send a form", MALFORMED)
        async with self._bounded(request).form(max_files=MAX_FIELDS, max_fields=MAX_FIELDS) as form:
            check_names(form.multi_items())
            fields: dict[str, object] = {name: form.get(name) for name in FIELDS}
            if isinstance(image := fields["image"], UploadFile):
                fields["image"] = await image.read()
            async with self._unpacking:  # in a thread, as a large picture takes a while and other requests need answers
                return await asyncio.to_thread(self._checked, fields)

    def _checked(self, fields: Mapping[str, object]) -> VideoRequest:
        """The checked request, with its picture scaled to the model's size."""
        request = check_request(fields, self._config)
        return replace(request, image=fit_nearest(request.image, self._card.sizes))

    def _bounded(self, request: Request) -> Request:
        """The request, wrapped so that no more than the largest allowed picture is read."""
        received = 0

        async def receive() -> Message:
            nonlocal received
            message = await request.receive()
            received += len(message.get("body", b""))
            check_image_bytes(received - FORM_OVERHEAD_BYTES, self._config)
            return message

        return Request(request.scope, receive)

    def _busy(self) -> JSONResponse:
        seconds = max(1, round(self._last_seconds))  # by then a place should be free
        value, expected = f"{self._in_work} in work", f"at most {self._config.max_queued} waiting"
        answer = _problem(BUSY, "request", value, expected, f"ask again in {seconds} s")
        answer.headers["Retry-After"] = str(seconds)
        return answer


def build_app(animate: Animate, count_ready: CountReady, card: ModelCard, config: ServingConfig) -> FastAPI:
    """The application around a model."""
    endpoints = Endpoints(animate, count_ready, card, config)
    app = FastAPI(title="magic141", docs_url=None, redoc_url=None, openapi_url=None)
    readable = ["GET", "HEAD"]  # what watches over a server often asks for the head alone
    app.api_route("/", methods=readable, response_model=None)(endpoints.page)
    app.api_route("/health", methods=readable, response_model=None)(endpoints.health)
    app.post("/generate", response_model=None)(endpoints.generate)
    app.exception_handler(RequestError)(_answer_request_error)
    app.exception_handler(HTTPException)(_answer_http_error)
    app.exception_handler(Exception)(_answer_failure)
    return app


async def _answer_request_error(_: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": error.record}, error.status)


async def _answer_http_error(request: Request, error: Any) -> JSONResponse:
    """Unknown paths, wrong methods, and forms that cannot be read."""
    asked, expected = f"{request.method} {request.url.path}", "GET /, GET /health or POST /generate with a form"
    remedy, headers = str(error.detail), error.headers or {}
    if error.status_code == UNKNOWN_PATH:
        remedy = nearest(request.url.path, PATHS)
    elif error.status_code == WRONG_METHOD:
        remedy = f"ask with {' or '.join(sorted(headers['Allow'].split(', ')))}"
    answer = _problem(error.status_code, "request", asked, expected, remedy)
    answer.headers.update(headers)
    return answer


async def _answer_failure(_: Request, error: Exception) -> JSONResponse:
    """Answers an unexpected error; the server's log has the traceback."""
    return _problem(FAILED, "request", type(error).__name__, "a video", "ask again; if it stays, read the server's log")


def _problem(status: int, field: str, value: str, expected: str, remedy: str) -> JSONResponse:
    return JSONResponse({"error": RequestError(field, value, expected, remedy).record}, status)
