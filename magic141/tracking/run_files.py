"""Reads text files that were logged with a run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from magic141.tracking.registry import names_nothing


def read_text(client: MlflowClient, run_id: str, name: str) -> str | None:
    """The text of a file at the root of a run's artifacts; None if there is no such file or run.

    Raises:
        MlflowException, OSError: if the store fails to answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
        except (MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and names_nothing(error):
                return None
            if any(file.path == name for file in client.list_artifacts(run_id)):
                raise
            return None
