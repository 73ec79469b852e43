"""`magic141 compare`: compares finished runs on the console and on one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.failures.writable import require_output
from flows.records.commands import command
from flows.records.judgements import (
    CODE,
    DEVICE,
    TRAINED_IN,
    command_like,
    judging,
    measurement_of,
    param_value,
)
from flows.records.naming import RUN_ID_CHARS
from magic141.artifacts.publication import DIGEST_CHARS
from magic141.artifacts.references import ArtifactRef, flatten
from magic141.config import PipelineConfig
from magic141.errors import UserError
from magic141.evaluation.reports.comparison import write_comparison
from magic141.evaluation.reports.comparison_tables import (
    Row,
    RunParts,
    config_differences,
    made_differences,
    not_alike,
    score_rows,
    unjudged,
)
from magic141.frozen import determines_result
from magic141.tracking import Run, Tracker, open_store
from magic141.tracking.tags import TAG_FIRST
from tasks.pipeline import STAGES

if TYPE_CHECKING:
    from rich.table import Table

NUM_VIDEOS = 6
MADE_FROM = {"prepare_data": "data", "distill_dmd2": "student", "generate": "generated"}
MAX_COMMANDS = 3
USUAL_STEPS = 4  # of a student, in runs whose config is not known
AFTER_SCORES = ("report.", "publish.")


@dataclass(frozen=True)
class Comparison:
    """What is said of runs: remarks about how they were judged, and the tables below."""

    remarks: list[str]
    tables: list[Table]


def compare(workspace: Path, run_ids: Sequence[str], variant: str | None, page: Path | None) -> Comparison:
    """Tables of differences in scores, making and config; writes the page if a file is given.

    Args:
        workspace: folder of the runs.
        run_ids: two or more pipeline, evaluation or stage runs; the others are compared with the first. A sweep stands
            for its members.
        variant: row of the score table, such as student_4; None: the first run's student.
        page: HTML file to write.

    Raises:
        UserError: for fewer than two runs, an unknown run, a variant that no run has, or a page that cannot be written.
    """
    if page is not None:
        require_output(page)
    tracker = open_store(workspace)
    runs = [read_run(tracker, run) for run_id in run_ids for run in tracker.members(run_id)]
    if len(runs) < 2:
        raise UserError("compare: expected two or more runs, or a sweep; `magic141 runs` lists them")
    variant = variant or _student(runs[0])
    scores = score_rows(runs, variant)
    if not scores:
        names = list(dict.fromkeys(name for run in runs for name in run.variants))
        raise UserError(f"--variant {variant}: no run has scores of it; they have {', '.join(names) or 'none'}")
    remarks = list(remarks_on(runs, tracker.workspace))
    if page is not None:
        write_comparison(runs, variant, NUM_VIDEOS, page, remarks=remarks)
    labels = [run.label for run in runs]
    deciding, idle = config_differences(runs)
    plain = (("config", deciding), ("where and how it runs", idle), ("made with", made_differences(runs)))
    tables = [_score_table(variant, labels, scores), *(_table(title, labels, rows) for title, rows in plain)]
    return Comparison(remarks, tables)


def _student(run: RunParts) -> str:
    """The row of a run's student, at the steps that it was distilled for."""
    steps = dict(flatten(run.config)).get("distill_dmd2.num_inference_steps", USUAL_STEPS)
    return f"student_{steps}"


def remarks_on(runs: Sequence[RunParts], workspace: Path) -> Iterator[str]:
    """Why there are no differences of the scores, or they are not the models', and what to do about it."""
    for run in runs:
        if not run.variants:
            yield _without_scores(run, workspace)
    if unknown := unjudged(runs):
        yield f"Not on record how these were judged, so no difference is coloured: {', '.join(unknown)}."
        return
    if fields := not_alike([run for run in runs if run.variants]) if runs[0].variants else []:
        differ = f"{', '.join(fields)} {'differs' if len(fields) == 1 else 'differ'}"
        yield f"Not judged alike: {differ}. Differences below are not the model's; {_way_out(runs, fields, workspace)}"


def _without_scores(run: RunParts, workspace: Path) -> str:
    """How far the run came, and the command that judges it, in a new run: trains only what is not trained yet."""
    names = [stage.name for stage in STAGES]
    done = [name for name in names if name in run.stages]
    trained = names.index("generate") <= len(done)
    first = ["--from", run.first_stage] if run.first_stage else []
    words = ["eval", "--run", run.run_id] if trained else ["run", "--run", run.run_id, *first, "--until", "report"]
    way = command(*words, workspace=workspace)
    far = f"it came as far as {done[-1]}" if done else "it has finished no stage"
    return f"{run.label} has no scores: {far}; `{way}` judges it, in a run with an id of its own."


