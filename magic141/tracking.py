"""The one user of MLflow: runs, reuse, metrics, media, lineage, registry. Bound to explicit run ids throughout."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import psutil
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from magic141.artifacts import ArtifactRef
from magic141.frozen import UserError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Run", "RunLog", "Tracker", "store_exists", "tracking_uri"]

Status = Literal["FINISHED", "FAILED", "KILLED"]
TAG_KEY, TAG_STAGE, TAG_ARTIFACT, TAG_MODEL = (f"magic141.{n}" for n in ("key", "stage", "artifact", "model_id"))
TAG_KIND, TAG_HOST, TAG_PID, TAG_STARTED = (f"magic141.{n}" for n in ("kind", "host", "pid", "process_started"))
TAG_PARENT = "mlflow.parentRunId"
FLUSH_METRICS, FLUSH_SECONDS = 200, 2.0
MAX_PARAM_CHARS, MAX_TAG_CHARS, MAX_BATCH = 6000, 4900, 100


@dataclass(frozen=True)
class Reusable:
    """The answer to 'was this key computed before?'.

    Attributes:
        ref: the artifact, still there and unaltered; None when there is none.
        note: what happened to a result that was there, if something did.
    """

    ref: ArtifactRef | None
    note: str | None = None


class Tracker:
    """One experiment in one tracking store.

    Args:
        workspace: folder of the default store, `mlflow.db`; MLFLOW_TRACKING_URI overrides it.
        experiment: name; created when it is new.
    """

    def __init__(self, workspace: Path, experiment: str) -> None:
        self.uri = tracking_uri(workspace)
        self.workspace = workspace
        self.experiment = experiment
        workspace.mkdir(parents=True, exist_ok=True)
        with _quiet_migrations():
            self.client = MlflowClient(self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; it is created at first use."""
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        root = f"{self.workspace}/mlflow-artifacts/{_slug(self.experiment)}"
        location = root if self.uri.startswith("sqlite:") else None
        return str(self.client.create_experiment(self.experiment, artifact_location=location))

    def start_parent(self, name: str, kind: str, tags: Mapping[str, str]) -> RunLog:
        """Opens the run of a whole pipeline (or evaluation); closes those whose process has died."""
        self.close_stale(f"tags.`{TAG_KIND}` != 'stage'")
        return self._start(name, {TAG_KIND: kind, **tags})

    def start_stage(self, stage: str, key: str, parent_id: str) -> RunLog:
        """Opens a stage's child run."""
        return self._start(stage, {TAG_KIND: "stage", TAG_STAGE: stage, TAG_KEY: key, TAG_PARENT: parent_id})

    def _start(self, name: str, tags: Mapping[str, str]) -> RunLog:
        process = {TAG_HOST: socket.gethostname(), TAG_PID: str(os.getpid()), TAG_STARTED: _process_start(os.getpid())}
        run = self.client.create_run(self.experiment_id, run_name=name, tags={**process, **tags})
        return RunLog(self.client, run.info.run_id)

    def find_reusable(self, key: str, *, verify: bool = True) -> Reusable:
        """The newest finished run of this key whose artifact still exists and matches its digest.

        Args:
            key: stage key.
            verify: read the artifact and compare its digest; False only looks whether it is there (for a plan).
        """
        note = None
        for run in self._search(f"tags.`{TAG_KEY}` = '{key}' and attributes.status = 'FINISHED'"):
            if TAG_ARTIFACT not in run.data.tags:
                continue
            ref = ArtifactRef.model_validate_json(run.data.tags[TAG_ARTIFACT])
            state = ref.state() if verify else "intact" if ref.path.is_dir() else "deleted"
            if state == "intact":
                return Reusable(ref)
            note = note or f"its artifact {ref.uri} was {state} behind the finished run {ref.run_id}: recomputed"
        return Reusable(None, note)

    def last_record(self, stage: str) -> dict[str, Any] | None:
        """`stage.json` of the newest finished run of a stage, if it can be read."""
        for run in self._search(f"tags.`{TAG_STAGE}` = '{stage}' and attributes.status = 'FINISHED'", limit=1):
            try:
                return dict(json.loads(Path(self.client.download_artifacts(run.info.run_id, "stage.json")).read_text()))
            except (MlflowException, OSError, ValueError):
                return None
        return None

    def close_stale(self, condition: str) -> int:
        """Marks RUNNING runs of dead processes of this host as KILLED; returns how many."""
        stale = [run for run in self._search(f"{condition} and attributes.status = 'RUNNING'") if _is_dead(run)]
        for run in stale:
            self.client.set_terminated(run.info.run_id, "KILLED")
        return len(stale)

    def close_stale_stage(self, key: str) -> int:
        """`close_stale` for the child runs of one stage key."""
        return self.close_stale(f"tags.`{TAG_KEY}` = '{key}'")

    def get_run(self, run_id: str) -> Run:
        """A run by id.

        Raises:
            UserError: there is no such run.
        """
        try:
            return self.client.get_run(run_id)
        except MlflowException:
            raise UserError(
                f"run {run_id}: no such run in {self.uri}; `mlflow ui --backend-store-uri {self.uri}` lists the runs"
            ) from None

    def pipeline_run(self, run_id: str) -> Run:
        """The parent run that `run_id` is, or is a stage of."""
        run = self.get_run(run_id)
        return self.get_run(run.data.tags[TAG_PARENT]) if TAG_PARENT in run.data.tags else run

    def artifacts_of(self, parent: Run) -> dict[str, ArtifactRef]:
        """Every stage's artifact in a pipeline run, made there or reused."""
        prefix = f"{TAG_ARTIFACT}."
        refs = (ArtifactRef.model_validate_json(v) for t, v in parent.data.tags.items() if t.startswith(prefix))
        return {ref.stage: ref for ref in refs}

    def read_file(self, run_id: str, name: str) -> str:
        """A text file that was logged with a run."""
        try:
            return Path(self.client.download_artifacts(run_id, name)).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            raise UserError(f"run {run_id}: has no file {name}; give the id of a run of `magic141 run`") from None

    def set_artifact(self, parent_id: str, ref: ArtifactRef, *, reused: bool) -> None:
        """Notes on the parent run which artifact a stage contributes, and whether it was there before."""
        tags = {f"{TAG_ARTIFACT}.{ref.stage}": ref.model_dump_json()}
        if reused:
            tags[f"reused.{ref.stage}"] = ref.run_id
        _tag(self.client, parent_id, tags)

    def register_model(self, name: str, ref: ArtifactRef, alias: str, tags: Mapping[str, str]) -> str:
        """The registered version of an artifact (made once per run), with the alias pointing at it."""
        versions = self._versions(name)
        if versions is None:
            self.client.create_registered_model(name, description="image-to-video models made by magic141")
        found = [v for v in versions or () if v.run_id == ref.run_id]
        version = found[0] if found else self._new_version(name, ref, tags)
        self.client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)

    def _new_version(self, name: str, ref: ArtifactRef, tags: Mapping[str, str]) -> ModelVersion:
        source = ref.uri
        if not self.uri.startswith("sqlite:"):  # a server refuses folders outside its own artifact root
            self.client.log_artifacts(ref.run_id, ref.uri, "model")
            source = f"runs:/{ref.run_id}/model"
        own = {**tags, TAG_ARTIFACT: ref.model_dump_json()}
        return self.client.create_model_version(name, source=source, run_id=ref.run_id, tags=own)

    def _versions(self, name: str) -> list[ModelVersion] | None:
        try:
            self.client.get_registered_model(name)
        except MlflowException:
            return None
        return list(self.client.search_model_versions(f"name = '{name}'"))

    def resolve_model(self, uri: str) -> ArtifactRef:
        """The artifact behind `models:/name@alias` or `models:/name/version`.

        Raises:
            UserError: the URI is malformed, or names nothing.
        """
        match = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))", uri)
        if match is None:
            raise UserError(f"model {uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        name, alias, version = match.groups()
        try:
            if alias:
                found = self.client.get_model_version_by_alias(name, alias)
            else:
                found = self.client.get_model_version(name, version)
            return ArtifactRef.model_validate_json(found.tags[TAG_ARTIFACT])
        except (MlflowException, KeyError):
            raise UserError(f"model {uri}: not in the registry {self.uri}; {self._known_models()}") from None

    def _known_models(self) -> str:
        names = [f"models:/{m.name}@{alias}" for m in self.client.search_registered_models() for alias in m.aliases]
        return f"there are: {', '.join(names)}" if names else "it is empty: `magic141 run` publishes a model"

    def _search(self, condition: str, limit: int = 50) -> list[Run]:
        return list(
            self.client.search_runs(
                [self.experiment_id], condition, max_results=limit, order_by=["attributes.start_time DESC"]
            )
        )


class RunLog:
    """Writes to one run. Metrics are sent in batches; `close` sends the rest and the truthful status."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Figures at a step."""
        now = int(time.time() * 1000)
        self._pending += [Metric(metric_name(name), float(value), now, step) for name, value in values.items()]
        if len(self._pending) >= FLUSH_METRICS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends the metrics that wait."""
        pending, self._pending, self._flushed = self._pending, [], time.monotonic()
        for start in range(0, len(pending), 1000):
            self.client.log_batch(self.run_id, metrics=pending[start : start + 1000])

    def params(self, values: Mapping[str, object]) -> None:
        """The fields that people compare between runs, flattened to `section.field`."""
        flat = [Param(name, str(value)[:MAX_PARAM_CHARS]) for name, value in _flatten(values)]
        for start in range(0, len(flat), MAX_BATCH):
            self.client.log_batch(self.run_id, params=flat[start : start + MAX_BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        """Facts about the run."""
        _tag(self.client, self.run_id, values)

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
        self.client.log_text(self.run_id, content, name)

    def inputs(self, refs: Iterable[ArtifactRef], datasets: Sequence[str], context: str) -> None:
        """Lineage: artifacts of the stages named in `datasets` as datasets, models as models."""
        refs = list(refs)
        data = [_dataset(ref, context) for ref in refs if ref.stage in datasets]
        ids = [self.client.get_run(ref.run_id).data.tags.get(TAG_MODEL) for ref in refs if ref.stage not in datasets]
        models = [LoggedModelInput(model_id) for model_id in ids if model_id]
        if data or models:
            self.client.log_inputs(self.run_id, datasets=data, models=models)

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

    def close(self, status: Status) -> None:
        """Ends the run."""
        self.flush()
        self.client.set_terminated(self.run_id, status)


def tracking_uri(workspace: Path) -> str:
    """The store: MLFLOW_TRACKING_URI, or a SQLite file in the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace}/mlflow.db"


