"""The tags that link runs, models and artifacts."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import RunTag

TAG_KEY, TAG_STAGE, TAG_ARTIFACT, TAG_MODEL = (f"magic141.{n}" for n in ("key", "stage", "artifact", "model_id"))
TAG_KIND, TAG_HOST, TAG_PID, TAG_STARTED = (f"magic141.{n}" for n in ("kind", "host", "pid", "process_started"))
TAG_PROCESSES = "magic141.processes"  # the scope in which TAG_PID identifies the process
TAG_HEARTBEAT = "magic141.heartbeat"  # seconds since 1970
TAG_PROMOTIONS = "magic141.promotions"
# of a run on an earlier one's results: that one, and the first stage that is its own
TAG_ORIGIN, TAG_FIRST = "origin_run", "first_stage"
TAG_PUBLISHER = "pipeline_run"  # on versions: the pipeline run that published it last
TAG_ANNOUNCED = "magic141.announced"  # on versions: the pipeline run whose event told of it
PIPELINE, EVALUATION, SWEEP = "pipeline", "evaluation", "sweep"  # values of TAG_KIND
TAG_REFRESH = "magic141.refresh"  # on stage runs
TAG_PARENT = "mlflow.parentRunId"
MAX_TAG_CHARS, MAX_BATCH = 4900, 100


def cut(values: Mapping[str, str]) -> dict[str, str]:
    """Tags of the length that MLflow accepts; an artifact's record is never cut."""
    return {name: v if name.startswith(TAG_ARTIFACT) else v[:MAX_TAG_CHARS] for name, v in values.items()}


def set_tags(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Sets tags in batches, cut."""
    tags = [RunTag(name, value) for name, value in cut(values).items()]
    for start in range(0, len(tags), MAX_BATCH):
        client.log_batch(run_id, tags=tags[start : start + MAX_BATCH])
