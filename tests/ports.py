"""A port that a server of a test may have to itself."""

from __future__ import annotations

import random
import socket

UNUSED = range(20_000, 32_000)  # above Ray's and below those that Linux gives away by itself


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens at, and that nobody is given who asks the system for any."""
    for port in random.SystemRandom().sample(UNUSED, len(UNUSED)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