def store_exists(workspace: Path) -> bool:
    """Whether there is something to ask; a plan must not create a store."""
    uri = tracking_uri(workspace)
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def metric_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_ - . space : /`."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", " at "), flags=re.ASCII)


@contextmanager
def _quiet_migrations() -> Iterator[None]:
    """Creating a store logs every migration step; nobody needs them."""
    logger = logging.getLogger("mlflow.store.db.utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _tag(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    whole = {name: v if name.startswith(TAG_ARTIFACT) else v[:MAX_TAG_CHARS] for name, v in values.items()}
    tags = [RunTag(name, value) for name, value in whole.items()]
    for start in range(0, len(tags), MAX_BATCH):
        client.log_batch(run_id, tags=tags[start : start + MAX_BATCH])


def _dataset(ref: ArtifactRef, context: str) -> DatasetInput:
    source = json.dumps({"uri": ref.uri})
    return DatasetInput(
        Dataset(ref.stage, ref.digest[:36], "local", source), [InputTag("mlflow.data.context", context)]
    )


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _slug(name: str) -> str:
    return re.sub(r"[^\w\-]", "_", name, flags=re.ASCII)


def _process_start(pid: int) -> str:
    return f"{psutil.Process(pid).create_time():.0f}"


def _is_dead(run: Run) -> bool:
    tags = run.data.tags
    if tags.get(TAG_HOST) != socket.gethostname() or TAG_PID not in tags:
        return False
    try:
        return abs(float(_process_start(int(tags[TAG_PID]))) - float(tags.get(TAG_STARTED, "0"))) > 2
    except psutil.NoSuchProcess:
        return True
