"""Reads text files that were logged with a run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from magic141.tracking.registry import names_nothing


def read_text(client: MlflowClient, run: Run, name: str) -> str | None:
    """The text of a file at the root of a run's artifacts; None if there is no such file.

    By the artifacts' address: by the run's id, MLflow asks the store for the run and for its models first.

    Raises:
        MlflowException, OSError: if the store fails to answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = download_artifacts(
                artifact_uri=f"{run.info.artifact_uri}/{name}", dst_path=folder, tracking_uri=client.tracking_uri
            )
            return Path(file).read_text(encoding="utf-8")
        except (MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and names_nothing(error):
                return None
            if any(file.path == name for file in client.list_artifacts(run.info.run_id)):
                raise
            return None
