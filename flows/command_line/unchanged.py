"""Runs whose stages are all reused, recorded and checked without Prefect."""

from __future__ import annotations

from collections.abc import Sequence

from flows.planning.plan import make_plan
from flows.records.session import Outcome, open_session
from magic141.config import PipelineConfig
from magic141.tracking.tags import PIPELINE
from tasks.stage import Stage


def first_to_run(config: PipelineConfig, stages: Sequence[Stage]) -> Stage | None:
    """The first stage that has no finished result to reuse."""
    planned = zip(stages, make_plan(config, stages), strict=True)
    return next((stage for stage, row in planned if row.action != "reused"), None)


def run_unchanged(config: PipelineConfig, stages: Sequence[Stage], overrides: Sequence[str] = ()) -> Outcome:
    """Records a run whose stages are all reused, as the flow would; a result found altered is computed again.

    Args:
        config: the config to run.
        stages: the stages in order.
        overrides: what `config` was given beside its file, for the run's name.
    """
    with open_session(config, PIPELINE, {}, (), overrides) as session:
        return session.run_stages(stages)
