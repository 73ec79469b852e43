"""`magic141 delete`: marks runs as deleted in MLflow, with the runs below them; `gc` then frees what only they made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from magic141.tracking import Run, Tracker


def family(tracker: Tracker, run_ids: Sequence[str]) -> list[Run]:
    """The runs and everything below them, parents first: a sweep's members, a pipeline's stages.

    Raises:
        UserError: for an unknown run.
    """
    found: dict[str, Run] = {}
    for run_id in run_ids:
        for run in _with_children(tracker, tracker.get_run(run_id)):
            found.pop(run.info.run_id, None)  # after its parent, even if it was named before that
            found[run.info.run_id] = run
    return [run for run in found.values() if run.info.lifecycle_stage == "active"]


def published(tracker: Tracker, runs: Sequence[Run]) -> list[str]:
    """The registered models, by their aliases, that the runs have published."""
    return tracker.registry.names_of({run.info.run_id for run in runs})


def delete(tracker: Tracker, runs: Sequence[Run]) -> None:
    """Marks the runs as deleted, children first: an interruption leaves none without its parent.

    Raises:
        UserError: if one is still at work; then none is deleted.
    """
    for run in runs:
        tracker.require_ended(run)
    for run in reversed(runs):
        tracker.delete(run)


def _with_children(tracker: Tracker, run: Run) -> Iterator[Run]:
    yield run
    for child in tracker.children(run):
        yield from _with_children(tracker, child)
