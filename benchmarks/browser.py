"""A headless Chromium, driven over its DevTools protocol: open a page, ask it things, take its picture."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from websockets.sync.client import connect
from websockets.sync.connection import Connection

EXECUTABLES = ("chromium", "google-chrome", "chromium-browser", "google-chrome-stable")
START_TIMEOUT_S, CALL_TIMEOUT_S, MAX_MESSAGE_BYTES = 60.0, 120.0, 1 << 28
# As root there is no sandbox; nothing but our own pages is opened. No background traffic of the browser's own.
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
QUIET = ("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--mute-audio")


class BrowserError(Exception):
    """A page did not do what was asked of it."""


class Page:
    """A tab. Errors that the page prints or throws are kept in `errors`."""

    def __init__(self, connection: Connection) -> None:
        self.errors: list[str] = []
        self._connection, self._number = connection, 0
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A DevTools command and its answer."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(CALL_TIMEOUT_S))
            if message.get("id") != self._number:
                self._note(message)
            elif "error" in message:
                raise BrowserError(f"{method}: {message['error']['message']}")
            else:
                return dict(message["result"])

    def open(self, url: str) -> None:
        """Goes to a page; `wait_for` says when it is ready."""
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 60.0) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                text = str(self.evaluate("document.body ? document.body.innerText : ''"))
                raise BrowserError(f"not true within {seconds:g} s: {condition}; the page says: {text[:500]}")
            time.sleep(0.2)

    def resize(self, width: int, height: int) -> None:
        """The size of the visible part, in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def picture(self, file: Path) -> None:
        """What is visible, as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"].get("text")))
        elif message.get("method") == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(" ".join(str(argument.get("value")) for argument in parameters["args"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(str(parameters["entry"]["text"]))


def find_browser() -> str | None:
    """Chromium or Chrome on PATH."""
    return next((path for name in EXECUTABLES if (path := shutil.which(name))), None)


@contextmanager
def open_page(width: int = 1600, height: int = 1000) -> Iterator[Page]:
    """A tab of a browser that lives as long as the context.

    Raises:
        BrowserError: there is no browser.
    """
    executable = find_browser()
    if executable is None:
        raise BrowserError(f"no browser on PATH: expected one of {', '.join(EXECUTABLES)}; install Debian's chromium")
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        place = ["--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command, nowhere = [executable, *OPTIONS, *QUIET, *place], subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        try:
            address = _new_tab(Path(profile), process)
            with connect(address, max_size=MAX_MESSAGE_BYTES) as connection:
                page = Page(connection)
                page.resize(width, height)
                yield page
        finally:
            process.kill()
            process.wait()


def _new_tab(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """The socket of a new tab; the browser writes its port into its profile."""
    file, deadline = profile / "DevToolsActivePort", time.monotonic() + START_TIMEOUT_S
    while not file.is_file() or not file.read_text().strip():
        if process.poll() is not None or time.monotonic() > deadline:
            raise BrowserError("the browser did not start")
        time.sleep(0.1)
    port = file.read_text().split()[0]
    with urlopen(Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT"), timeout=30) as answer:
        return str(json.load(answer)["webSocketDebuggerUrl"])
