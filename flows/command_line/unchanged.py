"""Runs whose stages are all reused, recorded and checked without Prefect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flows.command_line.startup import uncollected
from flows.planning.plan import make_plan
from flows.records.session import Outcome, open_session
from magic141.config import PipelineConfig
from tasks.stage import Stage


def run_unchanged(
    config: PipelineConfig,
    stages: Sequence[Stage],
    release: Callable[[], object],
    overrides: Sequence[str] = (),
) -> Outcome | None:
    """Records a run whose stages are all reused, as the flow would; a result found altered is computed again.

    Args:
        config: the config to run.
        stages: the stages in order.
        release: called once it is clear that Prefect is not needed, as other commands wait while its server starts.
        overrides: what `config` was given beside its file, for the run's name.

    Returns:
        The outcome; None, with nothing done, if a stage has to run.
    """
    with uncollected():
        if any(row.action != "reused" for row in make_plan(config, stages)):
            return None
    release()
    with open_session(config, "pipeline", {}, (), overrides) as session:
        return session.run_stages(stages)
