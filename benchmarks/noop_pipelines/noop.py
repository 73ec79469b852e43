"""What a stage of the no-op pipelines does: nothing, but its text depends on the text of the stage before."""

from __future__ import annotations

import hashlib
import os

NUM_STAGES = 7


def work(number: int, before: str, setting: str = "") -> str:
    """The text of a stage; notes in the file $NOOP_LOG that it really worked."""
    with open(os.environ["NOOP_LOG"], "a") as log:
        log.write(f"{number}\n")
    return hashlib.sha256(f"{number} {before} {setting}".encode()).hexdigest()
