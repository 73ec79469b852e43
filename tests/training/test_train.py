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
from tests.evaluation.artifacts import NUM_CLIPS, add_upright_clips, make_data
from tests.models.tiny import INFO
from tests.training.linear import LinearSpec, linear_config


def test_a_size_without_a_single_update_is_noted(tmp_path: Path) -> None:
    data, config = make_data(tmp_path / "data"), linear_config()
    assert (config.batch_size, NUM_CLIPS["train"]) == (8, 48)
    few, many = (config.model_copy(update={"num_steps": num}) for num in (10, 40))
    add_upright_clips(data, 2)
    expected = "none of the 10 updates is on clips of 32x16: there are 2, for batches of 8; train longer"
    (remark,) = training._untrained_sizes(few, data, seed=0)
    assert remark.startswith(expected)
    assert training._untrained_sizes(many, data, seed=0) == []


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
