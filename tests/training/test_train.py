from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magic141.data.info import INFO_FILE
from magic141.stage_log import NullLog
from magic141.training import train as training
from magic141.training.launch import TrainResult
from tests.models.tiny import INFO
from tests.training.linear import LinearSpec, linear_config


def test_an_export_is_linked_into_the_artifact_and_outlives_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 13B it is 52 GB, and the run's folder goes as soon as the artifact is published."""
    run_dir, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    (tmp_path / INFO_FILE).write_text(INFO.model_copy(update={"num_clips": {"train": 1000}}).model_dump_json())
    weights = run_dir / "export" / "transformer" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    save_file({"w": torch.ones(3, 5)}, weights)
    (run_dir / "metrics.jsonl").write_text('{"step": 0}\n')
    result = TrainResult(1.0, 1.0, 1.0, 0, 0, run_dir / "export", run_dir / "metrics.jsonl")
    monkeypatch.setattr(training, "launch", lambda *_: result)
    config = linear_config()
    training.train(LinearSpec(config), config, tmp_path, out, NullLog(), 0, run_dir)
    kept = out / "transformer" / "model.safetensors"
    assert kept.stat().st_ino == weights.stat().st_ino
    assert (out / "metrics.jsonl").stat().st_ino != (run_dir / "metrics.jsonl").stat().st_ino, "that one may go on"
    shutil.rmtree(run_dir)
    assert load_file(kept)["w"].shape == (3, 5)
