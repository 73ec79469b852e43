"""Registered models: versions of artifacts, and the aliases that point at them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from magic141.artifacts import ArtifactRef
from magic141.frozen import UserError
from magic141.tracking.tags import TAG_ARTIFACT


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
        versions = self._versions(name)
        if versions is None:
            self.client.create_registered_model(name, description="image-to-video models made by magic141")
        found = [v for v in versions or () if v.run_id == ref.run_id]
        version = found[0] if found else self._new_version(name, ref, tags)
        self.client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)

    def _new_version(self, name: str, ref: ArtifactRef, tags: Mapping[str, str]) -> ModelVersion:
        source = ref.uri
        if not self.uri.startswith("sqlite:"):  # a server refuses folders outside its own artifact root
            self.client.log_artifacts(ref.run_id, ref.uri, "model")
            source = f"runs:/{ref.run_id}/model"
        own = {**tags, TAG_ARTIFACT: ref.model_dump_json()}
        return self.client.create_model_version(name, source=source, run_id=ref.run_id, tags=own)

    def _versions(self, name: str) -> list[ModelVersion] | None:
        try:
            self.client.get_registered_model(name)
        except MlflowException:
            return None
        return list(self.client.search_model_versions(f"name = '{name}'"))

    def resolve(self, uri: str) -> ArtifactRef:
        """The artifact behind `models:/name@alias` or `models:/name/version`.

        Raises:
            UserError: the URI is malformed, or names nothing.
        """
        match = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))", uri)
        if match is None:
            raise UserError(f"model {uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        name, alias, version = match.groups()
        try:
            if alias:
                found = self.client.get_model_version_by_alias(name, alias)
            else:
                found = self.client.get_model_version(name, version)
            return ArtifactRef.model_validate_json(found.tags[TAG_ARTIFACT])
        except (MlflowException, KeyError):
            raise UserError(f"model {uri}: not in the registry {self.uri}; {self._known_models()}") from None

    def _known_models(self) -> str:
        names = [f"models:/{m.name}@{alias}" for m in self.client.search_registered_models() for alias in m.aliases]
        return f"there are: {', '.join(names)}" if names else "it is empty: `magic141 run` publishes a model"
