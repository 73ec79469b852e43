"""Registered models: versions of artifacts, and the aliases that point at them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from magic141.artifacts import ArtifactRef
from magic141.errors import UserError
from magic141.tracking.paging import all_experiments
from magic141.tracking.tags import TAG_ARTIFACT, TAG_PROMOTIONS
from magic141.urls import without_credentials

MODEL_FOLDER = "model"  # of a run's artifacts on a server
MAX_PROMOTIONS = 80  # what fits into a tag
MAX_RUNS = 200  # that made one model, looked at


class Promotion(NamedTuple):
    """A move of an alias: to which version, when (UTC), and how.

    That is `promote`, `forced` (in spite of the gate), `rollback`, or `outside`: by hand, and noted when seen.
    """

    version: str
    at: str
    action: str


@dataclass(frozen=True)
class Registry:
    """The model registry of one tracking store.

    Attributes:
        client: talks to the store.
        uri: of the store.
    """

    client: MlflowClient
    uri: str

    def register(self, name: str, ref: ArtifactRef, alias: str, tags: Mapping[str, str]) -> str:
        """The registered version of an artifact (made once per run), with the alias pointing at it."""
        versions = self.client.search_model_versions(f"name = '{name}'")
        if not versions:
            with unless_there():
                self.client.create_registered_model(name, description="image-to-video models made by magic141")
        found = [v for v in versions if v.run_id == ref.run_id]
        version = found[0] if found else self._new_version(name, ref, tags)
        self.client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)

    def _new_version(self, name: str, ref: ArtifactRef, tags: Mapping[str, str]) -> ModelVersion:
        source = ref.uri
        if self.keeps_models:  # a server refuses folders outside its own artifact root
            self.client.log_artifacts(ref.run_id, ref.uri, MODEL_FOLDER)
            source = f"runs:/{ref.run_id}/{MODEL_FOLDER}"
        own = {**tags, TAG_ARTIFACT: ref.model_dump_json()}
        return self.client.create_model_version(name, source=source, run_id=ref.run_id, tags=own)

    def resolve(self, uri: str) -> ArtifactRef:
        """The artifact behind `models:/name@alias` or `models:/name/version`.

        Raises:
            UserError: the URI is malformed, or names nothing.
        """
        _, version = self.version(uri)
        if TAG_ARTIFACT not in version.tags:
            raise UserError(f"model {uri}: was not published by magic141; {self._known_models()}")
        return ArtifactRef.model_validate_json(version.tags[TAG_ARTIFACT])

    def version(self, uri: str) -> tuple[str, ModelVersion]:
        """Name and version behind `models:/name@alias` or `models:/name/version`.

        Raises:
            UserError: the URI is malformed, or names nothing.
        """
        name, alias, version = parse_uri(uri)
        try:
            if alias:
                return name, self.client.get_model_version_by_alias(name, alias)
            return name, self.client.get_model_version(name, version)
        except MlflowException as error:
            if not names_nothing(error):
                raise
            raise UserError(f"model {uri}: not in the registry {self._where}; {self._known_models()}") from None

    def alias_version(self, name: str, alias: str) -> ModelVersion | None:
        """The version that an alias points at, if there is one; a store that does not answer is not a missing alias."""
        try:
            return self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if not names_nothing(error):
                raise
            return None

    def runs_with(self, ref: ArtifactRef) -> list[Run]:
        """The finished pipelines and evaluations that made an artifact or took an equal one over, newest first."""
        tag = f"{TAG_ARTIFACT}.{ref.stage}"
        found = self.client.search_runs(
            all_experiments(self.client),
            f"tags.`{tag}` LIKE '%{ref.digest}%' and attributes.status = 'FINISHED'",
            max_results=MAX_RUNS,
            order_by=["attributes.start_time DESC"],
        )
        return [run for run in found if ArtifactRef.model_validate_json(run.data.tags[tag]).digest == ref.digest]

    def promote(self, name: str, alias: str, version: str, forced: bool = False) -> None:
        """Moves an alias and writes that down."""
        before = self._moves(name, alias)
        self.client.set_registered_model_alias(name, alias, version)
        self._write_history(name, alias, [*before, Promotion(str(version), _now(), "forced" if forced else "promote")])

    def rollback(self, name: str, alias: str) -> str:
        """Moves an alias back to where it pointed before its last move; returns that version.

        Versions that were deleted since are passed over.

        Raises:
            UserError: there is nothing to go back to.
        """
        moves = self._moves(name, alias)
        earlier = [version for version in _path(moves)[:-1] if self._exists(name, version)]
        if not earlier:
            raise UserError(
                f"models:/{name}@{alias}: no earlier promotion whose version is still there; see `magic141 promote`"
            )
        self.client.set_registered_model_alias(name, alias, earlier[-1])
        self._write_history(name, alias, [*moves, Promotion(earlier[-1], _now(), "rollback")])
        return earlier[-1]

    def _moves(self, name: str, alias: str) -> list[Promotion]:
        """The history, and where the alias points now if somebody else moved it there."""
        history = self.history(name, alias)
        now = self.alias_version(name, alias)
        if now is None or (history and history[-1].version == str(now.version)):
            return history
        return [*history, Promotion(str(now.version), _now(), "outside")]

    def _exists(self, name: str, version: str) -> bool:
        try:
            self.client.get_model_version(name, version)
        except MlflowException as error:
            if not names_nothing(error):
                raise
            return False
        return True

    def history(self, name: str, alias: str) -> list[Promotion]:
        """Every move of an alias, oldest first."""
        try:
            text = self.client.get_registered_model(name).tags.get(f"{TAG_PROMOTIONS}.{alias}", "[]")
        except MlflowException as error:
            if not names_nothing(error):
                raise
            raise UserError(f"model {name}: not in the registry {self._where}; {self._known_models()}") from None
        return [Promotion(str(version), at, action) for version, at, action in json.loads(text)]

    def _write_history(self, name: str, alias: str, history: Sequence[Promotion]) -> None:
        kept = [tuple(entry) for entry in history[-MAX_PROMOTIONS:]]
        self.client.set_registered_model_tag(name, f"{TAG_PROMOTIONS}.{alias}", json.dumps(kept))

    @property
    def keeps_models(self) -> bool:
        """Whether published folders are copied to the store, which a file beside them has no need of."""
        return not self.uri.startswith("sqlite:")

    @property
    def _where(self) -> str:
        return without_credentials(self.uri)

    def _known_models(self) -> str:
        names = [f"models:/{m.name}@{alias}" for m in self.client.search_registered_models() for alias in m.aliases]
        return f"there are: {', '.join(names)}" if names else "it is empty: `magic141 run` publishes a model"


def names_nothing(error: MlflowException) -> bool:
    """Whether a store says that there is no such run, model, version or alias, and not that it cannot say."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@contextmanager
def unless_there() -> Iterator[None]:
    """Inside something is created; that another run has just done so is as good."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def parse_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Name, alias and version, one of the two last, of `models:/name@alias` or `models:/name/version`.

    Raises:
        UserError: the URI is malformed.
    """
    match = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))", uri)
    if match is None:
        raise UserError(f"model {uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = match.groups()
    return name, alias, version


def _path(moves: Sequence[Promotion]) -> list[str]:
    """The versions that led to where an alias points: a rollback takes those after its own away."""
    path: list[str] = []
    for move in moves:
        if move.action != "rollback":
            path.append(move.version)
            continue
        path = path[:-1]
        while path and path[-1] != move.version:
            path.pop()
        path = path or [move.version]  # the moves before were too many to keep
    return path


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
