"""Finds the model that `--model` names: a folder, a registered version, or what a run has published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flows.records.commands import command_again
from magic141.errors import UserError

if TYPE_CHECKING:
    from magic141.artifacts.references import ArtifactRef
    from magic141.tracking import Run, Tracker


class FoundModel(NamedTuple):
    """A model's folder on this machine; `name` is what was asked for, with the version that it meant."""

    folder: Path
    name: str


def find_model(workspace: Path, model: str) -> FoundModel:
    """The model that a folder, a registry URI or a run id refers to; fetched from a server if need be.

    Raises:
        UserError: if it refers to nothing, or to nothing that still exists.
    """
    if not model:
        raise UserError("--model: empty; expected a folder, models:/NAME@ALIAS, models:/NAME/VERSION or a run id")
    if Path(model).is_dir():
        return FoundModel(Path(model), model)
    from magic141.tracking import local_folder, open_store

    try:
        tracker = open_store(workspace)
    except UserError as error:
        raise UserError(f"--model {model}: no such folder, and {error}") from None
    if model.startswith("models:/"):
        version = tracker.registry.version(model)  # once: an alias may move while its model is fetched
        ref, name = tracker.registry.artifact_of(version), f"{model} (version {version.version})"
    else:
        ref, name = _published_by(_run_of(tracker, model), tracker, model), model
    try:
        return FoundModel(local_folder(tracker, ref), name)
    except UserError as error:
        raise UserError(f"--model {model}: {error}") from error


def _run_of(tracker: Tracker, model: str) -> Run:
    """The run that `--model` names, which is neither a folder nor a registry's URI."""
    try:
        return tracker.pipeline_run(model)
    except UserError as error:
        raise UserError(f"--model {model}: no such folder, no models:/NAME@ALIAS, and {error}") from None


def _published_by(run: Run, tracker: Tracker, model: str) -> ArtifactRef:
    found = tracker.artifacts_of(run).get("publish")
    if found is None:
        way = _way_to_a_model(run, tracker.workspace)
        raise UserError(f"--model {model}: that run has published nothing; {way}")
    return found


def _way_to_a_model(run: Run, workspace: Path) -> str:
    """What to give instead of a run without a model: an evaluation only judges that of another run."""
    from magic141.tracking.tags import EVALUATION, TAG_KIND, TAG_ORIGIN

    if run.data.tags.get(TAG_KIND) == EVALUATION:
        return f"it judged what run {run.data.tags[TAG_ORIGIN]} made; give that"
    return f"finish it with `{command_again(run, workspace)}`"
