"""Only the judging stages, on the artifacts of an earlier run: generate, evaluate, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from prefect import flow

from flows.faults import explaining
from flows.notify import notify
from flows.reach import require_servers
from flows.session import Outcome, open_session
from magic141.artifacts import ArtifactRef
from magic141.config import PipelineConfig, default_home, validate, with_overrides
from magic141.frozen import UserError
from magic141.tracking import Run, Tracker, open_store
from tasks.pipeline import JUDGING, STAGES


@flow(name="magic141-evaluation", retries=0, validate_parameters=False, on_failure=[notify], on_crashed=[notify])
def evaluation(
    workspace: str | None = None,
    run_id: str | None = None,
    model: str | None = None,
    overrides: list[str] | None = None,
) -> Outcome:
    """Judges the models of a run, or of the run behind a registered model.

    Args:
        workspace: where the earlier run lives; none: MAGIC141_HOME, or runs.
        run_id: a pipeline run, or one of its stage runs.
        model: `models:/name@alias` or `models:/name/version`, in place of `run_id`.
        overrides: `generate.*`, `evaluate.*`, `report.*` to judge differently.
    """
    require_servers()
    origin, config = find_origin(Path(workspace) if workspace else default_home(), run_id, model)
    changed = judged_config(config, overrides or ())
    tracker = Tracker(changed.home, changed.experiment)
    inputs = needed_inputs(origin, tracker)
    with explaining(changed.home), open_session(changed, "evaluation", {"origin_run": origin.info.run_id}) as session:
        for ref in inputs:
            session.context.artifacts[ref.stage] = ref
            tracker.set_artifact(session.run.run_id, ref, reused=True)
        return session.run_stages([stage for stage in STAGES if stage.name in JUDGING])


def find_origin(workspace: Path, run_id: str | None, model: str | None) -> tuple[Run, PipelineConfig]:
    """The pipeline run to judge, and the config that it ran with."""
    if (run_id is None) == (model is None):
        raise UserError("eval: give either --run ID or --model URI, such as --model models:/magic141@candidate")
    tracker = open_store(workspace)
    origin = tracker.pipeline_run(run_id or tracker.registry.resolve(str(model)).run_id)
    return origin, config_of(origin, tracker, workspace)


def config_of(run: Run, tracker: Tracker, workspace: Path) -> PipelineConfig:
    """The config that a pipeline run ran with."""
    values = yaml.safe_load(tracker.read_file(run.info.run_id, "config.yaml"))
    return validate({**values, "workspace": str(workspace)}, f"config.yaml of run {run.info.run_id}")


def judged_config(config: PipelineConfig, overrides: Sequence[str]) -> PipelineConfig:
    """The config with overrides, which may touch the judging stages only."""
    changed = with_overrides(config, overrides, "the run's config")
    for section in type(config).model_fields:
        if section not in JUDGING and getattr(config, section) != getattr(changed, section):
            raise UserError(
                f"--set {section}: eval keeps the run's data and models; only {', '.join(JUDGING)} can change here; "
                "use `magic141 run` for the rest"
            )
    return changed


def needed_inputs(origin: Run, tracker: Tracker) -> list[ArtifactRef]:
    """The artifacts that the judging stages read, each still there and unaltered."""
    known = tracker.artifacts_of(origin)
    judging = [stage for stage in STAGES if stage.name in JUDGING]
    names = list(dict.fromkeys(name for stage in judging for name in stage.inputs if name not in JUDGING))
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(
            f"run {origin.info.run_id}: it has no artifact of {', '.join(missing)}; finish it with `magic141 run`, or "
            "give another run"
        )
    for name in names:
        if (state := known[name].state()) != "intact":
            raise UserError(f"run {origin.info.run_id}: {known[name].uri} was {state}; `magic141 run` makes it again")
    return [known[name] for name in names]
