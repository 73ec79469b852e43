"""How `magic141 plan` and the look-up of reusable results keep up with a large MLflow store.

    python benchmarks/store_scale.py                 # 1,000 pipeline runs of configs/demo.yaml, 12 stages each
    python benchmarks/store_scale.py --runs 50 --workspace runs-scale

One run is written through the product's own stage machinery, with stages that compute nothing but record what real
ones do: params, metrics by step, scores, lineage. The others are copies of its rows in the SQLite file, with ids, keys
and times of their own: the API takes seconds a run, so an hour and more for 1,000. The one real run is neither the
oldest nor the newest.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from documents import store_results
from environment import machine, settle
from finished import MAGIC141

REPEATS = 5
HOUR_MS = 3_600_000
TRAINING = ("train_clip", "pretrain_t2v", "pretrain_i2v", "distill_cfg", "distill_dmd2")
NUM_LOGGED_STEPS, NUM_VARIANTS, NUM_DIMENSIONS = 80, 15, 20
TABLES = ("runs", "tags", "params", "metrics", "latest_metrics", "inputs", "logged_models", "logged_model_tags")
CHANGED = "pretrain_t2v.num_steps=801"


@dataclass(frozen=True)
class Figure:
    """What was measured: the median and the slowest of several, at a number of runs in the store."""

    case: str
    unit: str
    target: float | None
    num_runs: int
    median: float
    slowest: float


def write_one_run(config: str, workspace: Path) -> dict[str, str]:
    """A finished pipeline run in the store, by the product's own code; returns the key of every stage."""
    from magic141.config import load_config, to_yaml
    from magic141.tracking import Tracker
    from tasks.console import StageConsole
    from tasks.pipeline import STAGES
    from tasks.run_stage import run_stage
    from tasks.stage import Stage, StageCall, StageContext

    def work(stage: Stage, call: StageCall) -> None:
        (call.out / "result.txt").write_text(stage.name)
        rng = random.Random(stage.name)
        names = ("loss", "grad_norm", "learning_rate", "steps_per_s") if stage.name in TRAINING else ()
        for step in range(NUM_LOGGED_STEPS if names else 0):
            call.log.metrics({name: rng.random() for name in names}, step)
        call.log.summary({"parameters": 1e6, "peak_memory_mb": 900.0, "engine": "ddp"})

    values = load_config(Path(config), [])
    tracker = Tracker(values.home, values.experiment)
    parent = tracker.start_parent(values.name, "pipeline", {"mlflow.source.git.commit": "0" * 40})
    parent.text(to_yaml(values), "config.yaml")
    context = StageContext(values, tracker, parent.run_id, StageConsole())
    for stage in STAGES:
        run_stage(replace(stage, run=partial(work, stage), on_ready=None), context)
    parent.metrics({f"scores/v{v}/d{d}": 0.5 for v in range(NUM_VARIANTS) for d in range(NUM_DIMENSIONS)})
    parent.close("FINISHED")
    return {name: ref.key for name, ref in context.artifacts.items()}


@dataclass(frozen=True)
class Template:
    """The rows of one pipeline run, and what in them is unique to it."""

    columns: Mapping[str, list[str]]
    rows: Mapping[str, list[tuple[object, ...]]]
    ids: frozenset[str]


def read_template(database: Path, keys: Iterable[str]) -> Template:
    """Everything that the store holds."""
    with closing(sqlite3.connect(database)) as connection:
        columns = {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in TABLES}
        rows = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}
    ids = set(keys)
    for table, name in (("runs", "run_uuid"), ("inputs", "input_uuid"), ("logged_models", "model_id")):
        ids |= {str(row[columns[table].index(name)]) for row in rows[table]}
    return Template(columns, rows, frozenset(ids))


def multiply(database: Path, template: Template, num_runs: int) -> None:
    """Adds copies of the template until there are `num_runs`; every copy has ids and keys of its own."""
    pattern = re.compile("|".join(template.ids))
    with closing(sqlite3.connect(database)) as connection:
        for number in range(1, num_runs):
            names = {old: f"{old[:-6]}{number:06x}" for old in template.ids}
            shift_ms = HOUR_MS * (number if number % 2 else -number)
            for table, rows in template.rows.items():
                columns = template.columns[table]
                copies = (_renamed(row, columns, pattern, names, shift_ms) for row in rows)
                connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", copies)
        connection.commit()


def _renamed(
    row: tuple[object, ...], columns: Sequence[str], pattern: re.Pattern[str], names: Mapping[str, str], shift_ms: int
) -> tuple[object, ...]:
    """A copy of a row; artifacts stay where the original has them, so that they can be read."""
    return tuple(
        pattern.sub(lambda match: names[match[0]], value)
        if isinstance(value, str) and column != "artifact_uri"
        else value + shift_ms
        if isinstance(value, int) and column in ("start_time", "end_time")
        else value
        for column, value in zip(columns, row, strict=True)
    )


