"""What was computed before: the result of a stage key that is still there, and refreshes that are not over."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

from mlflow.entities import Run

from magic141.artifacts import ArtifactRef
from magic141.tracking.tags import TAG_ARTIFACT, TAG_HOST, TAG_KEY, TAG_REFRESH
from magic141.tracking.tracker import Tracker


@dataclass(frozen=True)
class Reusable:
    """The answer to 'was this key computed before?'.

    Attributes:
        ref: the artifact, still there and unaltered; None when there is none.
        note: what happened to a result that was there, if something did.
    """

    ref: ArtifactRef | None
    note: str | None = None


def find_reusable(tracker: Tracker, stage: str, key: str, *, verify: bool = True) -> Reusable:
    """The newest result of this key, in any experiment, whose artifact still exists and matches its digest.

    Experiments share a workspace's artifacts: what one made again would be gone for the others. A store may be shared
    by workspaces, too: artifacts that this user cannot reach are passed over.

    Args:
        tracker: the store.
        stage: name of the stage.
        key: its key.
        verify: read the artifact and compare its digest; False only looks whether it is there (for a plan).
    """
    note = None
    for run, ref in _results(tracker, stage, key):
        state = _state(ref, verify)
        if state == "intact":
            return Reusable(ref)
        note = note or _lost(ref, state, run.data.tags.get(TAG_HOST))
    return Reusable(None, note)


def begun_refresh(tracker: Tracker, stage: str, key: str) -> Run | None:
    """The newest run of a key if it is a refresh that is not over: no finished pipeline run has its result.

    The same command, given again or retried, goes on with it instead of discarding what it has done.
    """
    newest = next(iter(tracker.search(f"tags.`{TAG_KEY}` = '{key}'", 1)), None)
    if newest is None or TAG_REFRESH not in newest.data.tags:
        return None
    taken = f"tags.`{TAG_ARTIFACT}.{stage}` LIKE '%{newest.info.run_id}%' and attributes.status = 'FINISHED'"
    return None if tracker.search(taken, 1, everywhere=True) else newest


def _results(tracker: Tracker, stage: str, key: str) -> Iterator[tuple[Run, ArtifactRef]]:
    """Results of a key, with a run that knows of them: first the runs that made one, newest first.

    Where those were deleted, pipeline runs that took the result over still have it, and gc leaves it to them.
    """
    finished = f"tags.`{TAG_KEY}` = '{key}' and attributes.status = 'FINISHED'"
    taken = f"tags.`{TAG_ARTIFACT}.{stage}` LIKE '%{key}%'"
    for condition, tag in ((finished, TAG_ARTIFACT), (taken, f"{TAG_ARTIFACT}.{stage}")):
        for run in tracker.search_all(condition, everywhere=True):
            if tag in run.data.tags:
                ref = ArtifactRef.model_validate_json(run.data.tags[tag])
                if ref.key == key:
                    yield run, ref


def _state(ref: ArtifactRef, verify: bool) -> str:
    try:
        if verify:
            return ref.state()
        return "intact" if ref.path.is_dir() else "deleted"
    except PermissionError:
        return "closed"


def _lost(ref: ArtifactRef, state: str, host: str | None) -> str:
    """Why a result is of no use here."""
    if state == "closed":
        return f"its artifact {ref.uri}, of run {ref.run_id}, is not readable for this user: computed here"
    if state == "deleted" and host not in (None, socket.gethostname()):
        return f"its artifact {ref.uri} is not on this machine: {host} made it, in run {ref.run_id}: computed here"
    return f"its artifact {ref.uri} was {state} behind the finished run {ref.run_id}: recomputed"
