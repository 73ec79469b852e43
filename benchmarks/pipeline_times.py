"""Wall-clock time of the pipeline: from nothing, run again unchanged, and after changing one stage's config.

    python benchmarks/pipeline_times.py configs/demo.yaml
    python benchmarks/pipeline_times.py configs/smoke.yaml --write-docs

Every run uses a workspace of its own, empty at the start; `--workspace` names one to keep, in which a stopped script
goes on. Times include process start-up. The last case only plans.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from documents import store_results, write_section
from environment import machine, settle
from finished import MAGIC141

HELP_RUNS = 5
TIMES_FILE = "pipeline_times.json"


@dataclass(frozen=True)
class Timing:
    """One command and what it took."""

    case: str
    command: str
    wall_s: float
    cpu_s: float
    load_before: float
    output_tail: str


def measure(case: str, arguments: Sequence[str], workspace: Path) -> Timing:
    """Runs `magic141 ARGUMENTS` with `workspace`; stops this script when the command fails."""
    environment = os.environ | {"MAGIC141_HOME": str(workspace), "NO_COLOR": "1", "COLUMNS": "120"}
    load, cpu, start = os.getloadavg()[0], _children_cpu_s(), time.perf_counter()
    done = subprocess.run(
        [MAGIC141, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - start
    if done.returncode:
        sys.stdout.write(done.stdout[-4000:])
        raise SystemExit(f"magic141 {' '.join(arguments)}: exit code {done.returncode}")
    print(f"{wall:8.1f} s  {case}", flush=True)
    tail = done.stdout[-3000:].replace(str(workspace), "WORKSPACE").replace(f"{Path(MAGIC141).parent}/", "")
    return Timing(case, f"magic141 {' '.join(arguments)}", wall, _children_cpu_s() - cpu, load, tail)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_all(config: str, overrides: Sequence[str], workspace: Path) -> list[Timing]:
    """Every case, in the order in which they depend on each other; those that are in the workspace's file are done."""
    settings = [word for override in overrides for word in ("--set", override)]
    run = ["run", config, *settings]
    cases = {
        "`magic141 --help`": ["--help"],
        "`run` from nothing": run,
        "`run` again, unchanged": run,
        "`run`, `evaluate.*` changed": [*run, "--set", "evaluate.frechet_dimensions=7"],
        "`plan`, `distill_dmd2.*` changed": ["plan", config, *settings, "--set", "distill_dmd2.min_score_time=0.03"],
    }
    file = workspace / TIMES_FILE
    timings = [Timing(**timing) for timing in json.loads(file.read_text())] if file.exists() else []
    for case, arguments in list(cases.items())[len(timings) :]:
        repeats = HELP_RUNS if arguments == ["--help"] else 1
        timings.append(min((measure(case, arguments, workspace) for _ in range(repeats)), key=lambda t: t.wall_s))
        workspace.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([asdict(timing) for timing in timings]))
    return timings


def table(config: str, timings: Sequence[Timing]) -> str:
    """The Markdown table."""
    rows = [f"| {timing.case} | {timing.wall_s:.1f} | {timing.cpu_s:.1f} |" for timing in timings]
    title = f"`{config}`, {machine()}, Python {platform.python_version()}, process start-up included:"
    return "\n".join([title, "", "| command | wall s | CPU s, without Ray's workers |", "|---|--:|--:|", *rows])


def main() -> None:
    """Measures, prints and stores."""
    settle()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help="kept; without it a temporary one")
    parser.add_argument("--write-docs", action="store_true", help="also put the table into its document")
    arguments = parser.parse_args()
    if arguments.workspace and arguments.workspace.exists() and not (arguments.workspace / TIMES_FILE).exists():
        parser.error(f"--workspace {arguments.workspace}: not this script's; a run from nothing needs a new folder")
    with tempfile.TemporaryDirectory(prefix="magic141-times-") as temporary:
        workspace = arguments.workspace or Path(temporary)
        timings = measure_all(arguments.config, arguments.overrides, workspace.resolve())
    text = table(arguments.config, timings)
    stored = [asdict(timing) for timing in timings]
    store_results("pipeline_times", f"{text}\n\n{_plan_section(timings[-1])}", config=arguments.config, timings=stored)
    print("\n" + text)
    if arguments.write_docs:
        write_section("times", text)


def _plan_section(plan: Timing) -> str:
    return f"What `{plan.command}` said:\n\n```\n{plan.output_tail.strip()}\n```\n"


if __name__ == "__main__":
    main()
