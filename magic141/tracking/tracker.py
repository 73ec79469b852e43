"""The tracking store: opening runs, finding what was computed before, closing what died."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from magic141.artifacts import ArtifactRef
from magic141.frozen import UserError
from magic141.tracking.first_contact import require_answer
from magic141.tracking.paging import all_experiments
from magic141.tracking.registry import Registry, names_nothing, unless_there
from magic141.tracking.run_log import RunLog
from magic141.tracking.tags import (
    TAG_ARTIFACT,
    TAG_HEARTBEAT,
    TAG_HOST,
    TAG_KEY,
    TAG_KIND,
    TAG_PARENT,
    TAG_PID,
    TAG_REFRESH,
    TAG_REFRESHED,
    TAG_STAGE,
    TAG_STARTED,
    set_tags,
)
from magic141.urls import settle_credentials, without_credentials

# Many heartbeats, for a store that is away for a while and clocks that differ. A run that was taken for dead and is not
# gets its true status when it ends.
STALE_SECONDS = 15 * 60


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
        require_answer(self.uri)
        workspace.mkdir(parents=True, exist_ok=True)
        with _alone(workspace), _quiet_migrations():
            self.client = MlflowClient(self.uri)
        self.registry = Registry(self.client, self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; it is created at first use."""
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            root = f"{self.workspace}/mlflow-artifacts/{_slug(self.experiment)}"
            location = root if self.uri.startswith("sqlite:") else None
            with unless_there():
                self.client.create_experiment(self.experiment, artifact_location=location)
            found = self.client.get_experiment_by_name(self.experiment)
        return str(found.experiment_id)

    def start_parent(self, name: str, kind: str, tags: Mapping[str, str]) -> RunLog:
        """Opens the run of a whole pipeline (or evaluation); closes runs whose process has died."""
        self.close_stale()
        return self._start(name, {TAG_KIND: kind, **tags})

    def start_stage(
        self, stage: str, key: str, parent_id: str, tags: Mapping[str, str] | None = None, *, refresh: bool = False
    ) -> RunLog:
        """Opens a stage's child run; `refresh`: it makes again what may be there."""
        own = {TAG_KIND: "stage", TAG_STAGE: stage, TAG_KEY: key, TAG_PARENT: parent_id}
        asked = {TAG_REFRESH: parent_id} if refresh else {}
        return self._start(stage, {**own, **asked, **(tags or {})})

    def _start(self, name: str, tags: Mapping[str, str]) -> RunLog:
        process = {
            TAG_HOST: socket.gethostname(),
            TAG_PID: str(os.getpid()),
            TAG_STARTED: _process_start(os.getpid()),
            TAG_HEARTBEAT: f"{time.time():.0f}",
        }
        run = self.client.create_run(self.experiment_id, run_name=name, tags={**process, **tags})
        log = RunLog(self.client, run.info.run_id)
        log.keep_alive()
        return log

    def find_reusable(self, key: str, *, verify: bool = True) -> Reusable:
        """The newest finished run of this key, in any experiment, whose artifact still exists and matches its digest.

        Experiments share a workspace's artifacts: what one made again would be gone for the others.

        Args:
            key: stage key.
            verify: read the artifact and compare its digest; False only looks whether it is there (for a plan).
        """
        note = None
        everywhere = all_experiments(self.client)
        for run in self._search(f"tags.`{TAG_KEY}` = '{key}' and attributes.status = 'FINISHED'", within=everywhere):
            if TAG_ARTIFACT not in run.data.tags:
                continue
            ref = ArtifactRef.model_validate_json(run.data.tags[TAG_ARTIFACT])
            state = ref.state() if verify else "intact" if ref.path.is_dir() else "deleted"
            if state == "intact":
                return Reusable(ref)
            note = note or f"its artifact {ref.uri} was {state} behind the finished run {ref.run_id}: recomputed"
        return Reusable(None, note)

    def begun_refresh(self, stage: str, key: str) -> Run | None:
        """The newest run of a key if it is a refresh that is not over: no pipeline run that asked for it has finished.

        The same command, given again or retried, goes on with it instead of discarding what it has done.
        """
        newest = next(iter(self._search(f"tags.`{TAG_KEY}` = '{key}'", 1)), None)
        if newest is None or TAG_REFRESH not in newest.data.tags:
            return None
        asked = f"tags.`{TAG_REFRESHED}.{stage}` = '{newest.info.run_id}'"
        return None if self._search(f"{asked} and attributes.status = 'FINISHED'", 1) else newest

    def records(self, stage: str, limit: int) -> list[dict[str, Any]]:
        """`stage.json` of the newest finished runs of a stage, newest first; those that cannot be read are left out."""
        finished = self._search(f"tags.`{TAG_STAGE}` = '{stage}' and attributes.status = 'FINISHED'", limit)
        return [record for run in finished if (record := self._record(run.info.run_id)) is not None]

    def _record(self, run_id: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(Path(self.client.download_artifacts(run_id, "stage.json")).read_text()))
        except (MlflowException, OSError, ValueError):
            return None

    def close_stale(self, *conditions: str) -> int:
        """Marks RUNNING runs of dead processes as KILLED; returns how many."""
        running = self._search(" and ".join(("attributes.status = 'RUNNING'", *conditions)))
        stale = [run for run in running if _is_dead(run)]
        for run in stale:
            self.client.set_terminated(run.info.run_id, "KILLED")
        return len(stale)

    def close_stale_stage(self, key: str) -> int:
        """`close_stale` for the runs of one stage key."""
        return self.close_stale(f"tags.`{TAG_KEY}` = '{key}'")

    def get_run(self, run_id: str) -> Run:
        """A run by id.

        Raises:
            UserError: there is no such run.
        """
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if not names_nothing(error):
                raise
            uri = without_credentials(self.uri)
            raise UserError(
                f"run {run_id}: no such run in {uri}; `mlflow ui --backend-store-uri {uri}` lists the runs"
            ) from None

    def pipeline_run(self, run_id: str) -> Run:
        """The run of a whole pipeline or evaluation that `run_id` is, or is a stage of."""
        run = self.get_run(run_id)
        return self.get_run(run.data.tags[TAG_PARENT]) if TAG_STAGE in run.data.tags else run

    def artifact_of(self, stage_run: Run) -> ArtifactRef:
        """The artifact that a finished stage run made."""
        return ArtifactRef.model_validate_json(stage_run.data.tags[TAG_ARTIFACT])

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

    def set_artifact(self, parent_id: str, ref: ArtifactRef, *, reused: bool, refreshed: bool = False) -> None:
        """Notes on the parent run which artifact a stage contributes, and whether it was there before."""
        tags = {f"{TAG_ARTIFACT}.{ref.stage}": ref.model_dump_json()}
        if reused:
            tags[f"reused.{ref.stage}"] = ref.run_id
        if refreshed:
            tags[f"{TAG_REFRESHED}.{ref.stage}"] = ref.run_id
        set_tags(self.client, parent_id, tags)

    def _search(self, condition: str, limit: int = 50, within: Sequence[str] = ()) -> list[Run]:
        return list(
            self.client.search_runs(
                within or [self.experiment_id], condition, max_results=limit, order_by=["attributes.start_time DESC"]
            )
        )


