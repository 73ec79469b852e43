"""The same seven-stage no-op pipeline in magic141, ZenML, Metaflow, Kedro and DVC: the price of running nothing.

    python benchmarks/orchestration.py --workspace runs-orchestration
    python benchmarks/orchestration.py --tools magic141 dvc --repeats 3

Two cases: everything is there already, and only the last stage has to run again. Every tool does what it recommends for
them, from the command line, in a process of its own; the median of the repeats counts, start-up included. Peers get an
environment of their own below the workspace. How often stages really worked is counted and must be right.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from documents import store_results
from environment import machine, settle

PIPELINES = Path(__file__).resolve().parent / "noop_pipelines"
ROOT = PIPELINES.parent.parent
NUM_STAGES = 7
Words = tuple[str, ...]


@dataclass(frozen=True)
class Tool:
    """A tool, and how it does each case.

    Attributes:
        name: as people know it.
        packages: what is installed for it, pinned; the first one is the tool. None: this environment.
        first: the commands that prepare the folder and run everything once; {setting} is replaced by a number.
        reused: the command that has nothing to do.
        last: the command after which the last stage has run again.
        change: file of the folder that holds the setting, if the command line cannot.
        environment: what it needs to keep to its folder and to be quiet.
        note: what is not like in the others.
    """

    name: str
    packages: Words
    first: tuple[Words, ...]
    reused: Words
    last: Words
    change: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """What was measured of a tool, or why it was not."""

    tool: str
    version: str
    reused_s: float | None = None
    last_s: float | None = None
    reused_all_s: tuple[float, ...] = ()
    last_all_s: tuple[float, ...] = ()
    reused_command: str = ""
    last_command: str = ""
    note: str = ""


TOOLS = (
    Tool(
        "magic141",
        (),
        first=(("python", "magic141_noop.py", "runs", "{setting}"),),
        reused=("python", "magic141_noop.py", "runs", "{setting}"),
        last=("python", "magic141_noop.py", "runs", "{setting}"),
        note="with its record in MLflow; Prefect's server starts when a stage has to run",
    ),
    Tool(
        "ZenML",
        ("zenml[local]==0.98.0",),
        first=(("zenml", "init"), ("python", "zenml_noop.py", "{setting}")),
        reused=("python", "zenml_noop.py", "{setting}"),
        last=("python", "zenml_noop.py", "{setting}"),
        environment={"ZENML_CONFIG_PATH": "{folder}/config", "ZENML_ANALYTICS_OPT_IN": "false"},
        note="step cache, local stack",
    ),
    Tool(
        "Metaflow",
        ("metaflow==2.19.39",),
        first=(("python", "metaflow_noop.py", "run"),),
        reused=("python", "metaflow_noop.py", "resume", "end"),
        last=("python", "metaflow_noop.py", "resume", "s7"),
        environment={"METAFLOW_DATASTORE_SYSROOT_LOCAL": "{folder}", "METAFLOW_USER": "noop", "USERNAME": "noop"},
        note="no reuse by content: `resume` clones the steps before the named one",
    ),
    Tool(
        "Kedro",
        ("kedro==1.7.0", "kedro-datasets==9.6.0"),
        first=(("kedro", "run"),),
        reused=("kedro", "run", "--only-missing-outputs"),
        last=("kedro", "run", "--from-nodes", "stage_7"),
        environment={"KEDRO_DISABLE_TELEMETRY": "true"},
        note="no reuse by content: only what has no output, or what is named",
    ),
    Tool(
        "DVC",
        ("dvc==3.67.1",),
        first=(("dvc", "init", "--no-scm"), ("dvc", "config", "core.analytics", "false"), ("dvc", "repro")),
        reused=("dvc", "repro"),
        last=("dvc", "repro"),
        change="params.yaml",
        environment={"DVC_NO_ANALYTICS": "true"},
        note="every stage is a process of its own",
    ),
)


class Bench:
    """One tool in a folder of its own."""

    def __init__(self, tool: Tool, workspace: Path) -> None:
        self.tool = tool
        self.folder = workspace / tool.name.lower()
        self.log = self.folder / "worked.txt"
        own_environment = workspace / "environments" / tool.name.lower()
        self.python = own_environment / "bin" / "python" if tool.packages else Path(sys.executable)
        places = [str(PIPELINES), *([] if tool.packages else [str(ROOT)])]
        settings = {name: value.format(folder=self.folder) for name, value in tool.environment.items()}
        self.environment = {
            **os.environ,
            **settings,
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": os.pathsep.join(places),
            "PATH": os.pathsep.join([str(self.python.parent), os.environ["PATH"]]),
            "NOOP_LOG": str(self.log),
        }

    def install(self) -> None:
        """Makes the tool's environment, once.

        Raises:
            RuntimeError: it cannot be installed; with pip's last line.
        """
        if not self.tool.packages or (self.python.parent / ".installed").exists():
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.python.parent.parent)], check=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", *self.tool.packages]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
        (self.python.parent / ".installed").touch()

    def prepare(self) -> None:
        """A new folder with the pipeline in it, run once."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        name = self.tool.name.lower()
        if (PIPELINES / name).is_dir():
            shutil.copytree(PIPELINES / name, self.folder, dirs_exist_ok=True)
        else:
            shutil.copy(PIPELINES / f"{name}_noop.py", self.folder)
        for command in self.tool.first:
            self.run(command, 0)
        self._require(NUM_STAGES, "the first run")

    def run(self, command: Words, setting: int) -> float:
        """Seconds of a command.

        Raises:
            RuntimeError: it failed.
        """
        self.log.write_text("")
        words = [word.format(setting=setting) for word in command]
        if self.tool.change:
            (self.folder / self.tool.change).write_text(f'setting: "{setting}"\n')
        start = time.perf_counter()
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {(done.stderr + done.stdout).strip()[-1500:]}")
        return seconds

    def measure(self, repeats: int) -> Timing:
        """Both cases."""
        reused, last = [], []
        for _ in range(repeats):
            reused.append(self.run(self.tool.reused, 0))
            self._require(0, "the reused run")
        for number in range(1, repeats + 1):
            last.append(self.run(self.tool.last, number))
            self._require(1, "the run of the last stage")
        return Timing(
            self.tool.name,
            self._version(),
            statistics.median(reused),
            statistics.median(last),
            tuple(reused),
            tuple(last),
            " ".join(self.tool.reused).format(setting="SETTING"),
            " ".join(self.tool.last).format(setting="SETTING"),
            self.tool.note,
        )

    def _require(self, number: int, what: str) -> None:
        worked = len(self.log.read_text().splitlines())
        if worked != number:
            raise RuntimeError(f"{what} executed {worked} stages, expected {number}")

    def _version(self) -> str:
        if not self.tool.packages:
            from magic141 import __version__

            return __version__
        return self.tool.packages[0].partition("==")[2]


