"""`magic141 plan`: which stages a run would reuse or compute and why, with estimates of time and resources."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from flows.planning.estimates import Estimate, estimate
from flows.planning.needs import HERE, needs_of
from flows.records.origin import continue_run, find_origin
from magic141.artifacts.references import ArtifactRef, StageKey
from magic141.config import PipelineConfig
from magic141.errors import first_few
from magic141.tracking import Tracker, begun_refresh, find_reusable, store_exists
from tasks.pipeline import missing_by_stage, stages_between
from tasks.stage import Stage

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_CHANGES = 3
COMPARED_RUNS = 5
Action = Literal["reused", "run", "blocked"]
_SHOWN: dict[Action, str] = {"reused": "[cyan]↺ reused[/]", "run": "[bold]● run[/]", "blocked": "[red]✗ blocked[/]"}


@dataclass(frozen=True)
class PlannedStage:
    """A row of the plan.

    Attributes:
        stage: its name.
        action: what would happen.
        why: the reason in words.
        run_id: the run that a reused stage comes from.
        changes: fields, modules and inputs that differ from the nearest finished run, `old -> new`.
        estimate: its needs; None for a reused stage.
        lacking: what this machine has too little of for it, for which `run` would refuse; None if nothing.
    """

    stage: str
    action: Action
    why: str
    run_id: str | None = None
    changes: tuple[str, ...] = ()
    estimate: Estimate | None = None
    lacking: str | None = None


def plan_of(
    workspace: Path,
    config: PipelineConfig | None,
    origin: str | None,
    first: str | None,
    until: str | None,
    refresh: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Iterator[PlannedStage]:
    """The plan of a config, or of an earlier run that is continued from the stage `first` on."""
    stages = stages_between(first, until)
    if config is not None:
        return make_plan(config, stages, refresh)
    going_on = continue_run(find_origin(workspace, str(origin)), stages, overrides)
    return make_plan(going_on.config, stages, refresh, going_on.kept)


def make_plan(
    config: PipelineConfig, stages: Sequence[Stage], refresh: Sequence[str] = (), kept: Sequence[ArtifactRef] = ()
) -> Iterator[PlannedStage]:
    """Plans every stage. Only checks that artifacts exist; a run also compares their digests.

    Args:
        config: the config that would run.
        stages: the stages in order.
        refresh: stages to compute again.
        kept: artifacts of earlier stages, reused from an earlier run.
    """
    tracker = Tracker(config.home, config.experiment) if store_exists(config.home) else None
    blocked = missing_by_stage(config)
    artifacts = {ref.stage: ref for ref in kept}
    for stage in stages:
        row = _planned(stage, config, tracker, artifacts, refresh, blocked)
        if row.action != "reused":
            lacking = needs_of(stage.name, config).lacking_here()
            row = replace(row, estimate=estimate(stage.name, config, tracker), lacking=lacking)
        yield row


def _planned(
    stage: Stage,
    config: PipelineConfig,
    tracker: Tracker | None,
    artifacts: dict[str, ArtifactRef],
    refresh: Sequence[str],
    blocked: Mapping[str, str],
) -> PlannedStage:
    """One row; adds a reused artifact to `artifacts`, for the stages that read it."""
    changed = [name for name in stage.inputs if name not in artifacts]
    if changed and stage.name in blocked:
        return PlannedStage(stage.name, "blocked", blocked[stage.name])
    if changed:
        return PlannedStage(stage.name, "run", f"after {changed[-1]}")
    key = stage.key(config, artifacts)
    is_to_refresh = stage.name in refresh and not _is_refreshed(stage, key.digest, tracker)
    if is_to_refresh and stage.name not in blocked:
        return PlannedStage(stage.name, "run", "--refresh")
    found = find_reusable(tracker, stage.name, key.digest, verify=False) if tracker and not is_to_refresh else None
    if found and found.ref:
        artifacts[stage.name] = found.ref
        return PlannedStage(stage.name, "reused", f"run {found.ref.run_id}", found.ref.run_id)
    if stage.name in blocked:
        return PlannedStage(stage.name, "blocked", blocked[stage.name])
    if found and found.note:
        return PlannedStage(stage.name, "run", found.note)
    return _changed(stage, key, tracker)


def _is_refreshed(stage: Stage, key: str, tracker: Tracker | None) -> bool:
    """Whether an unfinished refresh has already computed this stage."""
    begun = begun_refresh(tracker, stage.name, key) if tracker else None
    return begun is not None and begun.info.status == "FINISHED"


def _changed(stage: Stage, key: StageKey, tracker: Tracker | None) -> PlannedStage:
    """Why a stage runs: its differences from the nearest of its finished runs."""
    records = tracker.records(stage.name, COMPARED_RUNS) if tracker else []
    if not records:
        return PlannedStage(stage.name, "run", "never made here")
    options = [changes for record in records if (changes := _differences(stage, key, record)) is not None]
    if not options:
        return PlannedStage(stage.name, "run", "no readable record of an earlier run")
    changes = min(options, key=len)
    if not changes:
        return PlannedStage(stage.name, "run", "its artifact is gone")
    shown = first_few(changes, SHOWN_CHANGES, between="; ")
    return PlannedStage(stage.name, "run", f"changed: {shown}", changes=tuple(changes))


def _differences(stage: Stage, key: StageKey, record: Mapping[str, Any]) -> list[str] | None:
    """Changed fields and inputs as `name: old -> new`, and changed modules; None for an unreadable record."""
    try:
        changes = key.difference(StageKey.model_validate(record["parts"]))
    except (KeyError, ValidationError):
        return None
    fields = [change.removeprefix("config.") for change in changes if not change.startswith("code:")]
    if len(fields) == len(changes):
        return fields
    old, new = dict(record.get("modules", {})), stage.code()
    modules = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [*fields, *(f"code of {name}" for name in modules)] if old else [*fields, "code of its modules"]


def as_json(rows: Sequence[PlannedStage]) -> str:
    """The plan for scripts: a list with an object per stage."""
    return json.dumps([asdict(row) for row in rows], indent=1)


def total(rows: Sequence[PlannedStage]) -> str:
    """The time of all stages that are not reused, and the GPU time in it; empty if fewer than two have a time."""
    timed = [row.estimate for row in rows if row.estimate and row.estimate.seconds is not None]
    if len(timed) < 2:
        return ""
    seconds = sum(estimate.seconds or 0 for estimate in timed)
    gpu_hours = sum((estimate.seconds or 0) * estimate.num_gpus for estimate in timed) / 3600
    about = "" if all(estimate.timed for estimate in timed) else "~ "
    untimed = [row.stage for row in rows if row.estimate and row.estimate.seconds is None]
    gpus = f", {about}{gpu_hours:,.{0 if gpu_hours >= 10 else 1}f} GPU hours" if gpu_hours else ""
    return f"in all  {about}{_duration(seconds)}{gpus}{f', without {first_few(untimed, 3)}' if untimed else ''}"


def as_table(rows: Sequence[PlannedStage]) -> Table:
    """The plan for the console."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("why", overflow="fold")
    table.add_column("time", no_wrap=True)
    table.add_column("asks for")
    for row in rows:
        wants = (_time(row.estimate), _wishes(row.estimate)) if row.estimate else ()
        table.add_row(row.stage, _SHOWN[row.action], escape(row.why), *wants)
    return table


def _time(wants: Estimate) -> str:
    """The time; '~' marks a calculated one."""
    if wants.seconds is None:
        return ""
    return f"{'' if wants.timed else '~ '}{_duration(wants.seconds)}"


def _wishes(wants: Estimate) -> str:
    """Workers and memory; '~' marks calculated memory."""
    resources = "" if wants.resources == HERE else wants.resources
    if wants.memory_gib is None:
        return resources
    return f"{resources}, {'' if wants.measured else '~ '}{_size(wants.memory_gib)} each"


def _size(gib: float) -> str:
    if gib < 0.1:
        return f"{gib * 1024:.0f} MiB"
    return f"{gib:.2g} GiB" if gib < 10 else f"{gib:.0f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
