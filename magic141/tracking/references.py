"""Finds which artifacts and work folders runs and registered models still refer to, for garbage collection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from magic141.artifacts.references import ArtifactRef
from magic141.tracking.paging import all_experiments, every
from magic141.tracking.store_address import default_uri, tracking_uri
from magic141.tracking.stores import noted_stores, store_name
from magic141.tracking.tags import TAG_ARTIFACT, TAG_KEY, TAG_KIND, TAG_STAGE
from magic141.tracking.tracker import open_store


class ArtifactName(NamedTuple):
    """An artifact by its names only, as the same workspace may be mounted at another path."""

    stage: str
    name: str


class Work(NamedTuple):
    """A stage and the key that a run of it worked on."""

    stage: str
    key: str


@dataclass(frozen=True)
class References:
    """Artifacts and work that the runs in a workspace's stores and the registered models refer to.

    Attributes:
        folders: artifacts that undeleted runs made or reused, and registered ones.
        work: work of undeleted runs.
        work_ever: work of all runs, including deleted ones; whether any other work is needed is unknown.
    """

    folders: frozenset[ArtifactName]
    work: frozenset[Work]
    work_ever: frozenset[Work]


def references(workspace: Path) -> References:
    """Reads the tags of all runs in the store in use and in the workspace's own store.

    Raises:
        UserError: if there is no store.
    """
    clients = [open_store(workspace).client]
    own = default_uri(workspace)
    if store_name(tracking_uri(workspace)) != store_name(own) and Path(own.removeprefix("sqlite:///")).exists():
        clients.append(MlflowClient(own))
    runs = [run for client in clients for run in _runs(client)]
    active = [run for run in runs if run.info.lifecycle_stage == "active"]
    models = (version.tags for client in clients for version in every(client.search_model_versions))
    registered = {_folder(tags[TAG_ARTIFACT]) for tags in models if TAG_ARTIFACT in tags}
    return References(frozenset(registered.union(*map(_folders, active))), _work(active), _work(runs))


def unasked_stores(workspace: Path) -> tuple[str, ...]:
    """Stores that were used with the workspace and that `references` does not read: their runs may need its files."""
    asked = {store_name(uri) for uri in (tracking_uri(workspace), default_uri(workspace))}
    return tuple(store for store in noted_stores(workspace) if store not in asked)


def _folders(run: Run) -> set[ArtifactName]:
    """The artifact of a stage run, or the artifacts of all stages of a pipeline run."""
    return {_folder(value) for name, value in run.data.tags.items() if f"{name}.".startswith(f"{TAG_ARTIFACT}.")}


def _folder(tag: str) -> ArtifactName:
    path = ArtifactRef.model_validate_json(tag).path
    return ArtifactName(path.parent.name, path.name)


def _work(runs: Iterable[Run]) -> frozenset[Work]:
    tags = (run.data.tags for run in runs)
    return frozenset(Work(found[TAG_STAGE], found[TAG_KEY]) for found in tags if TAG_KEY in found)


def _runs(client: MlflowClient) -> Iterable[Run]:
    experiments = all_experiments(client, ViewType.ALL)
    return every(partial(client.search_runs, experiments, f"tags.`{TAG_KIND}` != ''", ViewType.ALL))
