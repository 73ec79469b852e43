"""Waiting for another process, on a machine that may be busy with other work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 900.0  # only what hangs takes longer, whatever else the machine does

T = TypeVar("T")


def wait_for(what: Callable[[], T], every_s: float = 0.1) -> T:
    """The first true answer; who does not answer at all (`OSError`) is asked again."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = what()
        except OSError:
            if time.monotonic() > deadline:
                raise
        else:
            if answer:
                return answer
            assert time.monotonic() < deadline, f"nothing after {PATIENCE_S:.0f} s"
        time.sleep(every_s)
