"""Runs `magic141` as a user does, in processes of its own, and finds what it made."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """A command that came to its end."""

    code: int
    output: str

    def stages(self, mark: str) -> list[str]:
        """The stages on lines that begin with `mark`: ✓ made, ↺ reused."""
        lines = [line.split() for line in self.output.splitlines()]
        return [words[1] for words in lines if len(words) > 1 and words[0] == mark]


def start(workspace: Path, *args: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """`magic141 args…`."""
    environment = {**os.environ, "MAGIC141_HOME": str(workspace), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from flows.cli import app; app()", *args]
    workspace.parent.mkdir(exist_ok=True)
    output = (workspace.parent / "output.txt").open("w")
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=output, text=True)


def finish(workspace: Path, *args: str, cwd: Path = ROOT) -> Finished:
    """Runs the command to its end."""
    code = start(workspace, *args, cwd=cwd).wait(PATIENCE_S)
    return Finished(code, (workspace.parent / "output.txt").read_text())


def artifact(workspace: Path, stage: str) -> Path:
    """The one artifact of a stage."""
    (folder,) = made(workspace, stage)
    return folder


def made(workspace: Path, stage: str) -> list[Path]:
    """A stage's artifacts, the newest last."""
    return sorted((workspace / "artifacts" / stage).glob("[!.]*"), key=lambda folder: folder.stat().st_mtime)
