"""Continues an earlier run: its config, and the artifacts of the stages that do not run again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.failures.reach import require_servers
from flows.records.commands import command, command_again
from magic141.artifacts.references import ArtifactRef, flatten
from magic141.config import PipelineConfig, validate_stored, with_overrides
from magic141.errors import UserError
from magic141.tracking import TAG_PUBLISHER, ModelVersion, Run, Tracker, absence, open_store
from magic141.urls import without_credentials
from tasks import pipeline
from tasks.stage import Stage


@dataclass(frozen=True)
class Origin:
    """An earlier pipeline run.

    Attributes:
        source: how it was named: a run id, or a model URI, which also leads to a run that was deleted.
        run: its MLflow run.
        config: the config that it ran with.
        tracker: the store that holds it.
    """

    source: str
    run: Run
    config: PipelineConfig
    tracker: Tracker


def one_of(run_id: str | None, model: str | None) -> str:
    """The run or model to judge; raises UserError unless exactly one of the two is given."""
    if (run_id is None) == (model is None):
        raise UserError("eval: give either --run ID or --model URI, such as --model models:/magic141@candidate")
    if model is not None and not model.startswith("models:"):
        expected = "expected models:/NAME@ALIAS or models:/NAME/VERSION; give a run's id to --run"
        raise UserError(f"--model {model}: {expected}")
    return str(model if run_id is None else run_id)


def find_origin(workspace: Path, source: str) -> Origin:
    """The pipeline run that `source` names.

    Args:
        workspace: folder of the runs.
        source: id of a pipeline run or of one of its stage runs, or `models:/NAME@ALIAS`, `models:/NAME/VERSION`.
    """
    require_servers()
    tracker = open_store(workspace)
    registered = source.startswith("models:")
    run = publisher(tracker, tracker.registry.version(source)) if registered else tracker.pipeline_run(source)
    if not registered and run.info.lifecycle_stage != "active":
        raise UserError(f"run {source}: it was deleted, and gc may free what it made; restore it in MLflow")
    return Origin(source, run, config_of(run, tracker, workspace), tracker)


def config_of(run: Run, tracker: Tracker, workspace: Path) -> PipelineConfig:
    """The config that a pipeline run ran with."""
    values = {**tracker.stored_config(run), "workspace": str(workspace)}
    return validate_stored(values, f"config.yaml of run {run.info.run_id}")


@dataclass(frozen=True)
class Continuation:
    """A new run on the results of an earlier one.

    Attributes:
        origin: the earlier run.
        config: the new run's config.
        kept: artifacts that it reuses; those that its stages read are checked to be unaltered.
        stages: stages that run, in order.
    """

    origin: Origin
    config: PipelineConfig
    kept: tuple[ArtifactRef, ...]
    stages: tuple[Stage, ...]


def continue_run(origin: Origin, stages: Sequence[Stage], overrides: Sequence[str] = ()) -> Continuation:
    """Checks that `stages` can run again on the origin's earlier artifacts.

    Raises:
        UserError: if an override changes what is kept, or a needed artifact is missing or altered.
    """
    config = continued_config(origin, stages, overrides)
    return Continuation(origin, config, tuple(_kept_artifacts(origin, stages, _before(stages))), tuple(stages))


def continued_config(origin: Origin, stages: Sequence[Stage], overrides: Sequence[str] = ()) -> PipelineConfig:
    """The config of a run of `stages` that goes on from the origin.

    Raises:
        UserError: if an override is wrong, or changes what is kept.
    """
    config = with_overrides(origin.config, overrides, "the run's config")
    _refuse_changes(origin, config, _before(stages), [stage.name for stage in stages], overrides)
    return config


def _before(stages: Sequence[Stage]) -> Sequence[Stage]:
    return pipeline.STAGES[: pipeline.STAGES.index(stages[0])]


def _refuse_changes(
    origin: Origin, config: PipelineConfig, before: Iterable[Stage], running: Sequence[str], overrides: Sequence[str]
) -> None:
    """Refuses overrides of stages that are kept or do not run: kept artifacts must match the new run's config."""
    if config.workspace != origin.config.workspace:
        raise UserError("--set workspace: an earlier run goes on in its own; --workspace says where that is")
    run_id = origin.run.info.run_id
    for stage in before:
        old, new = (dict(flatten(stage.settings_in(values))) for values in (origin.config, config))
        changed = next((field for field in new if old.get(field) != new[field]), None)
        if changed:
            given = [word for text in overrides for word in ("--set", text)]
            words = ("run", "--run", origin.source, "--from", stage.name, *given)
            again = without_credentials(command(*words, workspace=origin.tracker.workspace))
            raise UserError(
                f"--set {changed}: {stage.name} is kept from run {run_id}; what runs here is {', '.join(running)}; use "
                f"`{again}`"
            )
    idle = {stage.section for stage in pipeline.STAGES if stage.name not in running}
    for section in idle.intersection(type(config).model_fields):
        if getattr(origin.config, section) != getattr(config, section):
            raise UserError(f"--set {section}: that stage does not run here, only {', '.join(running)}")


def publisher(tracker: Tracker, version: ModelVersion) -> Run:
    """The run that published a version last; that which made it, if the other is gone."""
    last = version.tags.get(TAG_PUBLISHER, version.run_id)
    try:
        return tracker.pipeline_run(last)
    except UserError:
        return tracker.pipeline_run(version.run_id)


def _kept_artifacts(origin: Origin, stages: Sequence[Stage], before: Iterable[Stage]) -> list[ArtifactRef]:
    """The origin's artifacts of earlier stages; those that `stages` read must exist and be intact."""
    known = origin.tracker.artifacts_of(origin.run)
    running = {stage.name for stage in stages}
    needed = list(dict.fromkeys(name for stage in stages for name in stage.inputs if name not in running))
    run_id, tracker = origin.run.info.run_id, origin.tracker
    again = command_again(origin.run, tracker.workspace, origin.source)
    if missing := [name for name in needed if name not in known]:
        raise UserError(
            f"run {run_id}: it has no artifact of {', '.join(missing)}; finish it with `{again}`, or give another"
        )
    for name in needed:
        if (state := known[name].state()) == "altered":
            raise UserError(f"run {run_id}: {known[name].uri} was altered; `{again}` makes it again")
        if state != "intact":
            raise UserError(f"run {run_id}: {absence(tracker, known[name], again)}")
    return [known[stage.name] for stage in before if stage.name in known]
