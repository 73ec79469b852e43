"""Pretraining from a base, and its validation."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel

from magic141.artifacts import NullLog
from magic141.models.transformer import load_transformer, make_prefix, velocity
from magic141.training.config import FlowMatchingConfig
from magic141.training.flow_matching import FlowMatchingSpec, initial_network
from magic141.training.stages import take_base
from tests.models.tiny import CONFIG, tiny_inputs, tiny_transformer


def distilled_base(folder: Path) -> tuple[HunyuanVideoTransformer3DModel, FlowMatchingConfig]:
    """A base as HunyuanVideo's own: w is an input of it."""
    base = tiny_transformer(guidance_embeds=True)
    base.save_pretrained(folder)
    return base, FlowMatchingConfig(base=str(folder), base_guidance_scale=6.0, num_steps=0)


def test_i2v_of_a_guidance_distilled_base_needs_no_guidance(tmp_path: Path) -> None:
    base, config = distilled_base(tmp_path / "base")
    network = initial_network(FlowMatchingSpec(config, CONFIG, tmp_path, tmp_path / "unused"))
    x_t, sigma, cond = tiny_inputs()
    expected = velocity(base, x_t, sigma, cond, None, torch.full((3,), 6.0))
    torch.testing.assert_close(velocity(network, x_t, sigma, cond, make_prefix(x_t, 1)), expected)


def test_a_guidance_distilled_base_taken_as_it_is_becomes_a_teacher_without_guidance(tmp_path: Path) -> None:
    base, config = distilled_base(tmp_path / "base")
    take_base(config, tmp_path / "out", NullLog())
    taken = load_transformer(tmp_path / "out" / "transformer")
    x_t, sigma, cond = tiny_inputs()
    expected = velocity(base, x_t, sigma, cond, None, torch.full((3,), 6.0))
    torch.testing.assert_close(velocity(taken, x_t, sigma, cond), expected)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["num_parameters"] == sum(p.numel() for p in taken.parameters())