def _way_out(runs: Sequence[RunParts], fields: Sequence[str], workspace: Path) -> str:
    if trained := sorted({*fields}.intersection(TRAINED_IN)):
        return f"the runs were trained with other {' and '.join(trained)}, which no evaluation changes."
    first, elsewhere = runs[0].measurement, any(field.startswith(DEVICE) for field in fields)
    by_code = any(field.startswith(CODE) for field in fields)
    again = [run for run in runs if by_code or (run is not runs[0] and not_alike([runs[0], run]))]
    commands = [
        command_like(judging(run.measurement.run_id, elsewhere), dict(flatten(run.config)), first, workspace)
        for run in again
        if run.measurement and first
    ]
    more = f" (and {len(commands) - MAX_COMMANDS} more)" if len(commands) > MAX_COMMANDS else ""
    where = f" on a machine like that of {runs[0].label}" if elsewhere else ""
    return f"judge again{where}: {'; '.join(commands[:MAX_COMMANDS])}{more}"


def read_run(tracker: Tracker, run: Run, label: str | None = None) -> RunParts:
    """The parts of a pipeline run that are compared; its default label is its name and id."""
    refs, config = tracker.artifacts_of(run), _config(tracker, run)
    return RunParts(
        label=label or f"{run.info.run_name} {run.info.run_id[:RUN_ID_CHARS]}",
        config=config,
        artifacts={stage: ref.path for stage, ref in refs.items() if ref.is_open},
        metrics=run.data.metrics,
        made=_made(run, refs),
        measurement=measurement_of(tracker, run),
        run_id=run.info.run_id,
        stages=list(refs),
        first_stage=run.data.tags.get(TAG_FIRST, ""),
        idle=[name for name, _ in flatten(config) if _is_idle(name)],
    )


def _is_idle(field: str) -> bool:
    """Whether a field of the config decides no score."""
    return field.startswith(AFTER_SCORES) or not determines_result(PipelineConfig, field)


def _made(run: Run, refs: Mapping[str, ArtifactRef]) -> dict[str, str]:
    """Where a run comes from: commit, time, and the digests of what its figures are made of."""
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    digests = {name: refs[stage].digest[:DIGEST_CHARS] for stage, name in MADE_FROM.items() if stage in refs}
    commit, dirty, _ = run.data.tags.get("mlflow.source.git.commit", "not on record").partition("-dirty")
    return {**digests, "commit": commit[:DIGEST_CHARS] + dirty, "started": f"{started:%Y-%m-%d %H:%M} UTC"}


def _config(tracker: Tracker, run: Run) -> Mapping[str, Any]:
    """The run's config: its file, or its params if the file is on another machine."""
    try:
        return tracker.stored_config(run)
    except UserError:
        if not run.data.params:
            raise
        return {name: param_value(text) for name, text in run.data.params.items()}


def _table(title: str, labels: Sequence[str], rows: Sequence[Row]) -> Table:
    """A value per run."""
    from rich.markup import escape

    table = _empty_table(title, *labels)
    for row in rows:
        table.add_row(escape(row.label), *map(escape, row.values))
    return table


def _score_table(title: str, labels: Sequence[str], rows: Sequence[Row]) -> Table:
    """A score with its standard error per run, and in a column of its own the difference to the first run's."""
    from rich.markup import escape

    first, *others = labels
    table = _empty_table(title, first, *(heading for label in others for heading in (label, "difference")))
    for row in rows:
        values = [f"{value} {error}".rstrip() for value, error in zip(row.values, row.errors, strict=True)]
        apart = map(_coloured, row.differences[1:], row.better[1:])
        pairs = zip(values[1:], apart, strict=True)
        table.add_row(escape(row.label), values[0], *(cell for pair in pairs for cell in pair))
    return table


def _empty_table(*headings: str) -> Table:
    """A table whose texts are broken where they have no room, never cut: many fields begin alike."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(escape(heading), overflow="fold")
    return table


def _coloured(difference: str, better: bool | None) -> str:
    if not difference or better is None:
        return difference
    return f"[green]{difference}[/]" if better else f"[red]{difference}[/]"
