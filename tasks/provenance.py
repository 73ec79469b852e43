"""Records what a stage was made with: code, libraries, machine."""

from __future__ import annotations

import getpass
import os
import platform
import re
import shlex
import subprocess
import sys
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from magic141.environment import installed_version
from magic141.urls import without_credentials

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "deepspeed", "ray", "open-clip-torch", "faiss-cpu", "mlflow")


def environment() -> dict[str, Any]:
    """Code version, library versions, machine and device of this process."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "libraries": {name: installed_version(name) for name in LIBRARIES},
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


def source_tags() -> dict[str, str]:
    """Command, user and commit as the tags by which MLflow shows a run's source; what is not known is left out.

    The command up to its first option: MLflow shows only its last word, which should be the config.
    """
    program = Path(sys.argv[0]).name
    words = takewhile(lambda word: not word.startswith("-"), sys.argv[1:]) if program == "magic141" else ()
    source = {"mlflow.source.name": shlex.join([program, *words]), "mlflow.source.type": "LOCAL"}
    return {**source, **_user_tag(), **_commit_tag()}


def _user_tag() -> dict[str, str]:
    try:
        return {"mlflow.user": getpass.getuser()}
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        return {}


def _commit_tag() -> dict[str, str]:
    commit = git_commit()
    return {"mlflow.source.git.commit": without_credentials(commit)} if commit else {}


def _described() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
