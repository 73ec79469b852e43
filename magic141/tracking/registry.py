"""The model registry: versions of artifacts, the aliases that point at them, and the aliases' history."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from magic141.artifacts.references import ArtifactRef
from magic141.errors import UserError
from magic141.tracking.paging import all_experiments, every
from magic141.tracking.store_address import is_database
from magic141.tracking.tags import TAG_ARTIFACT, TAG_PROMOTIONS
from magic141.urls import without_credentials

Found = TypeVar("Found")
MODEL_FOLDER = "model"  # folder of a run's artifacts on a server
MAX_PROMOTIONS = 80  # as many as fit into a tag
MAX_RUNS = 200  # that made one model, looked at


class Promotion(NamedTuple):
    """A move of an alias: to which version, when (UTC), and by which action.

    The action is `promote`, `forced` (despite the gate), `rollback`, or `outside` (by other means, noticed later).
    """

    version: str
    at: str
    action: str


@dataclass(frozen=True)
class Registry:
    """The model registry of one tracking store.

    Attributes:
        client: client of the store.
        uri: URI of the store.
    """

    client: MlflowClient
    uri: str

    def register(self, name: str, ref: ArtifactRef, alias: str, tags: Mapping[str, str]) -> str:
        """Registers an artifact, once per run, and points the alias at that version; returns the version.

        The tags become those of the version, also if an earlier pipeline registered it.
        """
        versions = self.client.search_model_versions(f"name = '{name}'")
        if not versions:
            with unless_there():
                self.client.create_registered_model(name, description="image-to-video models made by magic141")
        found = [v for v in versions if v.run_id == ref.run_id]
        version = found[0] if found else self._new_version(name, ref)
        for tag, value in tags.items():
            self.note(version, tag, value)
        self.client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)

    def _new_version(self, name: str, ref: ArtifactRef) -> ModelVersion:
        source = ref.uri
        if self.keeps_models:  # a server refuses folders outside its own artifact root
            self.client.log_artifacts(ref.run_id, ref.uri, MODEL_FOLDER)
            source = f"runs:/{ref.run_id}/{MODEL_FOLDER}"
        own = {TAG_ARTIFACT: ref.model_dump_json()}
        return self.client.create_model_version(name, source=source, run_id=ref.run_id, tags=own)

    def resolve(self, uri: str) -> ArtifactRef:
        """The artifact that `models:/name@alias` or `models:/name/version` refers to.

        Raises:
            UserError: the URI is malformed, or names nothing.
        """
        return self.artifact_of(self.version(uri))

    def artifact_of(self, version: ModelVersion) -> ArtifactRef:
        """The artifact that a version is.

        Raises:
            UserError: somebody else has registered it.
        """
        if TAG_ARTIFACT not in version.tags:
            uri = f"models:/{version.name}/{version.version}"
            raise UserError(f"model {uri}: was not published by magic141; {self._known_models()}")
        return ArtifactRef.model_validate_json(version.tags[TAG_ARTIFACT])

    def version(self, uri: str) -> ModelVersion:
        """The version that `models:/name@alias` or `models:/name/version` refers to.

        Raises:
            UserError: the URI is malformed, or names nothing.
        """
        name, alias, number = parse_uri(uri)
        found = self.alias_version(name, alias) if alias else self._numbered(name, str(number))
        if found is None:
            raise self._unknown(uri)
        return found

    def alias_version(self, name: str, alias: str) -> ModelVersion | None:
        """The version that an alias points at, or None; raises if the store does not answer."""
        return look_up(lambda: self.client.get_model_version_by_alias(name, alias))

    def names_of(self, run_ids: Collection[str]) -> list[str]:
        """Every `models:/name@alias` whose version one of the runs has published."""
        found = ((name, alias, self.alias_version(name, alias)) for name, alias in self._aliases())
        return [f"models:/{name}@{alias}" for name, alias, version in found if version and version.run_id in run_ids]

    def _aliases(self) -> Iterator[tuple[str, str]]:
        """Every registered model's name with each of its aliases."""
        models = every(self.client.search_registered_models)
        return ((model.name, alias) for model in models for alias in model.aliases)

    def _numbered(self, name: str, version: str) -> ModelVersion | None:
        return look_up(lambda: self.client.get_model_version(name, version))

    def note(self, version: ModelVersion, tag: str, value: str) -> None:
        """Sets a tag of a version."""
        self.client.set_model_version_tag(version.name, version.version, tag, value)

    def runs_with(self, ref: ArtifactRef) -> list[Run]:
        """The finished pipelines and evaluations that made an artifact or reused an equal one, newest first."""
        tag = f"{TAG_ARTIFACT}.{ref.stage}"
        found = self.client.search_runs(
            all_experiments(self.client),
            f"tags.`{tag}` LIKE '%{ref.digest}%' and attributes.status = 'FINISHED'",
            max_results=MAX_RUNS,
            order_by=["attributes.start_time DESC"],
        )
        return [run for run in found if ArtifactRef.model_validate_json(run.data.tags[tag]).digest == ref.digest]

    def promote(self, name: str, alias: str, version: str, forced: bool = False) -> None:
        """Moves an alias and records the move."""
        before = self._moves(name, alias)
        self.client.set_registered_model_alias(name, alias, version)
        self._write_history(name, alias, [*before, Promotion(str(version), _now(), "forced" if forced else "promote")])

    def rollback(self, name: str, alias: str) -> str:
        """Moves an alias back to where it pointed before its last move; returns that version.

        Versions that have been deleted since are skipped.

        Raises:
            UserError: if there is nothing to go back to.
        """
        moves = self._moves(name, alias)
        earlier = [version for version in _path(moves)[:-1] if self._numbered(name, version)]
        if not earlier:
            raise UserError(
                f"models:/{name}@{alias}: no earlier promotion whose version is still there; see `magic141 promote`"
            )
        # history first: if this is interrupted between the two, the same command goes to the same version
        self._write_history(name, alias, [*moves, Promotion(earlier[-1], _now(), "rollback")])
        self.client.set_registered_model_alias(name, alias, earlier[-1])
        return earlier[-1]

    def _moves(self, name: str, alias: str) -> list[Promotion]:
        """The history, with the alias's present version appended if it was moved by other means."""
        history = self.history(name, alias)
        now = self.alias_version(name, alias)
        if now is None or (history and history[-1].version == str(now.version)):
            return history
        return [*history, Promotion(str(now.version), _now(), "outside")]

    def history(self, name: str, alias: str) -> list[Promotion]:
        """Every move of an alias, oldest first."""
        model = look_up(lambda: self.client.get_registered_model(name))
        if model is None:
            raise self._unknown(name)
        moves = json.loads(model.tags.get(f"{TAG_PROMOTIONS}.{alias}", "[]"))
        return [Promotion(str(version), at, action) for version, at, action in moves]

    def _write_history(self, name: str, alias: str, history: Sequence[Promotion]) -> None:
        kept = json.dumps(history[-MAX_PROMOTIONS:])
        self.client.set_registered_model_tag(name, f"{TAG_PROMOTIONS}.{alias}", kept)

    @property
    def keeps_models(self) -> bool:
        """Whether published folders are copied to the store; a database has no place for them."""
        return not is_database(self.uri)

    def _unknown(self, model: str) -> UserError:
        where = without_credentials(self.uri)
        return UserError(f"model {model}: not in the registry {where}; {self._known_models()}")

    def _known_models(self) -> str:
        names = [f"models:/{name}@{alias}" for name, alias in self._aliases()]
        return f"there are: {', '.join(names)}" if names else "it is empty: `magic141 run` publishes a model"


def names_nothing(error: MlflowException) -> bool:
    """Whether an error means that there is no such run, model, version or alias, rather than that the store failed."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def look_up(ask: Callable[[], Found]) -> Found | None:
    """The store's answer; None if what is asked for is not there. Raises if the store does not answer."""
    try:
        return ask()
    except MlflowException as error:
        if not names_nothing(error):
            raise
        return None


@contextmanager
def unless_there() -> Iterator[None]:
    """Ignores the error that MLflow raises if another run has just created the same object."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def parse_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Name, alias and version (one of these two is None) of `models:/name@alias` or `models:/name/version`.

    Raises:
        UserError: the URI is malformed.
    """
    match = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d{1,9}))", uri)
    if match is None:
        raise UserError(f"model {uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = match.groups()
    return name, alias, version


def _path(moves: Sequence[Promotion]) -> list[str]:
    """The versions that led to the present one; a rollback removes those after the version it returned to."""
    path: list[str] = []
    for move in moves:
        if move.action != "rollback":
            path.append(move.version)
            continue
        path = path[:-1]
        while path and path[-1] != move.version:
            path.pop()
        path = path or [move.version]  # earlier moves are no longer in the history
    return path


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
