"""What the stage `report` is made of, and what it shows of the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from magic141.artifacts.references import ArtifactRef
from magic141.config import PipelineConfig, load_config, validate
from tasks.report import INPUTS, STAGE
from tasks.stage import StageCall

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
ARTIFACTS = {name: ArtifactRef(stage=name, key="", uri="", digest=f"digest of {name}", run_id="") for name in INPUTS}


def key_of(config: PipelineConfig) -> str:
    return STAGE.key(config, ARTIFACTS).digest


def test_a_setting_that_the_page_shows_is_in_the_key_and_where_work_runs_is_not() -> None:
    demo = key_of(load_config(DEMO))
    assert key_of(load_config(DEMO, ["data.on_bad_file=fail"])) != demo
    assert key_of(load_config(DEMO, ["workspace=elsewhere", "generate.num_workers=2", "publish.alias=best"])) == demo


def test_the_template_is_in_the_key() -> None:
    assert "magic141.evaluation.reports:report.html.j2" in STAGE.code()


def test_the_settings_shown_are_a_config_of_the_same_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(
        "magic141.evaluation.reports.report.write_report", lambda config, settings, *_: shown.append(settings)
    )
    config = load_config(DEMO, ["seed=3", "distill_dmd2.num_steps=9"])
    STAGE.run(StageCall(config, {}, tmp_path, None, tmp_path))  # type: ignore[arg-type]
    again = validate(shown[0], "the report")
    assert again.seed == 3
    assert key_of(again) == key_of(config)
