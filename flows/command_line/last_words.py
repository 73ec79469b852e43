"""Prints a message after this process is killed, by a shell that waits for its end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_WAIT = 'read -r word || printf "%s\\n" "$1" >&2'  # `read` fails if the pipe closes without input


@contextmanager
def last_words(text: str) -> Iterator[None]:
    """Writes `text` to standard error if this process ends inside the block without Python running its handlers.

    This happens with SIGKILL, out of memory, and in Ray's driver, which exits at its next call once its daemon has
    died. The system then closes the pipe to the shell. The shell has its own session, so that signals do not reach it.
    """
    shell = subprocess.Popen(["sh", "-c", _WAIT, "sh", text], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        shell.communicate(b"done\n")
