"""Counted operations: those of real networks, and the passes that a real update takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformerBlock
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from magic141.models.adapters import add_lora
from magic141.models.config import TransformerConfig
from magic141.models.transformer import Conditioning, build_transformer, make_prefix, velocity
from magic141.training.config import CfgDistillationConfig, FlowMatchingConfig, PlacementConfig
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.operations import EVALUATION, Passes, num_operations, passes_of_training, passes_per_update
from tests.training.dmd2.tiny import build

WIDE = TransformerConfig(
    num_attention_heads=8, attention_head_dim=64, num_layers=2, num_single_layers=2, rope_axes_dim=(16, 24, 24)
)
CHANNELS, TEXT, FRAMES, SIDE = 4, 32, 5, 16
NUM_TOKENS = FRAMES * SIDE * SIDE + 6


def counted(checkpointing: bool, frozen: bool, backward: bool) -> float:
    """Operations of matrix products in passes of a network without data; attention is left out."""
    with torch.device("meta"):
        model = build_transformer(WIDE, CHANNELS, TEXT, TEXT, image_condition=True).train()
        x_t, cond = (
            torch.randn(1, CHANNELS, FRAMES, SIDE, SIDE),
            Conditioning(torch.randn(1, 6, TEXT), None, torch.randn(1, TEXT)),
        )
        sigma = torch.ones(1)
    if frozen:
        add_lora(model, 1, seed=0)
    if checkpointing:
        model.enable_gradient_checkpointing()
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(backward):
        v = velocity(model, x_t, sigma, cond, make_prefix(x_t, 1))
        if backward:
            v.square().mean().backward()
    by_kind = counter.get_flop_counts()["Global"]
    return float(sum(count for kind, count in by_kind.items() if "bmm" not in str(kind)))


def test_an_evaluation_is_what_a_network_computes() -> None:
    products = num_operations(Passes(1, 0), WIDE, NUM_TOKENS)
    assert counted(checkpointing=False, frozen=False, backward=False) == pytest.approx(products, rel=0.05)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_pass_is_so_many_evaluations(checkpointing: bool, frozen: bool) -> None:
    evaluation = counted(checkpointing=False, frozen=False, backward=False)
    passes = counted(checkpointing, frozen, backward=True) / evaluation
    assert passes == pytest.approx(Passes.training(checkpointing, frozen).products, rel=0.05)


@contextmanager
def blocks_run() -> Iterator[list[bool]]:
    """Whether each pass through a network's first kind of blocks was with gradients."""
    passes: list[bool] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, HunyuanVideoTransformerBlock):
            outputs: tuple[Tensor, ...] = output
            passes.append(outputs[0].requires_grad)

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield passes
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_inference_steps": 1},
        {"num_inference_steps": 8, "fake_updates_per_step": 3},
        {"real_guidance_scale": 2.0},
        {"real_score": "cfg_distilled", "real_guidance_scale": 2.0},
        {"student_guidance_range": (1.0, 3.0)},
        {"generator_lora_rank": 4},
        {"generator_input": "noised_real"},
        {"adversarial_weight": 0.01},
        {"continued_fraction": 1.0, "own_frames_fraction": 1.0},
    ],
    ids=str,
)
def test_a_dmd2_update_takes_the_passes_that_are_counted(
    folders: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    dmd2 = build(folders, tmp_path, final_exit_fraction=1.0, **options)
    dmd2.step(0)
    with blocks_run() as passes:
        dmd2.step(1)
    training = Passes.training(checkpointing=False)
    taken = EVALUATION * passes.count(False) + training * passes.count(True)
    assert taken.attention == pytest.approx(passes_per_update(dmd2.config).attention)


def test_windows_of_its_own_are_generated_for_the_clips_that_continue_only() -> None:
    none, half, all_ = (
        passes_per_update(Dmd2Config(continued_fraction=share, own_frames_fraction=1.0 if share else 0.0)).attention
        for share in (0.0, 0.5, 1.0)
    )
    assert half - none == pytest.approx((all_ - none) / 2)
    assert all_ > none


def test_the_warm_up_of_the_fake_score_counts(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, final_exit_fraction=1.0, fake_warmup_updates=3)
    with blocks_run() as passes:
        for step in range(dmd2.first_step, dmd2.config.num_steps):
            dmd2.step(step)
    taken = EVALUATION * passes.count(False) + Passes.training(checkpointing=False) * passes.count(True)
    assert taken.attention == pytest.approx(passes_of_training(dmd2.config).attention)


def test_other_stages_take_a_training_pass_and_the_guided_teachers_two_evaluations() -> None:
    placement = PlacementConfig(engine="ddp", num_workers=2, gradient_checkpointing=True)
    training = Passes.training(checkpointing=True)
    assert passes_per_update(FlowMatchingConfig(placement=placement)) == training == Passes(4, 4.5)
    assert passes_per_update(CfgDistillationConfig(placement=placement)) == training + Passes(2, 2)
