"""A GPU that is full ends a training with what would take less of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from magic141.errors import UserError
from magic141.training.config import TrainConfig
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.gpu_memory import explaining_full_gpu

DEEPSPEED = {"engine": "deepspeed", "num_workers": 2, "clips_per_pass": 1, "gradient_checkpointing": True}

SPLIT = DEEPSPEED | {"sequence_parallel_size": 2}


@pytest.mark.parametrize(
    ("settings", "remedies"),
    [
        (
            {"precision": "fp32", "placement": {"engine": "ddp", "num_workers": 2}},
            "precision = bf16 (starts the stage over); placement.clips_per_pass below 4; "
            "placement.gradient_checkpointing = true; placement.engine = deepspeed with zero_stage = 3 (delete this "
            "training's checkpoints first); ",
        ),
        (
            {"precision": "bf16", "placement": DEEPSPEED | {"zero_stage": 3}},
            "placement.sequence_parallel_size above 1 (delete this training's checkpoints first); "
            "placement.offload_optimizer = true; ",
        ),
        (
            {"precision": "bf16", "placement": SPLIT | {"engine": "ddp", "num_workers": 4}},
            "placement.sequence_parallel_size above 2; placement.engine = deepspeed with zero_stage = 3 (delete this "
            "training's checkpoints first); ",
        ),
        (
            {"precision": "bf16", "placement": SPLIT | {"engine": "ddp", "num_workers": 4, "clips_per_pass": None}},
            "placement.sequence_parallel_size above 2; placement.engine = deepspeed with zero_stage = 3 (delete this "
            "training's checkpoints first); ",
        ),
        ({"precision": "bf16", "placement": SPLIT | {"zero_stage": 3, "offload_optimizer": True}}, ""),
    ],
)
def test_what_is_not_yet_set_is_named(settings: dict[str, Any], remedies: str) -> None:
    config = TrainConfig.model_validate({"num_steps": 1, "batch_size": 8, "optimizer": {"kind": "adamw"}} | settings)
    with pytest.raises(UserError) as error, explaining_full_gpu(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore of it")
    message = f"CUDA out of memory. Tried to allocate 2.00 GiB. To use less memory: {remedies}set PYTORCH_ALLOC_CONF="
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_no_remedy_is_named_that_the_config_would_refuse() -> None:
    two = {"precision": "bf16", "num_steps": 1, "placement": DEEPSPEED | {"engine": "ddp"}}
    adamw, fake_muon = {"optimizer": {"kind": "adamw"}}, {"fake_optimizer": {"kind": "muon"}}
    both = "optimizer.kind = adamw and fake_optimizer.kind = adamw (starts the stage over); "
    again = "(delete this training's checkpoints first); "
    for config, engine in (
        (TrainConfig.model_validate(two), "zero_stage = 3 and optimizer.kind = adamw (starts the stage over); "),
        (Dmd2Config.model_validate(two | {"adversarial_weight": 0.1}), "zero_stage = 2 and optimizer.kind = adamw "),
        (Dmd2Config.model_validate(two | fake_muon), f"zero_stage = 3 and {both}"),
        (Dmd2Config.model_validate(two | adamw | fake_muon), "zero_stage = 3 and fake_optimizer.kind = adamw (starts"),
        (Dmd2Config.model_validate(two | adamw), f"zero_stage = 3 {again}"),
    ):
        with pytest.raises(UserError) as error, explaining_full_gpu(config):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert f"placement.engine = deepspeed with {engine}" in str(error.value)
