"""Fetches published models that were made on another machine from the tracking server, and keeps a checked copy."""

from __future__ import annotations

import socket
from pathlib import Path

from filelock import FileLock
from mlflow.exceptions import MlflowException

from magic141.artifacts.digests import digest_folder
from magic141.artifacts.publication import publish, staging
from magic141.artifacts.references import ArtifactRef
from magic141.errors import UserError, first_line
from magic141.tracking.registry import MODEL_FOLDER, look_up
from magic141.tracking.tags import TAG_HOST
from magic141.tracking.tracker import Tracker
from magic141.urls import without_credentials


def local_folder(tracker: Tracker, ref: ArtifactRef) -> Path:
    """The folder of a published model: the original, or a copy in the workspace, fetched from the tracking server.

    Raises:
        UserError: if it is neither on this machine nor on a server, or not what was published.
    """
    state = ref.state()
    if state == "altered":
        raise UserError(f"{ref.uri} was altered after it had been published; `magic141 run` makes it again")
    if state == "intact":
        return ref.path
    copy = tracker.workspace / "fetched" / ref.digest[:16]
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.parent / f".{copy.name}.lock", fallback_to_soft=False):
        if ref.model_copy(update={"uri": str(copy)}).state() != "intact":
            _fetch(tracker, ref, copy)
    return copy


def _fetch(tracker: Tracker, ref: ArtifactRef, copy: Path) -> None:
    """Downloads what `Registry.register` has uploaded, and checks its digest."""
    if not tracker.registry.keeps_models:
        raise UserError(absence(tracker, ref))
    server = without_credentials(tracker.uri)
    with staging(copy) as folder:
        try:
            model = Path(tracker.client.download_artifacts(ref.run_id, MODEL_FOLDER, str(folder)))
        except (MlflowException, OSError) as error:
            reason = first_line(without_credentials(str(error)))
            raise UserError(f"{absence(tracker, ref)}; {server} gives no copy of it: {reason}") from error
        if (found := digest_folder(model, ref.volatile)) != ref.digest:
            raise UserError(
                f"{ref.uri} is not on this machine, and its copy on {server} has digest {found[:16]}, expected "
                f"{ref.digest[:16]}: it is not what was published; publish it again with `magic141 run`"
            )
        publish(model, copy)


def absence(tracker: Tracker, ref: ArtifactRef, again: str = "magic141 run") -> str:
    """Why an artifact's folder is not there, and what to do; `again` is the command that would make it anew."""
    if ref.state() == "closed":
        return f"{ref.uri} is not readable for this user; ask for the right to read it, or publish to a server"
    run = look_up(lambda: tracker.client.get_run(ref.run_id))  # MLflow's own gc may have purged it
    host = run.data.tags.get(TAG_HOST) if run else None
    if host in (None, socket.gethostname()):
        return f"{ref.uri} was deleted; `{again}` makes it again"
    return f"{ref.uri} is not on this machine: {host} made it; run this there, or share the workspace under that path"
