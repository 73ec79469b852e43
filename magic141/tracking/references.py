"""What runs and registered models refer to: all else that a store knows of in a workspace can go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from magic141.artifacts import ArtifactRef
from magic141.tracking.paging import all_experiments, every
from magic141.tracking.tags import TAG_ARTIFACT, TAG_KEY, TAG_KIND, TAG_STAGE
from magic141.tracking.tracker import default_uri, open_store, tracking_uri


class ArtifactName(NamedTuple):
    """An artifact by its names alone: the same workspace may be mounted elsewhere."""

    stage: str
    name: str


class Work(NamedTuple):
    """What a stage's run worked on."""

    stage: str
    key: str


@dataclass(frozen=True)
class References:
    """What the runs of a workspace's stores, and the registered models, refer to.

    Attributes:
        folders: artifacts that runs which are not deleted made or reused, and those that are registered.
        work: what runs which are not deleted worked on.
        work_ever: the same with deleted runs: of nothing else can be told whether it is needed.
    """

    folders: frozenset[ArtifactName]
    work: frozenset[Work]
    work_ever: frozenset[Work]


def references(workspace: Path) -> References:
    """Reads every run's tags, of the store in use and of the workspace's own.

    Raises:
        UserError: there is no store.
    """
    clients = [open_store(workspace).client]
    own = default_uri(workspace)
    if tracking_uri(workspace) != own and Path(own.removeprefix("sqlite:///")).exists():
        clients.append(MlflowClient(own))
    runs = [run for client in clients for run in _runs(client)]
    active = [run for run in runs if run.info.lifecycle_stage == "active"]
    models = (version.tags for client in clients for version in every(client.search_model_versions))
    registered = {_folder(tags[TAG_ARTIFACT]) for tags in models if TAG_ARTIFACT in tags}
    return References(frozenset(registered.union(*map(_folders, active))), _work(active), _work(runs))


def _folders(run: Run) -> set[ArtifactName]:
    """A stage run's artifact, and every stage's in a pipeline run."""
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
