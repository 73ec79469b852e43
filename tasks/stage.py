"""The one place that knows how a stage runs: key, lock, reuse, staging, log, publication, record, truthful closing."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from magic141.artifacts import (
    ArtifactRef,
    StageKey,
    StageLog,
    digest_folder,
    fingerprint_modules,
    module_digests,
    publish,
    staging,
)
from magic141.config import PipelineConfig
from magic141.frozen import UserError, key_fields
from magic141.urls import without_credentials
from tasks.console import StageConsole

if TYPE_CHECKING:
    import numpy as np

    from magic141.tracking import RunLog, Tracker

# Configs are in the key by value; the others say how and where work runs, not what it computes.
NOT_CODE = ("config", "config_errors", "frozen", "artifacts", "tracking", "raysession", "launch", "_torchvision")
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "deepspeed", "ray", "open-clip-torch", "faiss-cpu", "mlflow")
KEY_CHARS = 16


@dataclass(frozen=True)
class StageCall:
    """What a stage's function gets.

    Attributes:
        config: the pipeline's config.
        inputs: stage name -> artifact folder.
        out: empty folder; what is in it afterwards is the artifact.
        log: where to report.
        run_dir: folder that survives a crash: checkpoints of this key.
    """

    config: PipelineConfig
    inputs: Mapping[str, Path]
    out: Path
    log: StageLog
    run_dir: Path

    @property
    def seed(self) -> int:
        """The pipeline's seed."""
        return self.config.seed


Settings = Mapping[str, BaseModel | str | float | int | None]


def _no_sources(config: PipelineConfig) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: also the name of its config section.
        modules: the library code that decides its result; what they import is followed.
        settings: the config values that decide its result; sections lose their placement fields.
        run: does the work; imports the library inside, so that plan and reuse stay fast.
        inputs: stages whose artifacts it reads.
        version: to be raised when the meaning changes although code and config do not.
        sources: digests of files that the user owns and the stage reads.
        volatile: files of the artifact that hold timings, not results.
        model_type: set when the artifact is a model: its kind, for the lineage.
        on_ready: called with the artifact after it was made, and also when it is reused.
    """

    name: str
    modules: tuple[str, ...]
    settings: Callable[[PipelineConfig], Settings]
    run: Callable[[StageCall], None]
    inputs: tuple[str, ...] = ()
    version: int = 1
    sources: Callable[[PipelineConfig], Mapping[str, str]] = _no_sources
    volatile: tuple[str, ...] = ()
    model_type: str | None = None
    on_ready: Callable[[StageContext, ArtifactRef], None] | None = None

    def key(self, config: PipelineConfig, artifacts: Mapping[str, ArtifactRef]) -> StageKey:
        """Everything that decides the result, given the artifacts of the stages before."""
        return StageKey(
            stage=self.name,
            version=self.version,
            code=fingerprint_modules(self.modules, NOT_CODE),
            config=self.settings_in(config),
            inputs={**{name: artifacts[name].digest for name in self.inputs}, **self.sources(config)},
            seed=config.seed,
        )

    def settings_in(self, config: PipelineConfig) -> dict[str, Any]:
        """The values of `config` that decide the result, as plain JSON."""
        values = {
            name: key_fields(value) if isinstance(value, BaseModel) else value
            for name, value in self.settings(config).items()
        }
        return dict(json.loads(json.dumps(values)))

    def code(self) -> dict[str, str]:
        """Module -> digest of its code, for every module that decides the result."""
        return module_digests(self.modules, NOT_CODE)


class StageContext:
    """One pipeline run: what its stages share. Not a dataclass, so that Prefect does not look into it."""

    def __init__(
        self,
        config: PipelineConfig,
        tracker: Tracker,
        parent_id: str,
        console: StageConsole,
        refresh: frozenset[str] = frozenset(),
    ) -> None:
        self.config = config
        self.tracker = tracker
        self.parent_id = parent_id
        self.console = console
        self.refresh = refresh
        self.home = config.home
        self.artifacts: dict[str, ArtifactRef] = {}
        self.reused: list[str] = []

    def run_dir(self, stage: str, key: str) -> Path:
        """Where a stage keeps what survives a crash."""
        return self.home / "training" / f"{stage}-{key[:12]}"


def run_stage(stage: Stage, context: StageContext) -> ArtifactRef:
    """Reuses or makes the stage's artifact and records it on the parent run."""
    key = stage.key(context.config, context.artifacts)
    with _only_worker(stage.name, key.digest, context):
        context.tracker.close_stale_stage(key.digest)
        ref = None if stage.name in context.refresh else _reuse(stage, key.digest, context)
        if ref:
            context.reused.append(stage.name)
        made = ref or _compute(stage, key, context)
        # the artifact holds the result; the checkpoints have done their work, also those of a run killed just here
        shutil.rmtree(context.run_dir(stage.name, key.digest), ignore_errors=True)
        context.artifacts[stage.name] = made
        context.tracker.set_artifact(context.parent_id, made, reused=ref is not None)
        if stage.on_ready:
            stage.on_ready(context, made)
    return made


