"""The pipeline as Prefect flows: all stages under one MLflow run, or some of them on an earlier run's results."""

from __future__ import annotations

from pathlib import Path

from flows.orchestration.flows import our_flow
from flows.orchestration.orchestrated import carry_on, flow_tags, run_as_tasks
from flows.planning.readiness import require_ready
from flows.records.origin import continue_run, find_origin
from flows.records.session import Outcome, open_session
from magic141.config import load_config, missing_sources, working_in, workspace_folder
from magic141.errors import UserError
from magic141.tracking import TAG_PARENT
from magic141.tracking.tags import PIPELINE
from tasks.pipeline import known_stage, missing_by_stage, stages_between


@our_flow("magic141")
def pipeline(
    config: str,
    overrides: list[str] | None = None,
    until: str | None = None,
    refresh: list[str] | None = None,
    parent: str | None = None,
) -> Outcome:
    """Runs a config's stages; existing results are reused.

    Args:
        config: path of the YAML file.
        overrides: `a.b=c` overrides of the file.
        until: last stage to run; None: all.
        refresh: stages to compute again although their results exist.
        parent: MLflow run that becomes this one's parent, such as a sweep's.
    """
    values = load_config(Path(config), overrides or ())
    _refuse(list(missing_sources(values)))
    again, stages = [known_stage(name, "--refresh") for name in refresh or ()], stages_between(None, until)
    require_ready(values, stages, again)
    tags = flow_tags() | ({TAG_PARENT: parent} if parent else {})
    with open_session(values, PIPELINE, tags, again, overrides or ()) as session:
        return run_as_tasks(session, stages)


@our_flow("magic141-rerun")
def rerun(
    workspace: str,
    origin: str,
    first: str | None = None,
    overrides: list[str] | None = None,
    until: str | None = None,
    refresh: list[str] | None = None,
) -> Outcome:
    """Runs the stages from `first` on, on an earlier run's results of the stages before.

    Args:
        workspace: folder of the earlier run.
        origin: a pipeline run, one of its stage runs, or `models:/name@alias`.
        first: first stage to run; None: all of them, with the earlier run's config.
        overrides: `a.b=c` overrides of the earlier run's config, for stages that run.
        until: last stage to run; None: all.
        refresh: stages to compute again although their results exist.
    """
    again = [known_stage(name, "--refresh") for name in refresh or ()]
    stages = stages_between(first, until)
    home = workspace_folder(workspace)
    with working_in(home):
        going_on = continue_run(find_origin(home, origin), stages, overrides or ())
        missing = missing_by_stage(going_on.config)
        _refuse([missing[stage.name] for stage in stages if stage.name in missing])
        return carry_on(going_on, PIPELINE, again, overrides or ())


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UserError("\n".join(problems))
