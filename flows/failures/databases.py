"""Checks that the database which MLFLOW_TRACKING_URI names without a server answers; MLflow retries for minutes."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

from flows.failures.writable import folder_trouble
from magic141.errors import MAX_REASON_CHARS, first_line
from magic141.urls import without_credentials

TIMEOUT_S = 10
PLUGINS = "mlflow.tracking_store"  # the entry points of other kinds
KINDS = ("sqlite", "postgresql", "mysql", "mssql", "databricks")  # MLflow's own names; files are no longer among them
_OWN_ARGUMENTS = "MLFLOW_MYSQL_SSL_"  # variables from which MLflow makes arguments of a connection
_WAITING = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mssql": "timeout"}


def database_trouble(variable: str, uri: str) -> str | None:
    """What is wrong with a store that is not behind http; None if it answers or is a file."""
    shown, kind = without_credentials(uri), uri.partition(":")[0].partition("+")[0]
    if kind not in KINDS and kind not in entry_points(group=PLUGINS).names:
        return (
            f"{variable} = {shown}: MLflow has no such store; expected one such as http://HOST:5000, "
            "sqlite:////FOLDER/mlflow.db or postgresql://USER@HOST/DATABASE"
        )
    if kind == "sqlite":
        return _file_trouble(variable, uri)
    if kind not in _WAITING or any(name.startswith(_OWN_ARGUMENTS) for name in os.environ):
        return None
    try:
        _connect(uri, _WAITING[kind])
    except ModuleNotFoundError as error:
        return f"{variable} = {shown}: its driver is not installed; install the package with the module {error.name}"
    except TypeError:  # a driver that calls its time limit otherwise, such as pg8000
        return None
    except Exception as error:  # every driver has exceptions of its own
        reason = first_line(without_credentials(str(error)), MAX_REASON_CHARS)
        return f"{variable} = {shown}: does not answer ({reason}); correct it, or unset {variable} to work without"
    return None


def _file_trouble(variable: str, uri: str) -> str | None:
    """Why SQLite's file cannot be there; MLflow would create a mistyped folder, and know no run in it."""
    file = Path(uri.partition(":///")[2].partition("?")[0])
    if file.is_dir():  # of an empty path, too
        return f"{variable} = {uri}: expected a file, such as sqlite:////FOLDER/mlflow.db"
    if not file.parent.is_dir():
        return f"{variable} = {uri}: there is no folder {file.parent}; correct it, or create the folder"
    trouble = None if file.exists() else folder_trouble(file.parent)
    return trouble and f"{variable} = {uri}: {trouble}; correct it, or unset {variable} to work without"


def _connect(uri: str, timeout: str) -> None:
    from sqlalchemy import create_engine  # half a second, which only databases cost

    engine = create_engine(uri, connect_args={timeout: TIMEOUT_S})
    try:
        engine.connect().close()
    finally:
        engine.dispose()
