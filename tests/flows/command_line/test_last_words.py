"""What a killed process leaves to be said, and one that ends by itself does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.waiting import PATIENCE_S

PROGRAM = """
import os, signal
from flows.command_line.last_words import last_words
with last_words("to resume: again"):
    {end}
"""
ENDS = {
    "os.kill(os.getpid(), signal.SIGKILL)": True,
    "os._exit(1)": True,
    "os.killpg(os.getpgrp(), signal.SIGTERM)": True,
    "pass": False,
    "raise SystemExit(3)": False,
}


@pytest.mark.parametrize("end", ENDS)
def test_only_a_process_that_cannot_speak_has_last_words(end: str) -> None:
    program = [sys.executable, "-c", PROGRAM.format(end=end)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE_S, start_new_session=True)
    assert done.stderr == ("to resume: again\n" if ENDS[end] else "")
