"""Where the tracking store is: a server or database of the user's, or a SQLite file in the workspace."""

from __future__ import annotations

import os
from pathlib import Path

from magic141.urls import settle_credentials

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_uri(workspace: Path) -> str:
    """The store's URI: MLFLOW_TRACKING_URI, or a SQLite file in the workspace."""
    settle_credentials("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(workspace)


def default_uri(workspace: Path) -> str:
    """The URI of the workspace's own store."""
    return f"sqlite:///{workspace}/mlflow.db"


def store_exists(workspace: Path) -> bool:
    """Whether the store exists, as a plan must not create one; servers are assumed to."""
    uri = tracking_uri(workspace)
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///").partition("?")[0]).exists()


def is_database(uri: str) -> bool:
    """Whether a store is a database without a server, which keeps no files itself."""
    return uri.partition(":")[0].partition("+")[0] in DATABASES
