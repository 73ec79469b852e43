"""A run that has nothing to do: recorded and checked without an orchestrator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flows.plan import make_plan
from flows.session import Outcome, open_session
from flows.startup import uncollected
from magic141.config import PipelineConfig
from tasks.stage import Stage


def run_unchanged(
    config: PipelineConfig,
    stages: Sequence[Stage],
    release: Callable[[], object],
    overrides: Sequence[str] = (),
) -> Outcome | None:
    """Records a run whose every stage is reused, as the flow would; a result found altered is made again.

    Args:
        config: what would run.
        stages: in order.
        release: called when no orchestrator will be needed: other commands wait for one that starts.
        overrides: what `config` was given beside its file, for the run's name.

    Returns:
        What came out; None, with nothing done, if a stage has to run.
    """
    with uncollected():
        if any(row.action != "reused" for row in make_plan(config, stages)):
            return None
    release()
    with open_session(config, "pipeline", {}, (), overrides) as session:
        return session.run_stages(stages)
