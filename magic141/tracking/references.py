"""What runs and registered models refer to: all else in a workspace can go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import ModelVersion

from magic141.artifacts import ArtifactRef
from magic141.tracking.tags import TAG_ARTIFACT, TAG_KEY, TAG_KIND

PAGE = 1000


@dataclass(frozen=True)
class References:
    """Of all runs in a store that are not deleted, and of all registered models.

    Attributes:
        folders: artifacts that they made, reused or registered.
        keys: stage keys that they worked on.
        deleted_too: artifacts of deleted runs besides: all that this store has ever known.
    """

    folders: frozenset[Path]
    keys: frozenset[str]
    deleted_too: frozenset[Path]


def references(client: MlflowClient) -> References:
    """Reads every run's tags."""
    runs = list(_runs(client))
    active = [run for run in runs if run.info.lifecycle_stage == "active"]
    models = {_folder(version.tags[TAG_ARTIFACT]) for version in _versions(client) if TAG_ARTIFACT in version.tags}
    return References(
        frozenset(models.union(*map(_folders, active))),
        frozenset(run.data.tags[TAG_KEY] for run in active if TAG_KEY in run.data.tags),
        frozenset(models.union(*map(_folders, runs))),
    )


def _folders(run: Run) -> set[Path]:
    """A stage run's artifact, and every stage's in a pipeline run."""
    return {_folder(value) for name, value in run.data.tags.items() if f"{name}.".startswith(f"{TAG_ARTIFACT}.")}


def _folder(tag: str) -> Path:
    return ArtifactRef.model_validate_json(tag).path


def _runs(client: MlflowClient) -> Iterator[Run]:
    experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
    token = None
    while page := client.search_runs(experiments, f"tags.`{TAG_KIND}` != ''", ViewType.ALL, PAGE, page_token=token):
        yield from page
        if not (token := page.token):
            return


def _versions(client: MlflowClient) -> Iterator[ModelVersion]:
    token = None
    while page := client.search_model_versions(max_results=PAGE, page_token=token):
        yield from page
        if not (token := page.token):
            return
