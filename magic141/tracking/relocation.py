"""Tells the store of a workspace that was moved or copied where its files are now; MLflow records absolute paths."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from magic141.tracking.tags import TAG_ARTIFACT

FILES = "/mlflow-artifacts/"  # below the workspace, one folder per experiment
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


def former_places(store: Path, workspace: Path) -> list[str]:
    """Other workspaces in which the store's experiments and runs have their files.

    Args:
        store: MLflow's SQLite file in the workspace.
        workspace: where both are now.
    """
    here = f"{workspace}/"
    elsewhere = "SELECT {1} FROM {0} WHERE substr({1}, 1, ?) != ?"
    with closing(sqlite3.connect(store, timeout=TIMEOUT_S)) as database:
        found = [
            path
            for column in _PATHS[:2]
            for (path,) in database.execute(elsewhere.format(*column), (len(here), here))
            if path.startswith("/") and FILES in path
        ]
    return sorted({path.rpartition(FILES)[0] for path in found})


def relocate(store: Path, old: str, workspace: Path) -> None:
    """Replaces the path of the former workspace by the present one in all records, in one transaction."""
    before, now = f"{old}/", f"{workspace}/"
    with closing(sqlite3.connect(store, timeout=TIMEOUT_S)) as database, database:
        for table, column in _PATHS:
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (now, len(before) + 1, len(before), before),
            )
        for table, column, condition in _JSON_WITH_PATHS:
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE {condition}", (f'"{before}', f'"{now}')
            )
