"""Records what a stage was made with: code, libraries, machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from magic141.urls import without_credentials

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "deepspeed", "ray", "open-clip-torch", "faiss-cpu", "mlflow")


def environment() -> dict[str, Any]:
    """Code version, library versions, machine and device of this process."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "machine": f"{platform.node()} {platform.platform()} {platform.machine()}",
        "cpu": cpu_model(),
        "device": torch.cuda.get_device_name(0) if torch is not None and cuda else "cpu",
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name from Linux, or else from Python; its architecture if neither knows it."""
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.is_file() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


@lru_cache
def git_commit() -> str | None:
    """The commit of the code, with '-dirty' if files differ from it.

    Outside a checkout it is MAGIC141_COMMIT, which container images set when they are built; None if that is not set.
    """
    return _described() or os.environ.get("MAGIC141_COMMIT") or None


def commit_tag() -> dict[str, str]:
    """The commit as the tag that MLflow shows; empty if it is unknown."""
    commit = git_commit()
    return {"mlflow.source.git.commit": without_credentials(commit)} if commit else {}


def _described() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return package_version(name)
    except PackageNotFoundError:
        return None
