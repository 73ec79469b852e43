"""The environment that `make` gives to what it starts: a benchmark measures what users run."""

from __future__ import annotations

import os


def settle() -> None:
    """Brings this process's environment, which its children inherit, to the Makefile's.

    Images often set PYTHONDONTWRITEBYTECODE; then every process compiles torch and all else anew.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("DO_NOT_TRACK", "1")
