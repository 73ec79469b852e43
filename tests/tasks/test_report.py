"""What the stage `report` is made of, and what it shows of the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment
from jinja2.meta import find_referenced_templates

from magic141.artifacts.references import ArtifactRef
from magic141.config import PipelineConfig, load_config, validate
from tasks.report import INPUTS, STAGE
from tasks.stage import StageCall

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
TEMPLATES = Path(__file__).parents[2] / "magic141" / "evaluation" / "reports"
ARTIFACTS = {name: ArtifactRef(stage=name, key="", uri="", digest=f"digest of {name}", run_id="") for name in INPUTS}


def key_of(config: PipelineConfig) -> str:
    return STAGE.key(config, ARTIFACTS).digest


def test_a_setting_that_the_page_shows_is_in_the_key_and_where_work_runs_is_not() -> None:
    demo = key_of(load_config(DEMO))
    assert key_of(load_config(DEMO, ["data.on_bad_file=fail"])) != demo
    assert key_of(load_config(DEMO, ["workspace=elsewhere", "generate.num_workers=2", "publish.alias=best"])) == demo


def test_the_page_s_templates_are_in_the_key() -> None:
    found, to_read = set[str](), ["report.html.j2"]
    while to_read:
        found.add(name := to_read.pop())
        included = find_referenced_templates(Environment().parse((TEMPLATES / name).read_text()))
        to_read += [other for other in included if other and other not in found]
    assert len(found) > 1
    assert {name.partition(":")[2] for name in STAGE.code() if ":" in name} == found


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
