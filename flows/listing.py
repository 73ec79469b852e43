"""`magic141 runs`: the newest pipelines, evaluations and sweeps of a store, with their first scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flows.records.naming import RUN_ID_CHARS
from magic141.tracking import TAG_PARENT, Run, open_store
from magic141.tracking.tags import TAG_KIND

if TYPE_CHECKING:
    from rich.table import Table

SCORES = {"motion": "student/motion", "Fréchet": "student/frechet"}


@dataclass(frozen=True)
class ListedRun:
    """A row of the list.

    Attributes:
        run_id: the run's id.
        name: its config's name and what was set.
        kind: pipeline, evaluation, sweep, or member of a sweep.
        status: as MLflow has it.
        started: UTC, to the minute.
        scores: the student's, as far as there are any.
    """

    run_id: str
    name: str
    kind: str
    status: str
    started: str
    scores: dict[str, float]


def newest(workspace: Path, limit: int) -> list[ListedRun]:
    """The newest runs of all experiments, newest first, without the runs of single stages.

    Raises:
        UserError: if there is no store.
    """
    whole = f"tags.`{TAG_KIND}` != '' and tags.`{TAG_KIND}` != 'stage'"
    return [_listed(run) for run in open_store(workspace).search(whole, limit, everywhere=True)]


def _listed(run: Run) -> ListedRun:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return ListedRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        kind="member" if TAG_PARENT in run.data.tags else run.data.tags[TAG_KIND],
        status=run.info.status.lower(),
        started=f"{started:%Y-%m-%d %H:%M}",
        scores={name: run.data.metrics[key] for name, key in SCORES.items() if key in run.data.metrics},
    )


def as_json(rows: Sequence[ListedRun]) -> str:
    """The list for scripts."""
    return json.dumps([asdict(row) for row in rows], indent=1)


def as_table(rows: Sequence[ListedRun]) -> Table:
    """The list for the console."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True, min_width=RUN_ID_CHARS)
    for title in ("kind", "status", "started (UTC)"):
        table.add_column(title, no_wrap=True)
    for title in SCORES:
        table.add_column(title, no_wrap=True, justify="right")
    table.add_column("name", overflow="fold")
    for row in rows:
        scores = (f"{row.scores[name]:.3f}" if name in row.scores else "" for name in SCORES)
        table.add_row(row.run_id[:RUN_ID_CHARS], row.kind, row.status, row.started, *scores, escape(row.name))
    return table
