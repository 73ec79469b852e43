"""Writes to one MLflow run: metrics, params, media, lineage, and its final status."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from magic141.artifacts.references import ArtifactRef, flatten
from magic141.tracking.registry import look_up
from magic141.tracking.tags import MAX_BATCH, TAG_ARTIFACT, TAG_HEARTBEAT, TAG_MODEL, set_tags
from magic141.urls import without_credentials

if TYPE_CHECKING:
    import numpy as np

Status = Literal["FINISHED", "FAILED", "KILLED"]
FLUSH_METRICS, FLUSH_SECONDS = 200, 2.0
MAX_PARAM_CHARS = 6000
MAX_METRICS = 1000  # in one request
HEARTBEAT_SECONDS = 60.0


class RunLog:
    """Writes to one run. Metrics are sent in batches; `close` sends the rest and the final status."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()
        self._closed = threading.Event()

    def keep_alive(self) -> None:
        """Sends a heartbeat to the store every minute until `close`, however little this process logs.

        System metrics cannot serve for this: parent runs have none, and MLflow's monitor stops at a failed request.
        """
        threading.Thread(target=self._beat, name=f"heartbeat-{self.run_id}", daemon=True).start()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            with suppress(MlflowException):  # the store may answer again in a minute
                self.client.set_tag(self.run_id, TAG_HEARTBEAT, f"{time.time():.0f}")

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Metrics at a step."""
        now = int(time.time() * 1000)
        self._pending += [Metric(metric_name(name), float(value), now, step) for name, value in values.items()]
        if len(self._pending) >= FLUSH_METRICS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            with suppress(MlflowException):  # tried again with the next metrics, and at the end
                self.flush()

    def flush(self) -> None:
        """Sends the metrics that are waiting."""
        self._flushed = time.monotonic()
        while batch := self._pending[:MAX_METRICS]:
            self.client.log_batch(self.run_id, metrics=batch)
            del self._pending[: len(batch)]  # only now, so that metrics which the store did not accept are sent again

    def params(self, values: Mapping[str, object]) -> None:
        """The fields that people compare between runs, flattened to `section.field`."""
        flat = [Param(name, without_credentials(str(value))[:MAX_PARAM_CHARS]) for name, value in flatten(values)]
        for start in range(0, len(flat), MAX_BATCH):
            self.client.log_batch(self.run_id, params=flat[start : start + MAX_BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        """Facts about the run."""
        set_tags(self.client, self.run_id, {name: without_credentials(value) for name, value in values.items()})

    def image(self, key: str, image: np.ndarray[Any, Any], step: int = 0) -> None:
        """A picture, uint8 [H, W, 3]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.client.log_image(self.run_id, image, key=key, step=step, synchronous=True)

    def file(self, path: Path, folder: str = "") -> None:
        """A file."""
        self.client.log_artifact(self.run_id, str(path), folder or None)

    def text(self, content: str, name: str) -> None:
        """A text file with the given content."""
        self.client.log_text(self.run_id, without_credentials(content), name)

    def table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """A table, given by columns, that MLflow shows as a table."""
        self.client.log_table(self.run_id, {column: list(values) for column, values in columns.items()}, name)

    def inputs(self, refs: Iterable[ArtifactRef], datasets: Sequence[str], context: str) -> None:
        """Lineage: artifacts of the stages named in `datasets` as datasets, models as models."""
        refs = list(refs)
        data = [_dataset(ref, context) for ref in refs if ref.stage in datasets]
        ids = [self._model_of(ref) for ref in refs if ref.stage not in datasets]
        models = [LoggedModelInput(model_id) for model_id in ids if model_id]
        if data or models:
            self.client.log_inputs(self.run_id, datasets=data, models=models)

    def _model_of(self, ref: ArtifactRef) -> str | None:
        """The logged model of an artifact; None if its run was deleted permanently, which leaves the artifact."""
        run = look_up(lambda: self.client.get_run(ref.run_id))
        return run.data.tags.get(TAG_MODEL) if run else None

    def model(self, ref: ArtifactRef, experiment_id: str, kind: str) -> None:
        """Lineage: this run made a model whose weights are the artifact."""
        tags = {TAG_ARTIFACT: ref.model_dump_json()}
        logged = self.client.create_logged_model(experiment_id, ref.stage, self.run_id, tags=tags, model_type=kind)
        self.client.finalize_logged_model(logged.model_id, "READY")
        self.client.log_outputs(self.run_id, models=[LoggedModelOutput(logged.model_id, step=0)])
        self.tags({TAG_MODEL: logged.model_id})

    def artifact(self, ref: ArtifactRef) -> None:
        """The run's result: what `find_reusable` looks for."""
        self.tags({TAG_ARTIFACT: ref.model_dump_json()})

    @contextmanager
    def watching_the_machine(self) -> Iterator[None]:
        """Inside, CPU, memory, disk, network and GPU use are logged as `system/…`, every ten seconds."""
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.client.tracking_uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def close(self, status: Status) -> None:
        """Sends the remaining metrics and ends the run."""
        self._closed.set()
        self.flush()
        self.client.set_terminated(self.run_id, status)


@contextmanager
def closing(run: RunLog) -> Iterator[None]:
    """Closes a run with what really happened."""
    try:
        yield
    except Exception:
        run.close("FAILED")
        raise
    except BaseException:
        run.close("KILLED")
        raise
    run.close("FINISHED")


def metric_name(name: str) -> str:
    """The name with characters that MLflow rejects replaced; it allows letters, digits and `_ - . space : /`."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", " at "), flags=re.ASCII)


def _dataset(ref: ArtifactRef, context: str) -> DatasetInput:
    source = json.dumps({"uri": ref.uri})
    return DatasetInput(
        Dataset(ref.stage, ref.digest[:36], "local", source), [InputTag("mlflow.data.context", context)]
    )