def measure(config: str, workspace: Path, keys: Mapping[str, str], num_runs: int) -> Iterator[Figure]:
    """Every figure, with the store as it is."""
    from magic141.config import load_config
    from magic141.tracking import Tracker, find_reusable

    tracker = Tracker(workspace, load_config(Path(config), []).experiment)
    absent = {stage: hashlib.sha256(key.encode()).hexdigest() for stage, key in keys.items()}

    def figure(case: str, unit: str, target: float | None, seconds: Sequence[float]) -> Figure:
        scale = 1000.0 if unit == "ms" else 1.0
        made = Figure(case, unit, target, num_runs, scale * statistics.median(seconds), scale * max(seconds))
        print(f"{made.median:8.1f} {unit:<2} {case}, {num_runs} runs", flush=True)
        return made

    find_reusable(tracker, *next(iter(absent.items())))  # opens the database
    present = [_timed(partial(find_reusable, tracker, *wanted)) for wanted in keys.items()]
    missing = [_timed(partial(find_reusable, tracker, *wanted)) for wanted in absent.items()]
    yield figure("`find_reusable`, key is there", "ms", 200, present)
    yield figure("`find_reusable`, key is not there", "ms", 200, missing)
    last = [_timed(partial(tracker.records, name, limit=1)) for name in keys]
    yield figure("`Tracker.records`, newest of a stage", "ms", None, last)
    opened = [_timed(lambda: tracker.start_parent("scale", "pipeline", {}).close("FINISHED")) for _ in range(REPEATS)]
    yield figure("opening and closing a pipeline run", "ms", None, opened)
    plan = ["plan", config]
    for case, arguments in (("all reused", plan), (f"`{CHANGED}`", [*plan, "--set", CHANGED])):
        timed = [_timed(partial(_command, arguments)) for _ in range(REPEATS)]
        yield figure(f"`magic141 plan {config}`, {case}", "s", 5, timed)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _command(arguments: Sequence[str]) -> None:
    done = subprocess.run([MAGIC141, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or ("--set" not in arguments and done.stdout.count("reused") != 12):
        sys.stdout.write(done.stdout[-4000:])
        raise SystemExit(f"magic141 {' '.join(arguments)}: expected a plan with 12 reused stages")


def table(figures: Sequence[Figure]) -> str:
    """Markdown: a row per case, small and large store beside each other."""
    sizes = sorted({figure.num_runs for figure in figures})
    lines = ["| case | target | " + " | ".join(f"{size:,} runs in the store" for size in sizes) + " |"]
    lines.append("|---|--:|" + "--:|" * len(sizes))
    for case in dict.fromkeys(figure.case for figure in figures):
        found = {figure.num_runs: figure for figure in figures if figure.case == case}
        first = next(iter(found.values()))
        target = "-" if first.target is None else f"< {first.target:g} {first.unit}"
        cells = [f"{found[size].median:.1f} {first.unit} (≤ {found[size].slowest:.1f})" for size in sizes]
        lines.append(f"| {case} | {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(config: str, num_runs: int, workspace: Path) -> list[Figure]:
    """Fills the store and measures it with one run and with all."""
    os.environ["MAGIC141_HOME"] = str(workspace)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    keys = write_one_run(config, workspace)
    template = read_template(workspace / "mlflow.db", keys.values())
    figures = list(measure(config, workspace, keys, 1))
    start = time.perf_counter()
    multiply(workspace / "mlflow.db", template, num_runs)
    size_mb = (workspace / "mlflow.db").stat().st_size / 1e6
    print(f"{num_runs} runs in {size_mb:.0f} MB, written in {time.perf_counter() - start:.0f} s", flush=True)
    return [*figures, *measure(config, workspace, keys, num_runs)]


def main() -> None:
    """Measures, prints and stores; exits with 1 when a target is missed."""
    settle()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--runs", type=int, default=1000, metavar="N")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help="a new folder, kept; without it a temporary one")
    arguments = parser.parse_args()
    if arguments.workspace and arguments.workspace.exists():
        parser.error(f"--workspace {arguments.workspace}: exists already; the store is written anew")
    with tempfile.TemporaryDirectory(prefix="magic141-scale-") as temporary:
        workspace = arguments.workspace or Path(temporary)
        figures = run(arguments.config, arguments.runs, workspace.resolve())
    text = f"{machine()}, SQLite; median, slowest in brackets:\n\n{table(figures)}"
    print("\n" + text)
    store_results("store_scale", text, config=arguments.config, figures=[asdict(figure) for figure in figures])
    raise SystemExit(any(figure.target and figure.slowest > figure.target for figure in figures))


if __name__ == "__main__":
    main()
