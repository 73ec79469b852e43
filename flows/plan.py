"""What a run would do, without doing it: which stages are reused, which run, and because of what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from magic141.artifacts import ArtifactRef, StageKey
from magic141.config import PipelineConfig, missing_sources
from magic141.tracking import Tracker, store_exists
from tasks.stage import Stage

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_CHANGES = 3
Action = Literal["reused", "run", "blocked"]
_SHOWN: dict[Action, str] = {"reused": "[cyan]↺ reused[/]", "run": "[bold]● run[/]", "blocked": "[red]✗ blocked[/]"}


@dataclass(frozen=True)
class PlannedStage:
    """A row of the plan."""

    stage: str
    action: Action
    why: str


def make_plan(config: PipelineConfig, stages: Sequence[Stage], refresh: Sequence[str] = ()) -> Iterator[PlannedStage]:
    """Looks every stage up. Artifacts are looked at, not read; a run also compares their digests."""
    tracker = Tracker(config.home, config.experiment) if store_exists(config.home) else None
    blocked = _blocked(config)
    artifacts: dict[str, ArtifactRef] = {}
    for stage in stages:
        changed = [name for name in stage.inputs if name not in artifacts]
        if changed:
            yield PlannedStage(stage.name, "run", f"after {changed[-1]}")
            continue
        key = stage.key(config, artifacts)
        if stage.name in refresh:
            yield PlannedStage(stage.name, "run", "--refresh")
            continue
        found = tracker.find_reusable(key.digest, verify=False) if tracker else None
        if found and found.ref:
            artifacts[stage.name] = found.ref
            yield PlannedStage(stage.name, "reused", f"run {found.ref.run_id}")
        elif stage.name in blocked:
            yield PlannedStage(stage.name, "blocked", blocked[stage.name])
        else:
            yield PlannedStage(stage.name, "run", (found and found.note) or _why(key, tracker))


def as_table(rows: Sequence[PlannedStage]) -> Table:
    """The plan for the console."""
    from rich.table import Table

    table = Table("stage", "", "why", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.stage, _SHOWN[row.action], row.why)
    return table


def _blocked(config: PipelineConfig) -> dict[str, str]:
    """Stages that read a file or folder which is not there, with the line that says so."""
    lines = ((line.partition(".")[0], line) for line in missing_sources(config))
    return {"prepare_data" if section == "data" else section: line for section, line in lines}


def _why(key: StageKey, tracker: Tracker | None) -> str:
    record = tracker.last_record(key.stage) if tracker else None
    if record is None:
        return "never made here"
    try:
        changes = key.difference(StageKey.model_validate(record["parts"]))
    except (KeyError, ValidationError):
        return "no readable record of the last run"
    if not changes:
        return "its artifact is gone"
    named = ["code of its modules" if c.startswith("code:") else c.removeprefix("config.") for c in changes]
    more = f" and {len(named) - SHOWN_CHANGES} more" if len(named) > SHOWN_CHANGES else ""
    return "changed: " + "; ".join(named[:SHOWN_CHANGES]) + more