def bench(tool: Tool, workspace: Path, repeats: int) -> Timing:
    """Installs, prepares and measures a tool; a tool that cannot be measured says why."""
    version = tool.packages[0].partition("==")[2] if tool.packages else ""
    place = Bench(tool, workspace)
    for what, step in (("not installable", place.install), ("does not run", place.prepare)):
        try:
            step()
        except RuntimeError as error:
            return Timing(tool.name, version, note=f"{what}: {error}")
    try:
        return place.measure(repeats)
    except RuntimeError as error:
        return Timing(tool.name, version, note=f"does not run: {error}")


def table(timings: Sequence[Timing]) -> str:
    """Markdown: a row per tool, the fastest first."""
    lines = ["| tool | everything reused, s | only the last stage, s | commands | |", "|---|--:|--:|---|---|"]
    for timing in sorted(timings, key=lambda timing: timing.reused_s or float("inf")):
        commands = " / ".join(f"`{c}`" for c in dict.fromkeys((timing.reused_command, timing.last_command)) if c)
        figures = [f"{value:.2f}" if value is not None else "-" for value in (timing.reused_s, timing.last_s)]
        cells = [
            f"{timing.tool} {timing.version}",
            *figures,
            commands,
            timing.note.replace("\n", " ").replace("|", "/"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and stores."""
    settle()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [tool.name.lower() for tool in TOOLS]
    parser.add_argument("--tools", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workspace", type=Path, default=Path("runs-orchestration"), help="kept, with environments")
    arguments = parser.parse_args()
    workspace = arguments.workspace.resolve()
    timings = []
    for tool in TOOLS:
        if tool.name.lower() in arguments.tools:
            timings.append(bench(tool, workspace, arguments.repeats))
            print(f"{tool.name}: {timings[-1].reused_s}, {timings[-1].last_s} s; {timings[-1].note}", flush=True)
    text = f"{machine()}, median of {arguments.repeats}, process start-up included:\n\n{table(timings)}"
    print("\n" + text)
    store_results("orchestration", text, timings=[asdict(timing) for timing in timings])


if __name__ == "__main__":
    main()
