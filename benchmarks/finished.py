"""The artifacts of a config's finished stages, for scripts that measure something on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flows.plan import make_plan
from magic141.config import HOME_VARIABLE, PipelineConfig, load_config
from magic141.tracking import Tracker
from tasks.pipeline import stages_until


def config_in(config: str, overrides: Sequence[str], home: Path) -> PipelineConfig:
    """The config with the workspace `home`, whatever the environment says."""
    os.environ.pop(HOME_VARIABLE, None)
    return load_config(Path(config), [*overrides, f"workspace={home.resolve()}"])


def finished(config: PipelineConfig, until: str) -> dict[str, Path]:
    """Stage -> artifact folder, up to and with `until`; stops the script where one is missing."""
    tracker = Tracker(config.home, config.experiment)
    found = {}
    for row in make_plan(config, stages_until(until)):
        if row.run_id is None:
            raise SystemExit(f"{config.home}: {row.stage} is not finished ({row.why}); run the config there first")
        found[row.stage] = tracker.artifact_of(tracker.get_run(row.run_id)).path
    return found
