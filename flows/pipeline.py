"""The pipeline as a Prefect flow: every stage in order, under one MLflow run."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.faults import explaining
from flows.notify import notify
from flows.session import Outcome, open_session
from magic141.config import load_config, missing_sources
from magic141.frozen import UserError
from tasks.pipeline import known_stage, stages_until


@flow(name="magic141", retries=0, validate_parameters=False, on_failure=[notify], on_crashed=[notify])
def pipeline(
    config: str,
    overrides: list[str] | None = None,
    until: str | None = None,
    refresh: list[str] | None = None,
) -> Outcome:
    """Runs a config's stages; those whose result is there are reused.

    Args:
        config: YAML file.
        overrides: `a.b=c` on top of the file.
        until: last stage to run; none: all.
        refresh: stages to compute again although their result is there.
    """
    values = load_config(Path(config), overrides or ())
    check_sources = list(missing_sources(values))
    if check_sources:
        raise UserError("\n".join(check_sources))
    again = [known_stage(name, "--refresh") for name in refresh or ()]
    stages = stages_until(until)
    with explaining(values.home), open_session(values, "pipeline", {}, again) as session:
        return session.run_stages(stages)
