"""A finished run of all stages, each with a tiny piece of work in its place, for all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

import tasks.pipeline
from flows.pipeline import pipeline
from flows.records.session import Outcome
from magic141.artifacts.digests import digest_folder
from tasks.stage import Stage, StageCall
from tests.models.tiny import INFO

MISSING = {"value": None, "reason": "no clips"}


SCORES = {
    "variants": [
        {"name": "teacher_4", "scores": {"motion": {"value": 0.9, "reason": None}}},
        {
            "name": "student_4",
            "scores": {"motion": {"value": 0.8, "reason": None}, "fd": MISSING},
        },
    ]
}


COUNTED = INFO.model_copy(update={"num_clips": {"train": 6000}})


def fake(stage: Stage) -> Stage:
    """The stage with its own key and inputs, but a tiny piece of work that reads what it is given."""

    def work(call: StageCall) -> None:
        inputs = {name: digest_folder(folder) for name, folder in call.inputs.items()}
        settings = {name: str(value) for name, value in stage.settings(call.config).items()}
        (call.out / "result.json").write_text(json.dumps([stage.name, inputs, settings, call.seed]))
        if stage.name == "prepare_data":
            (call.out / "dataset.json").write_text(COUNTED.model_dump_json())
        if stage.name == "distill_dmd2":
            call.log.summary({"collapsed": 0})
            (call.out / "watch.json").write_text(json.dumps({"collapsed": not call.config.distill_dmd2.collapse.stop}))
        if stage.name == "evaluate":
            (call.out / "scores.json").write_text(json.dumps(SCORES))
        if stage.name == "report":
            (call.out / "report.html").write_text("<html>")

    return replace(stage, run=work, modules=("magic141.frozen",))


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    stages = tuple(fake(stage) for stage in tasks.pipeline.STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGIC141_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        patch.setattr(tasks.pipeline, "STAGES", stages)
        with prefect_test_harness(server_startup_timeout=180):
            yield folder


@pytest.fixture(scope="package")
def config(home: Path) -> str:
    (home / "config.yaml").write_text("name: tiny\n")
    return str(home / "config.yaml")


@pytest.fixture(scope="package")
def outcome(config: str) -> Outcome:
    return pipeline(config)