def _reuse(stage: Stage, key: str, context: StageContext) -> ArtifactRef | None:
    found = context.tracker.find_reusable(key)
    if found.note:
        context.console.note(stage.name, found.note)
    if found.ref:
        context.console.reused(stage.name, found.ref.run_id)
    return found.ref


def _compute(stage: Stage, key: StageKey, context: StageContext) -> ArtifactRef:
    run_dir = context.run_dir(stage.name, key.digest)
    if stage.name in context.refresh:
        shutil.rmtree(run_dir, ignore_errors=True)
    run = context.tracker.start_stage(stage.name, key.digest, context.parent_id)
    log = TaskLog(stage.name, run, context.console)
    context.console.started(stage.name)
    start = time.monotonic()
    with _closing(stage.name, run, log, context):
        _record_start(stage, key, run, context)
        final = context.home / "artifacts" / stage.name / key.digest[:KEY_CHARS]
        with staging(final) as out:
            inputs = {name: context.artifacts[name].path for name in stage.inputs}
            stage.run(StageCall(context.config, inputs, out, log, run_dir))
            digest = digest_folder(out, stage.volatile)
            publish(out, final)
        ref = ArtifactRef(
            stage=stage.name, key=key.digest, uri=str(final), digest=digest, run_id=run.run_id, volatile=stage.volatile
        )
        _record_end(stage, key, ref, run, log, time.monotonic() - start, context)
        run.artifact(ref)
    context.console.finished(stage.name, time.monotonic() - start, digest)
    return ref


@contextmanager
def _closing(stage: str, run: RunLog, log: TaskLog, context: StageContext) -> Iterator[None]:
    """Closes the child run with what really happened."""
    try:
        yield
    except Exception as error:
        run.text(traceback.format_exc(), "error.txt")
        run.tags({"error": f"{type(error).__name__}: {error}"})
        run.close("FAILED")
        context.console.failed(stage, "failed" if isinstance(error, UserError) else f"failed: {_first_line(error)}")
        raise
    except BaseException:
        run.close("KILLED")
        context.console.failed(stage, "stopped")
        raise
    run.close("FINISHED")


@contextmanager
def _only_worker(stage: str, key: str, context: StageContext) -> Iterator[None]:
    """Holds the key's lock; says so when another process has it."""
    folder = context.home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{stage}-{key[:KEY_CHARS]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        context.console.note(stage, "another process works on the same key: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
    if stage.model_type:
        run.model(ref, context.tracker.experiment_id, stage.model_type)


def environment() -> dict[str, Any]:
    """Code version, library versions, machine and device of this process."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "machine": f"{platform.node()} {platform.platform()} {platform.machine()}",
        "device": torch.cuda.get_device_name(0) if torch is not None and cuda else "cpu",
    }


@lru_cache
def git_commit() -> str | None:
    """The commit that the code was run from, with '-dirty' when files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return package_version(name)
    except PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    return without_credentials(f"{type(error).__name__}: {error}").strip().splitlines()[0][:200]


@dataclass
class TaskLog:
    """The log of a running stage: figures and media to MLflow, notes and bars also to the console."""

    stage: str
    run: RunLog
    console: StageConsole
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Figures that develop with the step."""
        self.console.values(values)
        self.run.metrics(values, step)

    def image(self, key: str, image: np.ndarray[Any, Any], step: int = 0) -> None:
        """A picture, uint8 [H, W, 3]."""
        self.run.image(key, image, step)

    def file(self, path: Path, folder: str = "") -> None:
        """A file to keep beside the run."""
        self.run.file(path, folder)

    def note(self, text: str) -> None:
        """A sentence for people."""
        self.notes.append(text)
        self.console.note(self.stage, text)

    def summary(self, values: Mapping[str, float | int | str]) -> None:
        """Final figures (numbers become metrics) and facts (strings become tags)."""
        self.figures.update(values)
        self.run.metrics({name: float(v) for name, v in values.items() if not isinstance(v, str)})
        self.run.tags({name: v for name, v in values.items() if isinstance(v, str)})

    def progress(self, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A bar with the newest figures, speed and time left."""
        return self.console.progress(self.stage, total, unit)
