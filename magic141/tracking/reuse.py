"""Finds earlier results of a stage key that still exist, and refreshes that are not finished."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

from mlflow.entities import Run

from magic141.artifacts.references import ArtifactRef
from magic141.tracking.tags import TAG_ARTIFACT, TAG_HOST, TAG_KEY, TAG_REFRESH
from magic141.tracking.tracker import Tracker


@dataclass(frozen=True)
class Reusable:
    """The answer to 'was this key computed before?'.

    Attributes:
        ref: the artifact, which exists and is unaltered; None if there is none.
        note: what happened to an earlier result that can no longer be used, if there was one.
    """

    ref: ArtifactRef | None
    note: str | None = None


def find_reusable(tracker: Tracker, stage: str, key: str, *, verify: bool = True) -> Reusable:
    """The newest result of this key, in any experiment, whose artifact still exists and matches its digest.

    Experiments share a workspace's artifacts, and making one again in one of them would remove it for the others. A
    store may also be shared by workspaces: artifacts that this user cannot reach are skipped.

    Args:
        tracker: the store.
        stage: name of the stage.
        key: its key.
        verify: read the artifact and compare its digest; if False, only check that it exists (for a plan).
    """
    note = None
    for run, ref in _results(tracker, stage, key):
        state = ref.state(verify)
        if state == "intact":
            return Reusable(ref)
        note = note or _lost(ref, state, run.data.tags.get(TAG_HOST))
    return Reusable(None, note)


def begun_refresh(tracker: Tracker, stage: str, key: str) -> Run | None:
    """The newest run of a key, in any experiment, if it is an unfinished refresh whose result is not lost.

    A refresh is finished once a finished pipeline run, even one that was deleted since, has its result. Until then the
    same command, given again or retried, continues it instead of discarding its work.
    """
    newest = next(iter(tracker.search(f"tags.`{TAG_KEY}` = '{key}'", 1, everywhere=True)), None)
    if newest is None or TAG_REFRESH not in newest.data.tags or _has_lost_its_result(newest):
        return None
    taken = f"tags.`{TAG_ARTIFACT}.{stage}` LIKE '%{newest.info.run_id}%' and attributes.status = 'FINISHED'"
    return None if tracker.search(taken, 1, everywhere=True, deleted=True) else newest


def _has_lost_its_result(run: Run) -> bool:
    """Whether a run made an artifact that is not here, perhaps in another workspace: an older one would be reused."""
    made = run.data.tags.get(TAG_ARTIFACT)
    return made is not None and ArtifactRef.model_validate_json(made).state(verify=False) != "intact"


def _results(tracker: Tracker, stage: str, key: str) -> Iterator[tuple[Run, ArtifactRef]]:
    """Results of a key, each with a run that records it: first the runs that made one, newest first.

    If those were deleted, pipeline runs that reused the result still record it, and gc keeps it for them.
    """
    finished = f"tags.`{TAG_KEY}` = '{key}' and attributes.status = 'FINISHED'"
    taken = f"tags.`{TAG_ARTIFACT}.{stage}` LIKE '%{key}%'"
    for condition, tag in ((finished, TAG_ARTIFACT), (taken, f"{TAG_ARTIFACT}.{stage}")):
        for run in tracker.search_all(condition, everywhere=True):
            if tag in run.data.tags:
                ref = ArtifactRef.model_validate_json(run.data.tags[tag])
                if ref.key == key:
                    yield run, ref


def _lost(ref: ArtifactRef, state: str, host: str | None) -> str:
    """Why an earlier result cannot be used here."""
    if state == "closed":
        return f"its artifact {ref.uri}, of run {ref.run_id}, is not readable for this user: computed here"
    if state == "deleted" and host not in (None, socket.gethostname()):
        return f"its artifact {ref.uri} is not on this machine: {host} made it, in run {ref.run_id}: computed here"
    return f"its artifact {ref.uri} was {state} behind the finished run {ref.run_id}: recomputed"