def tracking_uri(workspace: Path) -> str:
    """The store: MLFLOW_TRACKING_URI, or a SQLite file in the workspace."""
    settle_credentials("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(workspace)


def default_uri(workspace: Path) -> str:
    """The workspace's own store."""
    return f"sqlite:///{workspace}/mlflow.db"


def store_exists(workspace: Path) -> bool:
    """Whether there is something to ask; a plan must not create a store."""
    uri = tracking_uri(workspace)
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def open_store(workspace: Path) -> Tracker:
    """The store that earlier runs are looked up in, by their ids or their registered models.

    Raises:
        UserError: there is none.
    """
    if not store_exists(workspace):
        where = without_credentials(tracking_uri(workspace))
        raise UserError(f"there are no runs in {where}; point --workspace to the folder of your runs")
    return Tracker(workspace, "magic141")


def _alone(workspace: Path) -> AbstractContextManager[object]:
    """Two processes that create a store at once break it; one that nobody may write to is there already."""
    return FileLock(workspace / ".store.lock") if os.access(workspace, os.W_OK) else nullcontext()


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


def _slug(name: str) -> str:
    return re.sub(r"[^\w\-]", "_", name, flags=re.ASCII)


def _process_start(pid: int) -> str:
    return f"{psutil.Process(pid).create_time():.0f}"


def _is_dead(run: Run) -> bool:
    """Whether a run's process is gone: asked of this machine at once, of others by a heartbeat that has stopped."""
    tags = run.data.tags
    if tags.get(TAG_HOST) != socket.gethostname() or TAG_PID not in tags:
        return TAG_HEARTBEAT in tags and time.time() - float(tags[TAG_HEARTBEAT]) > STALE_SECONDS
    try:
        return abs(float(_process_start(int(tags[TAG_PID]))) - float(tags.get(TAG_STARTED, "0"))) > 2
    except psutil.NoSuchProcess:
        return True
