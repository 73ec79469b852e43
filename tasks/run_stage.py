"""Runs a stage, the same for all: key, lock, reuse, staging, log, publication, record, final status."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from magic141.artifacts.publication import Published, publish_by_content, staging
from magic141.artifacts.references import ArtifactRef, StageKey
from magic141.errors import MAX_REASON_CHARS, UserError, first_line
from magic141.tracking import begun_refresh, closing, find_reusable
from magic141.urls import without_credentials
from tasks.provenance import environment, source_tags
from tasks.stage import Stage, StageCall, StageContext
from tasks.stage_log import TaskLog

if TYPE_CHECKING:
    from magic141.tracking import RunLog

KEY_CHARS = 16


def run_stage(stage: Stage, context: StageContext) -> ArtifactRef:
    """Reuses or makes the stage's artifact and records it on the parent run."""
    key = stage.key(context.config, context.artifacts)
    stage.require_unedited()
    with _only_worker(stage.name, key.digest, context):
        context.tracker.close_stale(key.digest)
        reused = (_begin_or_continue_refresh if stage.name in context.refresh else _reuse)(stage, key.digest, context)
        if reused:
            context.reused.append(stage.name)
        ref = reused or _compute(stage, key, context)
        if not (reused and _unfinished_refresh_has_checkpoints(stage, key.digest, context)):
            # the artifact has the result, so checkpoints are obsolete, even those of a run killed right here
            shutil.rmtree(context.run_dir(stage.name, key.digest), ignore_errors=True)
        context.artifacts[stage.name] = ref
        context.tracker.set_artifact(context.parent_id, ref, reused=reused is not None)
        if stage.on_ready:
            stage.on_ready(context, ref)
    return ref


def _begin_or_continue_refresh(stage: Stage, key: str, context: StageContext) -> ArtifactRef | None:
    """What an unfinished refresh has already made; a new one discards the key's checkpoints.

    A refresh continues until a run that asks for it has finished.
    """
    begun = begun_refresh(context.tracker, stage.name, key)
    if begun is None:
        shutil.rmtree(context.run_dir(stage.name, key), ignore_errors=True)  # computed again from the first step
        return None
    context.console.note(stage.name, f"continues the unfinished refresh of run {begun.info.run_id}")
    return _reuse(stage, key, context) if begun.info.status == "FINISHED" else None


def _unfinished_refresh_has_checkpoints(stage: Stage, key: str, context: StageContext) -> bool:
    """Whether the key's checkpoints belong to an interrupted refresh, not to the result that is reused."""
    if stage.name in context.refresh or not context.run_dir(stage.name, key).exists():
        return False
    begun = begun_refresh(context.tracker, stage.name, key)
    return begun is not None and begun.info.status != "FINISHED"


def _reuse(stage: Stage, key: str, context: StageContext) -> ArtifactRef | None:
    found = find_reusable(context.tracker, stage.name, key)
    if found.note:
        context.console.note(stage.name, found.note)
    if found.ref:
        context.console.reused(stage.name, found.ref.run_id)
    return found.ref


def _compute(stage: Stage, key: StageKey, context: StageContext) -> ArtifactRef:
    stage.require_same_sources(key, context.config)
    refresh = stage.name in context.refresh
    run = context.tracker.start_stage(stage.name, key.digest, context.parent_id, source_tags(), refresh=refresh)
    log = TaskLog(stage.name, run, context.console)
    context.console.started(stage.name)
    start = time.monotonic()
    with closing(run), _telling_of_failure(stage.name, run, context):
        _record_start(stage, key, run, context)
        made = _make(stage, key, log, context)
        ref = ArtifactRef(
            stage=stage.name,
            key=key.digest,
            uri=str(made.path),
            digest=made.digest,
            run_id=run.run_id,
            volatile=stage.volatile,
        )
        _record_end(stage, key, ref, run, log, time.monotonic() - start, context)
        run.artifact(ref)
    context.console.finished(stage.name, time.monotonic() - start, made.digest)
    return ref


def _make(stage: Stage, key: StageKey, log: TaskLog, context: StageContext) -> Published:
    """Runs the stage's function in a staging folder and publishes what it wrote."""
    place = context.home / "artifacts" / stage.name / key.digest[:KEY_CHARS]
    run_dir = context.run_dir(stage.name, key.digest)
    inputs = {name: context.artifacts[name].path for name in stage.inputs}
    with staging(place) as out:
        with log.run.watching_the_machine():
            earlier = _earlier_folders(stage.name, run_dir, context)
            stage.run(StageCall(context.config, inputs, out, log, run_dir, key.code, earlier))
        stage.require_unedited()
        return publish_by_content(out, place, stage.volatile)


def _earlier_folders(stage: str, run_dir: Path, context: StageContext) -> tuple[Path, ...]:
    """The stage's other artifacts, and what unfinished runs of it have left, newest first; a refresh uses none."""
    if stage in context.refresh:
        return ()
    patterns = (f"artifacts/{stage}/[!.]*", f"training/{stage}-*")
    folders = [path for pattern in patterns for path in context.home.glob(pattern) if path.is_dir() and path != run_dir]
    return tuple(sorted(folders, key=_modified_s, reverse=True))


def _modified_s(folder: Path) -> float:
    """When a folder was written; 0 if another process has just removed it."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def _telling_of_failure(stage: str, run: RunLog, context: StageContext) -> Iterator[None]:
    """Keeps a stage's error in its run, and says it to whoever watches."""
    try:
        yield
    except Exception as error:
        run.text(traceback.format_exc(), "error.txt")
        run.tags({"error": f"{type(error).__name__}: {error}"})
        context.console.failed(stage, "failed" if isinstance(error, UserError) else f"failed: {_reason(error)}")
        raise
    except BaseException:
        context.console.failed(stage, "stopped")
        raise


@contextmanager
def _only_worker(stage: str, key: str, context: StageContext) -> Iterator[None]:
    """Holds the key's lock; prints a note if it has to wait for another process."""
    lock = FileLock(lock_file(context.home, stage, key), fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        context.console.note(stage, "another process works on the same key: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_file(workspace: Path, stage: str, key: str) -> Path:
    """The lock file of a key, whose folder is created."""
    folder = workspace / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{stage}-{key[:KEY_CHARS]}.lock"


def _record_start(stage: Stage, key: StageKey, run: RunLog, context: StageContext) -> None:
    run.params({"seed": key.seed, **key.config})
    inputs = [context.artifacts[name] for name in stage.inputs]
    run.inputs(inputs, datasets=("prepare_data",), context="training" if stage.model_type else "evaluation")


def _record_end(
    stage: Stage, key: StageKey, ref: ArtifactRef, run: RunLog, log: TaskLog, seconds: float, context: StageContext
) -> None:
    record = {
        "key": key.digest,
        "parts": key.model_dump(mode="json"),
        "modules": stage.code(),
        "inputs": {name: context.artifacts[name].model_dump(mode="json") for name in stage.inputs},
        "artifact": ref.model_dump(mode="json"),
        "seconds": round(seconds, 3),
        "summary": log.figures,
        "notes": log.notes,
        **environment(),
    }
    run.text(json.dumps(record, indent=1), "stage.json")
    run.metrics({"stage_seconds": seconds})
    if stage.model_type and not ref.is_empty:
        run.model(ref, context.tracker.experiment_id, stage.model_type)


def _reason(error: Exception) -> str:
    return first_line(without_credentials(f"{type(error).__name__}: {error}"), MAX_REASON_CHARS)
