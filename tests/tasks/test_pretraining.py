"""A base of image to video takes the place of the T2V model, which then is neither trained nor needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magic141.config import load_config
from magic141.training.ray_launch import missing_folder
from magic141.training.worker_task import WorkerTask
from tasks import pretrain_i2v, pretrain_t2v
from tasks.stage import StageCall
from tests.evaluation.artifacts import RecordingLog
from tests.models.tiny import tiny_transformer

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A base, and what comes before I2V: data, and a T2V stage without a model."""
    folders = {name: tmp_path / name for name in ("base", "prepare_data", "pretrain_t2v")}
    for folder in folders.values():
        folder.mkdir()
    tiny_transformer(image_condition=True).save_pretrained(folders["base"])
    return folders


def call(inputs: dict[str, Path], out: Path, *overrides: str) -> StageCall:
    out.mkdir(exist_ok=True)
    config = load_config(DEMO, ["pretrain_t2v.num_steps=0", f"pretrain_i2v.base={inputs.pop('base')}", *overrides])
    return StageCall(config, inputs, out, RecordingLog(), out)


def test_text_to_video_is_left_out_and_says_so(inputs: dict[str, Path], tmp_path: Path) -> None:
    made = call(inputs, tmp_path / "out")
    pretrain_t2v.STAGE.run(made)
    assert isinstance(made.log, RecordingLog)
    assert made.log.notes == ["left out: pretrain_i2v starts from a base of its own"]
    assert sorted(path.name for path in made.out.iterdir()) == ["metrics.jsonl", "training.json"]


def test_the_base_is_the_teacher(inputs: dict[str, Path], tmp_path: Path) -> None:
    weights = (inputs["base"] / "diffusion_pytorch_model.safetensors").read_bytes()
    made = call(inputs, tmp_path / "out", "pretrain_i2v.num_steps=0")
    pretrain_i2v.STAGE.run(made)
    assert (made.out / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert json.loads((made.out / "training.json").read_text())["steps"] == 0
    assert isinstance(made.log, RecordingLog)
    assert [
        note for note in made.log.notes if "HunyuanVideo's own image-to-video weights know other conditions" in note
    ]


def test_training_goes_on_from_the_base(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr("magic141.training.pretraining.train", lambda spec, *_: begun.append(spec))
    base = inputs["base"]
    pretrain_i2v.STAGE.run(call(inputs, tmp_path / "out"))
    task = WorkerTask(begun[0], begun[0].config, tmp_path, seed=0, launch_id="now")
    task.mark.touch()
    assert (begun[0].start, missing_folder(task)) == (base, None)
