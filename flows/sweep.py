"""`magic141 sweep`: one pipeline run per member under one parent run; stages that members share are computed once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_table_artifact

from flows.comparison import NUM_VIDEOS, read_run, remarks_on
from flows.failures.resume import marking_resumable
from flows.members import MemberOutcome, MemberRun, output_folder, run_members
from flows.orchestration.cancellation import refuse_cancelled
from flows.orchestration.flows import our_flow
from flows.orchestration.orchestrated import flow_tags, run_link
from flows.planning.grid import CheckedMember, Member, check_members, members_of, row_to_compare
from flows.records.naming import MAX_NAME_CHARS, SEPARATOR, overrides_tag
from flows.sweep_charts import charts
from magic141.errors import UserError, shortened
from magic141.evaluation.reports.comparison import write_comparison
from magic141.evaluation.scores import DIMENSIONS, Dimension
from magic141.frozen import FrozenConfig
from magic141.tracking import RunLog, Tracker, closing
from magic141.tracking.tags import SWEEP
from magic141.urls import without_credentials
from tasks.provenance import source_tags

SCORES = {dimension.key: dimension for dimension in DIMENSIONS}
CHARTED = [SCORES[key] for key in ("motion", "direction", "background_psnr_db", "frechet")]
SHOWN = [*CHARTED, *(SCORES[key] for key in ("temporal_flickering", "nfe", "latency_ms", "cpu_ms_per_clip"))]


class SweepOutcome(FrozenConfig):
    """The result of a sweep.

    Attributes:
        run_id: MLflow run that is the parent of the members' runs.
        tracking_uri: the store that holds them.
        members: the members' outcomes, in order.
        seconds: total time.
        page: the HTML page, if a member has scores.
    """

    run_id: str
    tracking_uri: str
    members: tuple[MemberOutcome, ...]
    seconds: float
    page: str | None = None

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


@our_flow("magic141-sweep")
def sweep(
    config: str,
    vary: list[str] | None = None,
    members: list[str] | None = None,
    overrides: list[str] | None = None,
    until: str = "report",
    variant: str | None = None,
    parallel: int = 1,
) -> SweepOutcome:
    """Runs a config once per member; a member that fails does not stop the others.

    Args:
        config: path of the YAML file.
        vary: each `FIELD=VALUE,VALUE,…`; every combination of values is a member.
        members: each `FIELD=VALUE FIELD=VALUE …`, which is one member.
        overrides: `a.b=c` overrides for all members.
        until: last stage to run; with `publish` every member becomes the candidate as it finishes.
        variant: row of the score table that is compared; None: the student's, at the steps of the first member's.
        parallel: members run at once, each in its own process; their workers must fit onto the cluster or machine.

    Raises:
        SweepFailed: if members failed, after all have run and the comparison was published.
    """
    started = time.monotonic()
    if parallel < 1:
        raise UserError(f"parallel = {parallel}: expected at least 1 member at once; use --parallel 1")
    chosen = check_members(Path(config), members_of(vary or (), members or ()), overrides or ())
    compared, first = row_to_compare(variant, until, chosen), chosen[0].config
    tracker = Tracker(first.home, first.experiment)
    name = shortened(f"{first.name}{SEPARATOR}sweep of {len(chosen)}", MAX_NAME_CHARS)
    tags = overrides_tag(overrides or ()) | flow_tags()
    run = tracker.start_parent(name, SWEEP, source_tags() | tags | {"members": str(len(chosen))})
    with marking_resumable(), closing(run):
        each = MemberRun(config, tuple(overrides or ()), until, compared, run.run_id)
        outcomes = run_members(each, chosen, parallel)
        refuse_cancelled()  # members in processes of their own have only failed
        page = _publish(run, tracker, chosen, outcomes, compared)
        outcome = SweepOutcome(
            run_id=run.run_id,
            tracking_uri=without_credentials(tracker.uri),
            members=tuple(outcomes),
            seconds=round(time.monotonic() - started, 1),
            page=str(page) if page else None,
        )
        if outcome.failed:
            raise SweepFailed(outcome)
    return outcome


def _publish(
    run: RunLog,
    tracker: Tracker,
    members: Sequence[CheckedMember],
    outcomes: Sequence[MemberOutcome],
    variant: str,
) -> Path | None:
    """Publishes the comparison: a table for MLflow and Prefect, and a page with charts and videos, if there are any."""
    rows = [table_row(member, outcome) for member, outcome in zip(members, outcomes, strict=True)]
    run.table({name: [row.get(name) for row in rows] for name in columns(rows)}, "sweep.json")
    create_table_artifact(key="sweep", table=rows, description=run_link(tracker.uri, run.run_id))
    finished = [outcome for outcome in outcomes if outcome.run_id]
    if not any(outcome.scores for outcome in finished):
        return None
    runs = [read_run(tracker, tracker.pipeline_run(str(outcome.run_id)), outcome.label) for outcome in finished]
    page = output_folder(tracker.workspace, run.run_id) / "sweep.html"
    drawn, remarks = list(charts(members, outcomes, CHARTED)), list(remarks_on(runs, tracker.workspace))
    write_comparison(runs, variant, NUM_VIDEOS, page, drawn, remarks)
    run.file(page)
    return page


def table_row(member: Member, outcome: MemberOutcome) -> dict[str, Any]:
    """A table row with a member's settings, scores and run."""
    return {
        **dict(member.settings),
        **outcome.scores,
        **{f"{name}_stderr": error for name, error in outcome.errors.items()},
        "stages reused": len(outcome.reused),
        "run": outcome.run_id or f"failed: {outcome.error}",
    }


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All column names, in the order of first use."""
    return list(dict.fromkeys(name for row in rows for name in row))


def shown(outcomes: Sequence[MemberOutcome]) -> list[Dimension]:
    """The scores that a table on the console has room for."""
    known = {name for outcome in outcomes for name in outcome.scores}
    return [dimension for dimension in SHOWN if dimension.key in known]
