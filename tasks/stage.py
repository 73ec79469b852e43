"""Defines a stage: its name, inputs and function, and the code and settings that determine its result."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from magic141.artifacts.digests import FileSelection, digest_source
from magic141.artifacts.fingerprint import NUM_NAMED, edited_modules, fingerprint_modules, module_digests
from magic141.artifacts.references import ArtifactRef, StageKey
from magic141.config import PipelineConfig, named_sources
from magic141.errors import UserError, first_few
from magic141.frozen import key_fields
from magic141.stage_log import StageLog
from tasks.console import StageConsole

if TYPE_CHECKING:
    from magic141.tracking import Tracker

RUN_DIR_CHARS = 12  # characters of the key in the name of a run_dir
# Settings are in the key by value; the others determine how and where work runs and what is shown of it, not what it
# computes.
NOT_IN_KEY = (
    "magic141.data.config",
    "magic141.evaluation.config",
    "magic141.models.config",
    "magic141.retrieval.config",
    "magic141.training.config",
    "magic141.training.dmd2.config",
    "magic141.errors",
    "magic141.frozen",
    "magic141.artifacts.digests",
    "magic141.artifacts.file_records",
    "magic141.artifacts.fingerprint",
    "magic141.artifacts.publication",
    "magic141.cluster.address",
    "magic141.cluster.room",
    "magic141.cluster.session",
    "magic141.stage_log",
    "magic141.text_files",
    "magic141.training.launch",
    "magic141.training.progress",
    "magic141.evaluation.generation.ray_launch",
    "magic141._torchvision",
)


@dataclass(frozen=True)
class StageCall:
    """The arguments of a stage's function.

    Attributes:
        config: the pipeline's config.
        inputs: stage name -> artifact folder.
        out: empty folder; its content afterwards is the artifact.
        log: receives progress, metrics and notes.
        run_dir: folder for this key's checkpoints, which survives a crash.
        code: digest of the code that determines the result.
        earlier: folders of the stage's other results and of its unfinished work; none in a refresh.
    """

    config: PipelineConfig
    inputs: Mapping[str, Path]
    out: Path
    log: StageLog
    run_dir: Path
    code: str = ""
    earlier: tuple[Path, ...] = ()

    @property
    def seed(self) -> int:
        """The pipeline's seed."""
        return self.config.seed


Settings = Mapping[str, BaseModel | str | float | int | None]


Sources = Callable[[PipelineConfig], Mapping[str, str]]


def sources_in(section: str, select: Mapping[str, FileSelection] | None = None) -> Sources:
    """Field -> digest, for the files and folders of the user's that a section of the config has in use.

    Args:
        section: of the config.
        select: field -> which of its folder's files count; all of them without.
    """

    def digests(config: PipelineConfig) -> Mapping[str, str]:
        named = named_sources(config).items()
        which = select or {}
        return {f: digest_source(path, which.get(f)) for f, path in named if f.startswith(f"{section}.")}

    return digests


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: its name, everywhere.
        modules: the library modules that determine its result, with everything that they import.
        settings: the config values that determine its result; placement fields of sections are dropped.
        run: does the work; imports the library inside, so that plan and reuse stay fast.
        inputs: stages whose artifacts it reads.
        version: raise it if the meaning changes although code and config do not.
        sources: digests of the user's files that the stage reads.
        is_random: whether the config's seed decides anything.
        volatile: files of the artifact that hold timings, not results.
        model_type: kind of model for the lineage; None if the artifact is no model.
        check: raises UserError for settings that it cannot work with, where that needs the library; asked before any
            stage starts.
        on_ready: called with the artifact whenever it is made or reused.
        section_name: of its config section; empty if that has its own name.
    """

    name: str
    modules: tuple[str, ...]
    settings: Callable[[PipelineConfig], Settings]
    run: Callable[[StageCall], None]
    inputs: tuple[str, ...] = ()
    version: int = 1
    sources: Sources = lambda _: {}
    is_random: Callable[[PipelineConfig], bool] = lambda _: True
    volatile: tuple[str, ...] = ()
    model_type: str | None = None
    check: Callable[[PipelineConfig], None] = lambda _: None
    on_ready: Callable[[StageContext, ArtifactRef], None] | None = None
    section_name: str = ""

    @property
    def section(self) -> str:
        """The name of its config section."""
        return self.section_name or self.name

    def import_code(self) -> None:
        """Imports its modules, which takes seconds; otherwise they are imported once it runs."""
        for module in self.modules:
            importlib.import_module(module)

    def key(self, config: PipelineConfig, artifacts: Mapping[str, ArtifactRef]) -> StageKey:
        """The stage key: everything that determines the result, given the artifacts of earlier stages."""
        return StageKey(
            stage=self.name,
            version=self.version,
            code=fingerprint_modules(self.modules, NOT_IN_KEY),
            config=self.settings_in(config),
            inputs={**{name: artifacts[name].digest for name in self.inputs}, **self.sources(config)},
            seed=config.seed if self.is_random(config) else 0,
        )

    def settings_in(self, config: PipelineConfig) -> dict[str, Any]:
        """The values of `config` that determine the result, as plain JSON."""
        values = {
            name: key_fields(value) if isinstance(value, BaseModel) else value
            for name, value in self.settings(config).items()
        }
        return dict(json.loads(json.dumps(values)))

    def code(self) -> dict[str, str]:
        """Module -> digest of its code, for every module that determines the result."""
        return module_digests(self.modules, NOT_IN_KEY)

    def require_unedited(self) -> None:
        """Refuses to run if code was edited after this process may have imported it: the key would name other code.

        Raises:
            UserError: if code was edited since this process first asked.
        """
        if edited := edited_modules(self.modules, NOT_IN_KEY):
            raise UserError(
                f"{self.name}: {first_few(edited, NUM_NAMED)} edited during the run; expected the code that it began "
                "with; give the same command again (undo the edit first to go on from its checkpoints)"
            )

    def require_same_sources(self, key: StageKey, config: PipelineConfig) -> None:
        """Refuses to work on files of the user's that changed since the key was made, as while it waited for another.

        Raises:
            UserError: if a source's digest is not the one in the key.
        """
        changed = [field for field, digest in self.sources(config).items() if key.inputs.get(field) != digest]
        if changed:
            raise UserError(
                f"{self.name}: {first_few(changed, NUM_NAMED)} changed since this run began; expected the same files "
                "until the stage has started; give the same command again"
            )


class StageContext:
    """State that the stages of one pipeline run share. Not a dataclass, so that Prefect does not inspect it."""

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
        """The folder of a stage's checkpoints, which survives a crash."""
        return self.home / "training" / f"{stage}-{key[:RUN_DIR_CHARS]}"
