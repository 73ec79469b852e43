"""`magic141 compare`: compares finished runs on the console and on one HTML page."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.writable import require_output
from magic141.evaluation.comparison import Row, RunParts, config_differences, score_rows, write_comparison
from magic141.frozen import UserError
from magic141.tracking import Run, Tracker, open_store

if TYPE_CHECKING:
    from rich.table import Table

NUM_VIDEOS = 6
DIGITS_OF_ID = 8


def compare(workspace: Path, run_ids: Sequence[str], variant: str, page: Path | None) -> list[Table]:
    """Tables of differences in config and scores; writes the page if a file is given.

    Args:
        workspace: folder of the runs.
        run_ids: two or more pipeline, evaluation or stage runs; the others are compared with the first.
        variant: row of the score table, such as student_4.
        page: HTML file to write.

    Raises:
        UserError: for fewer than two runs, an unknown run, a variant that no run has, or a page that cannot be written.
    """
    if len(run_ids) < 2:
        raise UserError("compare: expected two or more run ids; `magic141 run` prints the id of a run at its end")
    if page is not None:
        require_output(page)
    tracker = open_store(workspace)
    runs = [read_run(tracker, run_id) for run_id in run_ids]
    scores = score_rows(runs, variant)
    if not scores:
        raise UserError(f"--variant {variant}: no run has scores of it; the report lists the variants of a run")
    if page is not None:
        write_comparison(runs, variant, NUM_VIDEOS, page)
    labels = [run.label for run in runs]
    return [_table(variant, labels, scores), _table("config", labels, config_differences(runs))]


def read_run(tracker: Tracker, run_id: str, label: str | None = None) -> RunParts:
    """The parts of a run that are compared; its default label is its name and id."""
    run = tracker.pipeline_run(run_id)
    artifacts = {stage: ref.path for stage, ref in tracker.artifacts_of(run).items() if ref.path.is_dir()}
    name = label or f"{run.info.run_name} {run.info.run_id[:DIGITS_OF_ID]}"
    return RunParts(name, _config(tracker, run), artifacts, run.data.metrics)


def _config(tracker: Tracker, run: Run) -> Mapping[str, Any]:
    """The run's config: its file, or its params if the file is on another machine."""
    try:
        return dict(yaml.safe_load(tracker.read_file(run.info.run_id, "config.yaml")))
    except UserError:
        if not run.data.params:
            raise
        return {name: _value(text) for name, text in run.data.params.items()}


def _value(param: str) -> Any:
    """The value of a param, which MLflow stores as the text that Python prints for it."""
    try:
        return ast.literal_eval(param)
    except (ValueError, SyntaxError):
        return param


def _table(title: str, labels: Sequence[str], rows: Sequence[Row]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title, *labels, box=None, pad_edge=False)
    for row in rows:
        cells = (
            f"{escape(str(value))} {_coloured(difference, better)}".strip()
            for value, difference, better in zip(row.values, row.differences, row.better, strict=True)
        )
        table.add_row(escape(row.label), *cells)
    return table


def _coloured(difference: str, better: bool | None) -> str:
    if not difference or better is None:
        return difference
    return f"[green]{difference}[/]" if better else f"[red]{difference}[/]"
