"""The artifacts of a config's finished stages, for scripts that measure something on them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.planning.plan import make_plan
from magic141.artifacts.references import ArtifactRef
from magic141.config import HOME_VARIABLE, PipelineConfig, load_config
from magic141.tracking import Tracker
from magic141.tracking.tags import TAG_ARTIFACT
from tasks.pipeline import stages_between

MAGIC141 = str(Path(sys.executable).parent / "magic141")


def config_in(config: str, overrides: Sequence[str], home: Path) -> PipelineConfig:
    """The config with the workspace `home`, whatever the environment says."""
    os.environ.pop(HOME_VARIABLE, None)
    return load_config(Path(config), [*overrides, f"workspace={home.resolve()}"])


def finished(config: PipelineConfig, until: str) -> dict[str, Path]:
    """Stage -> artifact folder, up to and with `until`; stops the script where one is missing."""
    tracker = Tracker(config.home, config.experiment)
    found = {}
    for row in make_plan(config, stages_between(None, until)):
        if row.run_id is None:
            raise SystemExit(f"{config.home}: {row.stage} is not finished ({row.why}); run the config there first")
        found[row.stage] = ArtifactRef.model_validate_json(tracker.get_run(row.run_id).data.tags[TAG_ARTIFACT]).path
    return found


def run_pipeline(config: str, overrides: Sequence[str], home: Path, until: str) -> None:
    """Runs the config in the workspace `home` up to a stage; what is there already is reused."""
    words = [word for value in (*overrides, f"workspace={home}") for word in ("--set", value)]
    environment = {name: value for name, value in os.environ.items() if name != HOME_VARIABLE}
    subprocess.run([MAGIC141, "run", config, "--until", until, *words], env=environment, check=True)


def parser_of_seeds(description: str | None) -> argparse.ArgumentParser:
    """The options of a script over several seeds' runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--workspace", type=Path, default=Path("runs-table1"), help="kept; one folder a seed below it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser
