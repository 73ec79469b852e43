"""`magic141 sweep`: one pipeline run per member under one parent run; stages that members share are computed once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.comparison import NUM_VIDEOS, read_run, remarks_on
from flows.failures.resume import marking_resumable
from flows.members import MemberOutcome, MemberRun, run_members
from flows.orchestration.notify import notify
from flows.orchestration.orchestrated import flow_tags, run_link
from flows.planning.grid import Member, check_members, members_of, number_at
from flows.records.naming import SEPARATOR, overrides_tag
from flows.records.session import identity
from magic141.config import PipelineConfig
from magic141.errors import UserError
from magic141.evaluation.reports.charts import Series, line_chart
from magic141.evaluation.reports.comparison import write_comparison
from magic141.evaluation.scores import COSTS, EXACT, FRECHET, VBENCH, Dimension
from magic141.evaluation.variants import list_variants
from magic141.frozen import FrozenConfig
from magic141.tracking import RunLog, Tracker, closing
from magic141.tracking.tags import SWEEP
from magic141.urls import without_credentials
from tasks.pipeline import stages_until

SCORES = {dimension.key: dimension for dimension in (*EXACT, FRECHET, *VBENCH, *COSTS)}
CHARTED = [SCORES[key] for key in ("motion", "direction", "background_psnr_db", "frechet")]
SHOWN = [*CHARTED, *(SCORES[key] for key in ("temporal_flickering", "nfe", "latency_ms", "cpu_ms_per_clip"))]


class SweepOutcome(FrozenConfig):
    """The result of a sweep.

    Attributes:
        run_id: MLflow run that is the parent of the members' runs.
        tracking_uri: the store that holds them.
        members: the members' outcomes, in order.
        seconds: total time.
    """

    run_id: str
    tracking_uri: str
    members: tuple[MemberOutcome, ...]
    seconds: float

    @property
    def failed(self) -> tuple[MemberOutcome, ...]:
        """The members that failed."""
        return tuple(member for member in self.members if member.error)


class SweepFailed(RuntimeError):
    """Raised if members failed; the comparison of the others is published all the same."""

    def __init__(self, outcome: SweepOutcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.is_mistake = any(member.is_mistake for member in outcome.failed)

    def __str__(self) -> str:
        failed = self.outcome.failed
        reasons = "; ".join(f"{member.label}: {member.reason}" for member in failed)
        return without_credentials(f"{len(failed)} of {len(self.outcome.members)} members failed: {reasons}")

    def __repr__(self) -> str:  # what Prefect logs
        return f"{type(self).__name__}({str(self)!r})"


@flow(name="magic141-sweep", retries=0, validate_parameters=False, on_failure=[notify], on_crashed=[notify])
def sweep(
    config: str,
    vary: list[str] | None = None,
    members: list[str] | None = None,
    overrides: list[str] | None = None,
    until: str = "report",
    variant: str = "student_4",
    parallel: int = 1,
) -> SweepOutcome:
    """Runs a config once per member; a member that fails does not stop the others.

    Args:
        config: path of the YAML file.
        vary: each `FIELD=VALUE,VALUE,…`; every combination of values is a member.
        members: each `FIELD=VALUE FIELD=VALUE …`, which is one member.
        overrides: `a.b=c` overrides for all members.
        until: last stage to run; with `publish` every member becomes the candidate as it finishes.
        variant: row of the score table that is compared.
        parallel: members run at once, each in its own process; their workers must fit onto the cluster or machine.

    Raises:
        SweepFailed: if members failed, after all have run and the comparison was published.
    """
    started = time.monotonic()
    if parallel < 1:
        raise UserError(f"parallel = {parallel}: expected at least 1 member at once; use --parallel 1")
    chosen = members_of(vary or (), members or ())
    configs = check_members(Path(config), chosen, overrides or ())
    if "evaluate" in (stage.name for stage in stages_until(until)):
        check_variant(variant, chosen, configs)
    first = configs[0]
    tracker = Tracker(first.home, first.experiment)
    name, tags = f"{first.name}{SEPARATOR}sweep of {len(chosen)}", overrides_tag(overrides or ()) | flow_tags()
    run = tracker.start_parent(name, SWEEP, identity(first) | tags | {"members": str(len(chosen))})
    with marking_resumable(), closing(run):
        each = MemberRun(config, tuple(overrides or ()), until, variant, run.run_id)
        outcomes = run_members(each, chosen, configs, parallel)
        _publish(run, tracker, chosen, configs, outcomes, variant)
        outcome = SweepOutcome(
            run_id=run.run_id,
            tracking_uri=without_credentials(tracker.uri),
            members=tuple(outcomes),
            seconds=round(time.monotonic() - started, 1),
        )
        if outcome.failed:
            raise SweepFailed(outcome)
    return outcome


def check_variant(variant: str, members: Sequence[Member], configs: Sequence[PipelineConfig]) -> None:
    """Raises UserError unless every member will have scores of the variant that is compared."""
    for member, config in zip(members, configs, strict=True):
        names = [known.name for known in list_variants(config.generate, config.distill_dmd2)]
        if variant not in names:
            raise UserError(
                f"--variant {variant}: member {member.label} has no such variant; it has {', '.join(names)}; give one "
                "that all members have"
            )


def _publish(
    run: RunLog,
    tracker: Tracker,
    members: Sequence[Member],
    configs: Sequence[PipelineConfig],
    outcomes: Sequence[MemberOutcome],
    variant: str,
) -> None:
    """Publishes the comparison: a table for MLflow and Prefect, and a page with charts and videos."""
    rows = [table_row(member, outcome) for member, outcome in zip(members, outcomes, strict=True)]
    run.table({name: [row.get(name) for row in rows] for name in columns(rows)}, "sweep.json")
    create_table_artifact(key="sweep", table=rows, description=run_link(tracker.uri, run.run_id))
    finished = [outcome for outcome in outcomes if outcome.run_id]
    if not any(outcome.scores for outcome in finished):
        return
    runs = [read_run(tracker, str(outcome.run_id), outcome.label) for outcome in finished]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "sweep.html"
        drawn, remarks = list(charts(members, configs, outcomes)), list(remarks_on(runs, tracker.workspace))
        write_comparison(runs, variant, NUM_VIDEOS, page, drawn, remarks)
        run.file(page)


def table_row(member: Member, outcome: MemberOutcome) -> dict[str, Any]:
    """A table row with a member's settings, scores and run."""
    return {
        **dict(member.settings),
        **outcome.scores,
        "stages reused": len(outcome.reused),
        "run": outcome.run_id or f"failed: {outcome.error}",
    }


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All column names, in the order of first use."""
    return list(dict.fromkeys(name for row in rows for name in row))


def charts(
    members: Sequence[Member], configs: Sequence[PipelineConfig], outcomes: Sequence[MemberOutcome]
) -> Iterator[tuple[str, str]]:
    """Title and SVG per score, over the first field that varies if it is a number, else over the members' order."""
    fields = [field for field, _ in members[0].settings]
    places = [number_at(config, fields[0]) if fields else None for config in configs]
    label = fields[0] if None not in places else "member"
    for dimension in CHARTED:
        lines = _lines(dimension, members, [float(i + 1) if p is None else p for i, p in enumerate(places)], outcomes)
        if drawn := line_chart(lines, label, whole_x=label == "member"):
            yield dimension.label, drawn


def _lines(
    dimension: Dimension, members: Sequence[Member], places: Sequence[float], outcomes: Sequence[MemberOutcome]
) -> list[Series]:
    """One line per setting of the other fields."""
    found: dict[str, list[tuple[float, float]]] = {}
    for member, place, outcome in zip(members, places, outcomes, strict=True):
        if dimension.key in outcome.scores:
            found.setdefault(Member(member.settings[1:]).label, []).append((place, outcome.scores[dimension.key]))
    return [Series(label, sorted(points), dots=True) for label, points in found.items()]


def shown(outcomes: Sequence[MemberOutcome]) -> list[Dimension]:
    """The scores that a table on the console has room for."""
    known = {name for outcome in outcomes for name in outcome.scores}
    return [dimension for dimension in SHOWN if dimension.key in known]
