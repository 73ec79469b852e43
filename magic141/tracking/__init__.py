"""The only package that uses MLflow, always with explicit run ids: nothing depends on an active run."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the command line names the run
os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"  # a record that could not be written would be lost in silence

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from magic141.tracking.fetched import absence, local_folder
from magic141.tracking.references import ArtifactName, References, Work, references, unasked_stores
from magic141.tracking.registry import parse_uri
from magic141.tracking.reuse import begun_refresh, find_reusable
from magic141.tracking.run_log import RunLog, closing
from magic141.tracking.store_address import store_exists
from magic141.tracking.stores import STORES
from magic141.tracking.tags import TAG_ANNOUNCED, TAG_PARENT, TAG_PUBLISHER
from magic141.tracking.tracker import Tracker, open_store

__all__ = [
    "STORES",
    "TAG_ANNOUNCED",
    "TAG_PARENT",
    "TAG_PUBLISHER",
    "ArtifactName",
    "ModelVersion",
    "References",
    "Run",
    "RunLog",
    "Tracker",
    "Work",
    "absence",
    "begun_refresh",
    "closing",
    "find_reusable",
    "local_folder",
    "open_store",
    "parse_uri",
    "references",
    "store_exists",
    "unasked_stores",
]
