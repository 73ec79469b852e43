"""A run of `magic141` as the chaos benchmark sees it: its processes, the stage of the moment, what it printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from finished import MAGIC141

POLL_S = 0.25
EMBEDDED_PREFECT = "prefect.server.api.server:create_app"
STARTING = "between stages"


class Attempt:
    """One process of `magic141 run`, and all that it started.

    Args:
        arguments: of `magic141`.
        home: its workspace.
        environment: on top of this process's own.
        log: file for what it prints.
    """

    def __init__(self, arguments: Sequence[str], home: Path, environment: Mapping[str, str], log: Path) -> None:
        self.home, self.log = home, log
        own = {"MAGIC141_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"}
        with log.open("wb") as stream:
            self.process = psutil.Popen(
                [MAGIC141, *arguments],
                env={**os.environ, **own, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.family: set[psutil.Process] = {psutil.Process(self.process.pid)}

    def alive(self) -> bool:
        """Whether the flow's process still runs."""
        return self.process.poll() is None

    def look(self) -> None:
        """Notes the processes that belong to the run, so that those which outlive it can be found."""
        try:
            self.family |= set(self.process.children(recursive=True))
        except psutil.NoSuchProcess:
            return

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Waits until `done` or the end of the run; whether either came within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.alive() and not done():
            if time.monotonic() > deadline:
                return False
            self.look()
            time.sleep(POLL_S)
        return True

    def stage(self) -> str | None:
        """The stage that works now: the one with a staging folder of this process."""
        found = (self.home / "artifacts").glob(f"*/.staging-*-{self.process.pid}")
        return next((folder.parent.name for folder in found), None)

    def finished_stages(self) -> set[str]:
        """Stages with an artifact."""
        return {path.parent.name for path in (self.home / "artifacts").glob("*/*") if not path.name.startswith(".")}

    def targets(self) -> dict[str, list[psutil.Process]]:
        """What could be killed now: kind -> processes."""
        self.look()
        found: dict[str, list[psutil.Process]] = {"flow": [psutil.Process(self.process.pid)]}
        for process in living(self.family):
            if kind := _kind(process):
                found.setdefault(kind, []).append(process)
        return found

    def printed(self) -> str:
        """All that it printed."""
        return self.log.read_text(errors="replace")

    def resume_arguments(self) -> list[str] | None:
        """The arguments of the command that a failed run printed to resume it."""
        found = re.findall(r"to resume: \S*magic141 (.*)", self.printed())
        return shlex.split(found[-1]) if found else None

    def unfinished(self) -> bool:
        """Whether it ended with something begun and not done: not refused, as at a server that was just down."""
        lines = self.printed().strip().splitlines()
        begun = any(not line.startswith("error: ") for line in lines)
        done = any(line.startswith("done ") for line in lines)
        return self.process.returncode != 0 and begun and not done

    def end(self) -> None:
        """Kills all of it."""
        self.look()
        for process in living(self.family):
            process.kill()
        self.process.wait()


def living(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a dead process that nobody has asked about is not alive."""
    return [process for process in processes if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _kind(process: psutil.Process) -> str | None:
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    name = words[0] if words else ""
    if name.startswith("ray::"):
        title = name.removeprefix("ray::").strip()
        return None if title.startswith("IDLE") else "ray agent" if title.endswith("Agent") else "ray worker"
    if name.endswith("/raylet"):
        return "raylet"
    return "prefect" if EMBEDDED_PREFECT in words else None
