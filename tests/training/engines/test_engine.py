from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from magic141.training.config import OptimizerConfig, PlacementConfig
from magic141.training.context import TrainContext
from magic141.training.engines.deepspeed_engine import deepspeed_config
from magic141.training.engines.engine import Engine
from magic141.training.engines.make import make_engine
from magic141.training.engines.optimizers import learning_rate_factor
from tests.training.linear import Network


def context(tmp_path: Path) -> TrainContext:
    placement = PlacementConfig(engine="plain", launcher="local", num_workers=1)
    return TrainContext(0, 1, torch.device("cpu"), tmp_path, 0, placement)


def engine(tmp_path: Path, **settings: float) -> Engine:
    torch.manual_seed(0)
    config = OptimizerConfig.model_validate({"kind": "adamw", "warmup_steps": 0} | settings)
    return make_engine(Network(), config, 10, "fp32", context(tmp_path))


def train(trained: Engine, seed: int) -> float:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    trained.backward(trained(x).square().mean())
    return trained.step()


@pytest.mark.parametrize("max_grad_norm", [0.1, 1000.0])
def test_equals_torch_with_clipping_schedule_and_decay(tmp_path: Path, max_grad_norm: float) -> None:
    settings = {"max_grad_norm": max_grad_norm, "warmup_steps": 2, "constant_fraction": 0.5, "weight_decay": 0.1}
    ours, config = engine(tmp_path, **settings), OptimizerConfig.model_validate(settings)
    theirs = Network()
    theirs.load_state_dict(ours.full_state_dict())
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.1)
    for seed in range(10):
        optimizer.param_groups[0]["lr"] = 2e-3 * learning_rate_factor(seed, 10, config)
        norm = train(ours, seed)
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        theirs(x).square().mean().backward()
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)), rel=1e-5)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(value, ours.full_state_dict()[name])


def test_frozen_parameters_stay_and_are_not_saved(tmp_path: Path) -> None:
    trained = engine(tmp_path)
    before = trained.full_state_dict()
    train(trained, 0)
    after = trained.full_state_dict()
    assert torch.equal(before["base.weight"], after["base.weight"])
    assert not torch.equal(before["blocks.0.weight"], after["blocks.0.weight"])
    trained.save(tmp_path / "saved")
    assert "base.weight" not in torch.load(tmp_path / "saved" / "engine.pt")["weights"]


def test_two_engines_share_frozen_weights_and_train_apart(tmp_path: Path) -> None:
    first, second = engine(tmp_path), engine(tmp_path)
    train(first, 0)
    assert (first.num_updates, second.num_updates) == (1, 0)
    assert torch.equal(second.full_state_dict()["head.weight"], engine(tmp_path).full_state_dict()["head.weight"])


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    engine(tmp_path).save(tmp_path / "saved")
    other = make_engine(torch.nn.Linear(2, 2), OptimizerConfig(), 10, "fp32", context(tmp_path))
    with pytest.raises(ValueError, match=r"checkpoint and network differ in .*weight"):
        other.load(tmp_path / "saved")


def test_full_state_dict_is_a_copy(tmp_path: Path) -> None:
    trained = engine(tmp_path)
    state = trained.full_state_dict()
    kept = state["head.weight"].clone()
    train(trained, 0)
    assert torch.equal(state["head.weight"], kept)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_buffers_are_small_beside_a_gpu(tmp_path: Path, stage: int) -> None:
    placement = PlacementConfig(engine="deepspeed", num_workers=2, zero_stage=stage)
    worker = TrainContext(0, 2, torch.device("cpu"), tmp_path, 0, placement)
    zero = deepspeed_config(1.0, "bf16", worker)["zero_optimization"]
    buckets = zero["reduce_bucket_size"] * (2 + 4)  # a bf16 and an fp32 one
    gathered = 4 * max(zero.get(f"stage3_{name}", 0) for name in ("max_live_parameters", "max_reuse_distance"))
    assert buckets + gathered < 2 * 2**30
    assert (gathered > 0) == (stage == 3)  # the others gather no weights


def test_a_step_that_is_left_out_changes_nothing_but_its_place_in_the_schedule(tmp_path: Path) -> None:
    trained = engine(tmp_path)
    before = trained.full_state_dict()
    trained.backward(trained(torch.full((4, 8), float("inf"))).sum())
    assert not math.isfinite(trained.step())
    assert all(torch.equal(before[name], value) for name, value in trained.full_state_dict().items())
    assert trained.num_updates == 1
