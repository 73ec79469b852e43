"""What a store needs while it is opened for the first time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock


@contextmanager
def creating(workspace: Path) -> Iterator[None]:
    """Locks out other processes, since two at once would break a new store, and hides MLflow's log of its migrations.

    A read-only workspace has its store already, and needs no lock.
    """
    lock = FileLock(workspace / ".store.lock", fallback_to_soft=False)
    with lock if os.access(workspace, os.W_OK) else nullcontext():
        logger = logging.getLogger("mlflow.store.db.utils")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
