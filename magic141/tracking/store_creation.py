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
    """Locks out other processes, since two at once would break a new store.

    A read-only workspace has its store already, and needs no lock. From now on MLflow does not log its migrations, nor,
    with a traceback, the errors that it also raises.
    """
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    lock = FileLock(workspace / ".store.lock", fallback_to_soft=False)
    with lock if os.access(workspace, os.W_OK) else nullcontext():
        yield
