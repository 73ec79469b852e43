"""The tracking store: opens runs, finds earlier ones, closes those whose process has died."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from magic141.artifacts.references import ArtifactRef
from magic141.errors import UserError, first_few
from magic141.tracking.first_contact import require_answer
from magic141.tracking.liveness import is_dead, process_tags
from magic141.tracking.paging import PAGE, all_experiments, every
from magic141.tracking.registry import Registry, look_up, unless_there
from magic141.tracking.relocation import FILES, settle_place
from magic141.tracking.run_files import read_text
from magic141.tracking.run_log import RunLog
from magic141.tracking.store_address import default_uri, is_database, store_exists, tracking_uri
from magic141.tracking.store_creation import creating
from magic141.tracking.stores import note_store, store_name
from magic141.tracking.tags import (
    SWEEP,
    TAG_ARTIFACT,
    TAG_KEY,
    TAG_KIND,
    TAG_PARENT,
    TAG_REFRESH,
    TAG_STAGE,
    cut,
    set_tags,
)
from magic141.urls import without_credentials

FEWEST_DIGITS = 6  # of a run's id, for its beginning to be taken for it


class Tracker:
    """One experiment in one tracking store.

    Args:
        workspace: folder of the default store, `mlflow.db`, as an absolute path, since it is recorded;
            MLFLOW_TRACKING_URI overrides it.
        experiment: its name; created if it is new.
    """

    def __init__(self, workspace: Path, experiment: str) -> None:
        assert workspace.is_absolute(), workspace
        self.uri = tracking_uri(workspace)
        self.workspace = workspace
        self.experiment = experiment
        require_answer(self.uri)
        workspace.mkdir(parents=True, exist_ok=True)
        with creating(workspace):
            self.client = MlflowClient(self.uri)
            if store_name(self.uri) == store_name(default_uri(workspace)):
                settle_place(workspace / "mlflow.db", workspace, self._is_busy)
            else:
                note_store(workspace, self.uri)
        self.registry = Registry(self.client, self.uri)

    def _is_busy(self) -> bool:
        """Whether one of our runs in the store is still at work; others have no files of a workspace."""
        running = f"attributes.status = 'RUNNING' and tags.`{TAG_KIND}` != ''"
        return not all(is_dead(run) for run in self.search_all(running, everywhere=True))

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; it is created at first use.

        Raises:
            UserError: if it was deleted in MLflow, which does not let another experiment take its name.
        """
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            root = f"{self.workspace}{FILES}{_slug(self.experiment)}"
            location = root if is_database(self.uri) else None  # a server has a root of its own
            with unless_there():
                self.client.create_experiment(self.experiment, artifact_location=location)
            found = self.client.get_experiment_by_name(self.experiment)
        assert found is not None
        if found.lifecycle_stage != "active":
            raise UserError(
                f"experiment = {self.experiment}: it was deleted in MLflow; restore it there (`mlflow experiments "
                "restore`), or use another with --set experiment=NAME"
            )
        return str(found.experiment_id)

    def _find_experiment(self) -> str | None:
        """The experiment's id if it exists; does not create it."""
        found = self.client.get_experiment_by_name(self.experiment)
        return str(found.experiment_id) if found and found.lifecycle_stage == "active" else None

    def start_parent(self, name: str, kind: str, tags: Mapping[str, str]) -> RunLog:
        """Opens the run of a whole pipeline (or evaluation), after closing runs whose process has died."""
        self.close_stale()
        return self._start(name, {TAG_KIND: kind, **tags})

    def start_stage(
        self, stage: str, key: str, parent_id: str, tags: Mapping[str, str] | None = None, *, refresh: bool = False
    ) -> RunLog:
        """Opens a stage's child run; `refresh`: it recomputes a result that may exist."""
        own = {TAG_KIND: "stage", TAG_STAGE: stage, TAG_KEY: key, TAG_PARENT: parent_id}
        asked = {TAG_REFRESH: parent_id} if refresh else {}
        return self._start(stage, {**own, **asked, **(tags or {})})

    def _start(self, name: str, tags: Mapping[str, str]) -> RunLog:
        run = self.client.create_run(self.experiment_id, run_name=name, tags=cut({**process_tags(), **tags}))
        log = RunLog(self.client, run.info.run_id)
        log.keep_alive()
        return log

    def records(self, stage: str, limit: int) -> list[dict[str, Any]]:
        """`stage.json` of the newest finished runs of a stage, newest first; unreadable ones are left out."""
        finished = self.search(f"tags.`{TAG_STAGE}` = '{stage}' and attributes.status = 'FINISHED'", limit)
        return [record for run in finished if (record := self._record(run)) is not None]

    def _record(self, run: Run) -> dict[str, Any] | None:
        try:
            text = read_text(self.client, run, "stage.json")
            return None if text is None else dict(json.loads(text))
        except (MlflowException, OSError, ValueError):
            return None

    def close_stale(self, key: str | None = None) -> None:
        """Marks RUNNING runs of dead processes as KILLED, all of them or those of one stage key."""
        of_key = f" and tags.`{TAG_KEY}` = '{key}'" if key else ""
        for run in list(filter(is_dead, self.search_all(f"attributes.status = 'RUNNING'{of_key}"))):
            self.client.set_terminated(run.info.run_id, "KILLED")

    def get_run(self, run_id: str) -> Run:
        """A run by its id, or by the beginning of it if no other run's begins so.

        Raises:
            UserError: there is no such run, or more than one.
        """
        run = look_up(lambda: self.client.get_run(run_id)) or self._beginning_with(run_id)
        if run is None:
            raise UserError(f"run {run_id}: no such run in {without_credentials(self.uri)}; `magic141 runs` lists them")
        return run

    def _beginning_with(self, start: str) -> Run | None:
        if not re.fullmatch(rf"[0-9a-f]{{{FEWEST_DIGITS},31}}", start):
            return None
        condition = f"attributes.run_id LIKE '{start}%' and tags.`{TAG_KIND}` != ''"
        found = self.search(condition, everywhere=True) or self.search(condition, everywhere=True, deleted=True)
        if len(found) > 1:
            known = first_few([f"{run.info.run_id} ({run.info.run_name})" for run in found], 3)
            raise UserError(f"run {start}: several ids begin so: {known}; give more of it")
        return found[0] if found else None

    def pipeline_run(self, run_id: str) -> Run:
        """The run `run_id` if it is a pipeline or evaluation; if it is a stage, the run it belongs to.

        Raises:
            UserError: there is no such run, or it is a sweep.
        """
        run = self.get_run(run_id)
        if run.data.tags.get(TAG_KIND) == SWEEP:
            members = first_few([f"{member.info.run_id} ({member.info.run_name})" for member in self.children(run)], 3)
            raise UserError(f"run {run_id}: a sweep; give one of its members: {members or 'it has none'}")
        return self.get_run(run.data.tags[TAG_PARENT]) if TAG_STAGE in run.data.tags else run

    def members(self, run_id: str) -> list[Run]:
        """The members of a sweep, oldest first; of anything else, `pipeline_run`."""
        run = self.get_run(run_id)
        return self.children(run)[::-1] if run.data.tags.get(TAG_KIND) == SWEEP else [self.pipeline_run(run_id)]

    def require_ended(self, run: Run) -> None:
        """Raises UserError if a run is still at work."""
        if run.info.status == "RUNNING" and not is_dead(run):
            raise UserError(f"run {run.info.run_id} ({run.info.run_name}): is at work; stop it first, or wait")

    def delete(self, run: Run) -> None:
        """Marks a run as deleted; MLflow can restore it."""
        self.client.delete_run(run.info.run_id)

    def children(self, run: Run) -> list[Run]:
        """The runs directly below a run, newest first: a sweep's members, or a pipeline's stages."""
        return list(self.search_all(f"tags.`{TAG_PARENT}` = '{run.info.run_id}'", everywhere=True))

    def artifacts_of(self, parent: Run) -> dict[str, ArtifactRef]:
        """Every stage's artifact in a pipeline run, made there or reused."""
        prefix = f"{TAG_ARTIFACT}."
        refs = (ArtifactRef.model_validate_json(v) for t, v in parent.data.tags.items() if t.startswith(prefix))
        return {ref.stage: ref for ref in refs}

    def read_file(self, run_id: str, name: str) -> str:
        """A text file that was logged with a run.

        Raises:
            UserError: if the run has no such file.
            MlflowException, OSError: if the store fails to answer.
        """
        run = look_up(lambda: self.client.get_run(run_id))
        text = None if run is None else read_text(self.client, run, name)
        if text is None:
            raise UserError(f"run {run_id}: has no file {name}; give the id of a run of `magic141 run`")
        return text

    def stored_config(self, run: Run) -> dict[str, Any]:
        """The config that a pipeline run ran with, as plain values; raises as `read_file` does."""
        return dict(yaml.safe_load(self.read_file(run.info.run_id, "config.yaml")))

    def set_artifact(self, parent_id: str, ref: ArtifactRef, *, reused: bool) -> None:
        """Records on the parent run which artifact a stage contributes, and whether it was reused."""
        tags = {f"{TAG_ARTIFACT}.{ref.stage}": ref.model_dump_json()}
        if reused:
            tags[f"reused.{ref.stage}"] = ref.run_id
        set_tags(self.client, parent_id, tags)

    def search(self, condition: str, limit: int = 50, *, everywhere: bool = False, deleted: bool = False) -> list[Run]:
        """The newest runs, newest first, of this experiment or (`everywhere`) of all; `deleted`: those, too."""
        size = min(limit, PAGE)
        return list(islice(self.search_all(condition, everywhere=everywhere, deleted=deleted, page_size=size), limit))

    def search_all(
        self, condition: str, *, everywhere: bool = False, deleted: bool = False, page_size: int = 50
    ) -> Iterator[Run]:
        """All runs, newest first; pages are requested as needed."""
        view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
        within = all_experiments(self.client, view) if everywhere else list(filter(None, [self._find_experiment()]))
        if within:
            order = ["attributes.start_time DESC"]
            search = partial(self.client.search_runs, within, condition, view, order_by=order)
            yield from every(search, page_size)


def open_store(workspace: Path) -> Tracker:
    """Opens the store to look up earlier runs, by their ids or their registered models.

    Raises:
        UserError: if there is no store.
    """
    if not store_exists(workspace):
        where = without_credentials(tracking_uri(workspace))
        raise UserError(f"there are no runs in {where}; point --workspace to the folder of your runs")
    return Tracker(workspace, "magic141")


def _slug(name: str) -> str:
    return re.sub(r"[^\w\-]", "_", name, flags=re.ASCII)
