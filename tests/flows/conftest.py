"""A webhook that keeps what is posted to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import HTTPServer
from typing import Any

import pytest

from tests.http_servers import Handler, serving


class Webhook(HTTPServer):
    """Answers 200, or 500 below /broken.

    Attributes:
        posts: what came, with the content type.
    """

    posts: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Posted(Handler):
    server: Webhook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posts.append({"type": self.headers["Content-Type"], **body})
        self.answer(500 if self.path.startswith("/broken") else 200)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook(("127.0.0.1", 0), _Posted)
    server.posts = []
    with serving(server):
        yield server
