"""The environment that `make` gives to what it starts, and the machine: a benchmark measures what users run, where."""

from __future__ import annotations

import os
from typing import Any

import torch

from tasks import provenance


def settle() -> None:
    """Brings this process's environment, which its children inherit, to the Makefile's.

    Images often set PYTHONDONTWRITEBYTECODE; then every process compiles torch and all else anew.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def machine() -> str:
    """Cores, processor and the vector instructions that torch uses: times differ by a factor of two between them."""
    return f"{os.cpu_count()} cores ({provenance.cpu_model()}, {torch.backends.cpu.get_cpu_capability()})"


def made_with() -> dict[str, Any]:
    """Commit, Python, libraries, processor and GPU as a stage records them; and the machine without its name."""
    return {**provenance.environment(), "machine": machine()}
