"""Starting fast: what a short command does most of its time is to import."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: imports make a million objects that stay, and looking at them takes a sixth."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
