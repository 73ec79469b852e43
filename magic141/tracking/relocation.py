"""Tells the store of a workspace that was moved or copied where its files are now; MLflow records absolute paths."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from magic141.tracking.tags import TAG_ARTIFACT

_LOG = logging.getLogger(__name__)
FILES = "/mlflow-artifacts/"  # below the workspace, one folder per experiment
_FOLDERS = (FILES, "/artifacts/")  # matched with the workspace: its new place may be in, or around, the former one
TIMEOUT_S = 30
_PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_JSON_WITH_PATHS = (
    ("tags", "value", f"key LIKE '{TAG_ARTIFACT}%'"),
    ("logged_model_tags", "tag_value", f"tag_key LIKE '{TAG_ARTIFACT}%'"),
    ("model_version_tags", "value", f"key LIKE '{TAG_ARTIFACT}%'"),
    ("datasets", "dataset_source", "true"),
)


def settle_place(store: Path, workspace: Path, is_busy: Callable[[], bool]) -> None:
    """Corrects the store's paths if the workspace was moved or copied.

    Not while somebody works in the same folder under its other path, as in a container: their files would not be found.

    Args:
        store: MLflow's SQLite file in the workspace.
        workspace: where both are now.
        is_busy: whether a run of the store is still at work.
    """
    places = former_places(store, workspace)
    if not places or not os.access(store, os.W_OK):
        return
    busy = is_busy()
    for place in places:
        if busy and not _is_copy(store, Path(place) / store.name):
            _LOG.warning("%s was at %s, and a run still works there: its records stay as they are", workspace, place)
        else:
            relocate(store, place, workspace)
            _LOG.warning("%s was at %s: its records now name the new place", workspace, place)


def _is_copy(store: Path, other: Path) -> bool:
    """Whether both files exist and are not one; mounts of one folder may call its device differently."""
    if not other.exists():
        return False
    here, there = store.stat(), other.stat()
    return (here.st_ino, here.st_size) != (there.st_ino, there.st_size)


def former_places(store: Path, workspace: Path) -> list[str]:
    """Other workspaces in which the store's experiments and runs had their files, which came along to this one.

    Those of another workspace that uses the store did not come along.

    Args:
        store: MLflow's SQLite file in the workspace.
        workspace: where both are now.
    """
    here = f"{workspace}{FILES}"
    elsewhere = "SELECT {1} FROM {0} WHERE substr({1}, 1, ?) != ?"
    with closing(sqlite3.connect(store, timeout=TIMEOUT_S)) as database:
        found = [
            path
            for column in _PATHS[:2]
            for (path,) in database.execute(elsewhere.format(*column), (len(here), here))
            if path.startswith("/") and FILES in path and _came_along(path, workspace)
        ]
    return sorted({path.rpartition(FILES)[0] for path in found})


def _came_along(path: str, workspace: Path) -> bool:
    experiment = path.rpartition(FILES)[2].partition("/")[0]
    return Path(f"{workspace}{FILES}{experiment}").is_dir()


def relocate(store: Path, old: str, workspace: Path) -> None:
    """Replaces the path of the former workspace by the present one in all records, in one transaction."""
    with closing(sqlite3.connect(store, timeout=TIMEOUT_S)) as database, database:
        for folder in _FOLDERS:
            before, now = f"{old}{folder}", f"{workspace}{folder}"
            for table, column in _PATHS:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, len(before), before),
                )
            quoted = {_quoted(before, ascii): _quoted(now, ascii) for ascii in (True, False)}
            for table, column, condition in _JSON_WITH_PATHS:
                update = f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE {condition}"
                database.executemany(update, quoted.items())


def _quoted(path: str, ascii: bool) -> str:
    """The beginning of a JSON string that begins with the path."""
    return json.dumps(path, ensure_ascii=ascii).removesuffix('"')
