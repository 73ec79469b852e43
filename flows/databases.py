"""Checks that the database which MLFLOW_TRACKING_URI names without a server answers; MLflow retries for minutes."""

from __future__ import annotations

from magic141.errors import first_line
from magic141.urls import without_credentials

TIMEOUT_S = 10
MAX_REASON_CHARS = 200
KINDS = ("sqlite", "postgresql", "mysql", "mssql", "databricks")  # MLflow's own names; files are no longer among them
_WAITING = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mssql": "timeout"}


def database_trouble(variable: str, uri: str) -> str | None:
    """What is wrong with a store that is not behind http; None if it answers or is a file."""
    shown, kind = without_credentials(uri), uri.partition(":")[0].partition("+")[0]
    if kind not in KINDS:
        return (
            f"{variable} = {shown}: MLflow has no such store; expected one such as http://HOST:5000, "
            "sqlite:////FOLDER/mlflow.db or postgresql://USER@HOST/DATABASE"
        )
    if kind not in _WAITING:
        return None
    try:
        _connect(uri, _WAITING[kind])
    except ModuleNotFoundError as error:
        return f"{variable} = {shown}: its driver is not installed; uv pip install what has the module {error.name}"
    except Exception as error:  # every driver has exceptions of its own
        reason = first_line(without_credentials(str(error)), MAX_REASON_CHARS)
        return f"{variable} = {shown}: does not answer ({reason}); correct it, or unset {variable} to work without"
    return None


def _connect(uri: str, timeout: str) -> None:
    from sqlalchemy import create_engine  # half a second, which only databases cost

    engine = create_engine(uri, connect_args={timeout: TIMEOUT_S})
    try:
        engine.connect().close()
    finally:
        engine.dispose()
