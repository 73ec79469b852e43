"""What stages hand to each other: references to artifacts, with digests of their content, and the keys of stages."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magic141.artifacts.digests import canonical_json, digest_folder, sha256_text
from magic141.artifacts.file_records import record_path
from magic141.frozen import FrozenConfig


class ArtifactRef(FrozenConfig):
    """One stage's result: where it is, and the digest of its content.

    Attributes:
        stage: name of the stage that made it.
        key: the stage key under which it was made.
        uri: absolute path of its folder.
        digest: content digest of the folder (`digest_folder`, without the stage's own timing records).
        run_id: MLflow run that made it.
        volatile: names of files (timings, logs) that are not part of the digest.
    """

    stage: str
    key: str
    uri: str
    digest: str
    run_id: str
    volatile: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.uri)

    @property
    def is_empty(self) -> bool:
        """Whether no file of it counts: the stage was left out."""
        return self.digest == sha256_text("")

    def state(self, verify: bool = True) -> str:
        """'intact', 'deleted', 'altered', or 'closed' to this user; of a large folder, reads what may have changed.

        Args:
            verify: read the files; without, a folder that is there counts as intact.
        """
        try:
            if not self.path.is_dir():
                return "deleted"
            if not verify:
                return "intact"
            found = digest_folder(self.path, self.volatile, record_path(self.path))
        except PermissionError:
            return "closed"
        return "intact" if found == self.digest else "altered"

    @property
    def is_open(self) -> bool:
        """Whether its folder is on this machine, and this user may read it."""
        return os.access(self.path, os.R_OK | os.X_OK)


class StageKey(FrozenConfig):
    """Everything that determines a stage's result; equal parts give equal keys."""

    stage: str
    version: int
    code: str
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of the parts."""
        return sha256_text(canonical_json(self.model_dump(mode="json")))

    def difference(self, other: StageKey) -> list[str]:
        """The fields that differ, as `path: other's value -> own value`."""
        return list(_differences("", other.model_dump(mode="json"), self.model_dump(mode="json")))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested fields as `section.field` and value."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _differences(path: str, old: object, new: object) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(f"{path}.{name}".lstrip("."), old.get(name), new.get(name))
    elif old != new:
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:9].strip('"') + "…"
