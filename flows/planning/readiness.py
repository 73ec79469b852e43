"""Refuses a run some stage of which would refuse its config, or has no room on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from flows.planning.needs import needs_of
from flows.planning.plan import make_plan
from magic141.artifacts.references import ArtifactRef
from magic141.config import PipelineConfig
from magic141.errors import UserError
from tasks.stage import Stage


def require_ready(
    config: PipelineConfig, stages: Sequence[Stage], refresh: Sequence[str] = (), kept: Sequence[ArtifactRef] = ()
) -> None:
    """Refuses now what a later stage would refuse at its turn, hours later.

    Args:
        config: the config that is to run.
        stages: the stages in order.
        refresh: stages to compute again.
        kept: artifacts of earlier stages, reused from an earlier run.

    Raises:
        UserError: for a setting that a stage cannot work with, or with a line per stage that asks for more CPUs or
            GPUs than this machine has, unless a cluster does its work; stages that are reused ask for none.
    """
    for stage in stages:
        stage.check(config)
    lines = {stage.name: needs_of(stage.name, config).lacking_here() for stage in stages}
    if not any(lines.values()):
        return
    running = (row.stage for row in make_plan(config, stages, refresh, kept) if row.action == "run")
    if lacking := [line for stage in running if (line := lines[stage])]:
        raise UserError("\n".join(lacking))
