"""The whole DMD2 objective on a tiny corpus, in short, and every option that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magic141.training.context import TrainContext
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.dmd2 import Dmd2
from magic141.training.dmd2.spec import Dmd2Spec
from tests.models.tiny import CONFIG

PLACEMENT = {"engine": "plain", "launcher": "local", "num_workers": 1}
SHORT: dict[str, Any] = {
    "num_steps": 2,
    "batch_size": 4,
    "fake_updates_per_step": 2,
    "fake_warmup_updates": 1,
    "lora_rank": 4,
    "collapse": {"num_clips": 2, "reference_steps": 2, "num_shown": 1, "stop": False},
    "placement": PLACEMENT,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "one step": {"num_inference_steps": 1},
    "eight steps, Euler": {"num_inference_steps": 8, "sampler": "euler"},
    "CFG-distilled real score": {"real_score": "cfg_distilled", "real_guidance_scale": 1.5},
    "CFG inside the real score": {"real_guidance_scale": 2.0},
    "CFG and steps together": {"start": "teacher", "real_guidance_scale": 2.0},
    "range of w": {"student_guidance_range": (1.0, 3.0)},
    "LoRA generator": {"generator_lora_rank": 4},
    "full fake score": {"fake_score": "full", "a_weak": 0.0},
    "noised real latents": {"generator_input": "noised_real"},
    "regression": {"generator_input": "noised_real", "regression_weight": 0.5},
    "the fake score knows the exit": {"exit_embedding": True},
    "own frames": {"continued_fraction": 0.5, "own_frames_fraction": 1.0},
    "adversarial": {"adversarial_weight": 0.01},
    "adversarial on clean latents": {"adversarial_weight": 0.01, "adversarial_input": "clean"},
    "adversarial, full fake score": {"adversarial_weight": 0.01, "fake_score": "full", "a_weak": 0.0},
    "last average": {"keep": "last"},
}


def build(folders: Path, run_dir: Path, **options: Any) -> Dmd2:
    config = Dmd2Config.model_validate(SHORT | options)
    spec = Dmd2Spec(config, CONFIG, folders / "data", folders / "teacher", folders / "student")
    return spec.build(TrainContext(0, 1, torch.device("cpu"), run_dir, 0, config.placement))


def weights(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
