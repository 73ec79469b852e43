"""Pretraining and CFG distillation of a low-rank branch instead of all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.models.transformer import load_transformer, velocity
from magic141.training.cfg_distillation import CfgDistillation, CfgDistillationSpec
from magic141.training.config import CfgDistillationConfig, FlowMatchingConfig
from magic141.training.context import TrainContext
from magic141.training.flow_matching import FlowMatching, FlowMatchingSpec
from magic141.training.random_numbers import step_generator
from tests.models.tiny import CONFIG
from tests.training.dmd2.tiny import PLACEMENT

SETTINGS: dict[str, Any] = {
    "num_steps": 4,
    "batch_size": 4,
    "lora_rank": 4,
    "optimizer": {"kind": "adamw", "learning_rate": 0.01, "warmup_steps": 0},
    "placement": PLACEMENT,
}


def pretraining(folders: Path, run_dir: Path, **options: Any) -> FlowMatching:
    config = FlowMatchingConfig.model_validate(SETTINGS | options)
    spec = FlowMatchingSpec(config, CONFIG, folders / "data", folders / "teacher", image_condition=True)
    return spec.build(TrainContext(0, 1, torch.device("cpu"), run_dir, 0, config.placement))


def distillation(folders: Path, run_dir: Path, **options: Any) -> CfgDistillation:
    config = CfgDistillationConfig.model_validate(SETTINGS | options)
    spec = CfgDistillationSpec(config, CONFIG, folders / "data", folders / "teacher")
    return spec.build(TrainContext(0, 1, torch.device("cpu"), run_dir, 0, config.placement))


def predicted(network: torch.nn.Module, objective: FlowMatching | CfgDistillation) -> Tensor:
    batch = objective.maker.make(torch.arange(4), step_generator(0, 0))
    w = torch.full((4,), 2.0) if isinstance(objective, CfgDistillation) else None
    with torch.no_grad():
        return velocity(network, batch.x0, torch.full((4,), 0.5), batch.cond, batch.prefix, w)


@pytest.mark.parametrize("build", [pretraining, distillation])
def test_the_branch_is_merged_into_what_is_exported(folders: Path, tmp_path: Path, build: Any) -> None:
    objective = build(folders, tmp_path)
    before = predicted(objective.engine.module, objective)
    frozen = {name: p.clone() for name, p in objective.engine.module.named_parameters() if not p.requires_grad}
    for step in range(2):
        objective.step(step)
    objective.export(tmp_path)
    exported = predicted(load_transformer(tmp_path / "transformer"), objective)
    with objective.ema.applied():
        torch.testing.assert_close(exported, predicted(objective.engine.module, objective), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(exported, before, atol=1e-3)
    now = dict(objective.engine.module.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_the_teacher_is_in_memory_once_and_teaches_the_same(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = distillation(folders, tmp_path)
    frozen = [parameter for parameter in one.engine.module.parameters() if not parameter.requires_grad]
    shared = {parameter.data_ptr() for parameter in frozen} & {value.data_ptr() for value in one.teacher.parameters()}
    assert len(shared) == len(frozen)
    monkeypatch.setattr("magic141.training.cfg_distillation.share_frozen", lambda network, owner: None)
    two = distillation(folders, tmp_path)
    for step in range(2):  # where weights lie in memory decides last bits
        ours, theirs = ({name: float(value) for name, value in it.step(step).items()} for it in (one, two))
        assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("build", [pretraining, distillation])
def test_in_bf16_all_that_is_frozen_is_in_bf16(folders: Path, tmp_path: Path, build: Any) -> None:
    objective = build(folders, tmp_path, precision="bf16")
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in objective.engine.module.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert objective.step(0)["loss"] > 0
    assert objective.validate()["validation_loss"] > 0
