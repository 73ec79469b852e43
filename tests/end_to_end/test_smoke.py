"""The whole pipeline for real, killed twice on the way: nothing is lost, and nothing finished is computed again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.commands import Finished, artifact, finish, start
from tests.waiting import wait_for

STAGES = (
    "prepare_data",
    "train_clip",
    "build_index",
    "pretrain_t2v",
    "pretrain_i2v",
    "distill_cfg",
    "distill_dmd2",
    "quantize",
    "generate",
    "evaluate",
    "report",
    "publish",
)

pytestmark = pytest.mark.slow


def kill_when(workspace: Path, ready: Callable[[], bool], *args: str) -> None:
    """Starts the command and kills it (-9) as soon as `ready()` holds."""
    process = start(workspace, *args)

    def is_ready() -> bool:
        assert process.poll() is None, (workspace.parent / "output.txt").read_text()
        return ready()

    wait_for(is_ready)
    process.send_signal(signal.SIGKILL)
    process.wait()


def has_checkpoint(workspace: Path, stage: str, step: int) -> bool:
    return any((workspace / "training").glob(f"{stage}-*/checkpoints/step-{step:06d}"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoke") / "runs"


@pytest.fixture(scope="module")
def completed(workspace: Path) -> Finished:
    """The smoke run, killed once while it prepares data and once after a checkpoint of I2V training."""
    run = ("run", "configs/smoke.yaml")
    kill_when(workspace, lambda: "prepare_data  running" in (workspace.parent / "output.txt").read_text(), *run)
    assert not list((workspace / "artifacts").glob("prepare_data/[!.]*/dataset.json"))
    kill_when(workspace, lambda: has_checkpoint(workspace, "pretrain_i2v", 6), *run)
    return finish(workspace, *run)


def test_a_killed_run_goes_on_where_it_was(workspace: Path, completed: Finished) -> None:
    assert completed.code == 0, completed.output
    assert completed.stages("↺") == list(STAGES[:4])
    assert completed.stages("✓") == list(STAGES[4:])
    training = json.loads((artifact(workspace, "pretrain_i2v") / "training.json").read_text())
    assert training["resumed_from_step"] >= 6
    lines = (artifact(workspace, "pretrain_i2v") / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)]
    assert steps == sorted(set(steps)), "a step is recorded twice"


def test_the_same_config_again_reuses_everything_and_imports_nothing_to_compute_with(
    workspace: Path, completed: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    again = finish(workspace, "run", "configs/smoke.yaml")
    assert again.code == 0, again.output
    assert again.stages("↺") == list(STAGES)
    assert again.stages("✓") == []
    imported = {line.rpartition("|")[2].strip() for line in again.output.splitlines() if "import time:" in line}
    assert "mlflow" in imported
    assert not {"torch", "ray", "diffusers"} & imported


def test_changing_the_evaluation_repeats_only_evaluation_and_report(workspace: Path, completed: Finished) -> None:
    changed = finish(workspace, "run", "configs/smoke.yaml", "--set", "evaluate.frechet_dimensions=6")
    assert changed.code == 0, changed.output
    assert changed.stages("✓") == ["evaluate", "report"]


def test_members_of_a_sweep_run_in_processes_of_their_own(workspace: Path, completed: Finished) -> None:
    swept = finish(workspace, "sweep", "configs/smoke.yaml", "--vary", "report.title=one,two", "--parallel", "2")
    assert swept.code == 0, swept.output
    assert swept.output.count(": finished, run ") == 2
    (folder,) = (workspace / "sweeps").iterdir()
    outputs = [log.read_text().splitlines() for log in sorted(folder.glob("*.log"))]
    made = [[line.split()[1] for line in lines if line.startswith("✓")] for lines in outputs]
    assert made == [["report"], ["report"]]
    assert f"page    {folder / 'sweep.html'}\n" in swept.output


def test_every_score_is_a_value_or_says_why_it_is_missing(workspace: Path, completed: Finished) -> None:
    (file, *_) = (workspace / "artifacts" / "evaluate").glob("[!.]*/scores.json")
    scores = json.loads(file.read_text())
    names = {row["name"] for row in scores["variants"]}
    assert {"teacher_4", "cfg_4", "student_4", "student_1", "int8_4"} <= names
    for row in scores["variants"]:
        for name, score in row["scores"].items():
            assert (score["value"] is None) != (score["reason"] is None), (row["name"], name)


def test_the_published_model_animates_an_image(workspace: Path, completed: Finished, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(image)
    out = tmp_path / "out.mp4"
    model = ("generate", "--model", "models:/magic141-smoke@candidate")
    made = finish(workspace, *model, "--image", str(image), "--prompt", "a red circle moves up", "-o", str(out))
    assert made.code == 0, made.output
    assert out.stat().st_size > 500
    refused = finish(workspace, *model, "--image", str(out), "--prompt", "a red circle", "-o", str(tmp_path / "x.mp4"))
    assert refused.code == 2
    assert "Traceback" not in refused.output
