"""Estimates the arithmetic of training updates: matrix products and attention, which are nearly all of it.

An operation is a multiplication or an addition. Validation, export and optimizers are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from magic141.models.config import TransformerConfig
from magic141.training.config import CfgDistillationConfig, SingleNetworkConfig, TrainConfig
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.exit_shares import exit_shares


@dataclass(frozen=True)
class Passes:
    """Work on one clip, in units of a forward pass.

    Attributes:
        products: the layers' matrix products, relative to those of a forward pass.
        attention: attention, relative to that of a forward pass.
    """

    products: float
    attention: float

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.products + other.products, self.attention + other.attention)

    def __mul__(self, times: float) -> Passes:
        return Passes(self.products * times, self.attention * times)

    @classmethod
    def training(cls, checkpointing: bool, frozen: bool = False) -> Self:
        """A forward and a backward pass through all blocks.

        For every layer, the backward pass takes one product for the input's gradient and one for the weight's, unless
        that is frozen under a low-rank branch; for attention it takes five products instead of two, because fused
        kernels compute the scores again. With checkpointing the whole forward pass runs twice.
        """
        again = 1 if checkpointing else 0
        return cls(1 + again + (1 if frozen else 2), 1 + again + 5 / 2)


EVALUATION = Passes(1, 1)


def num_operations(passes: Passes, model: TransformerConfig, num_tokens: int) -> float:
    """The operations of `passes` over one clip of `num_tokens` tokens, text included."""
    width, num_blocks = model.num_attention_heads * model.attention_head_dim, model.num_layers + model.num_single_layers
    weights = num_blocks * (4 + 2 * model.mlp_ratio) * width**2
    scores = num_blocks * 2 * num_tokens * width  # QK' and PV
    return 2.0 * num_tokens * (passes.products * weights + passes.attention * scores)


def passes_per_update(config: TrainConfig) -> Passes:
    """The work of one update of a training stage on each clip of its batch."""
    return sum(_parts(config), Passes(0, 0))


def passes_of_training(config: TrainConfig) -> Passes:
    """The work of a whole training stage on each clip of its batches."""
    return sum(_preparation(config), passes_per_update(config) * config.num_steps)


def _preparation(config: TrainConfig) -> Iterator[Passes]:
    """The warm-up of DMD2's fake score, and the clips for it."""
    if isinstance(config, Dmd2Config):
        yield _fake_update(config) * config.fake_warmup_updates
        yield _simulation(config) * math.ceil(config.fake_warmup_updates / config.fake_updates_per_step)


def _parts(config: TrainConfig) -> Iterator[Passes]:
    checkpointing = config.placement.gradient_checkpointing
    if isinstance(config, Dmd2Config):
        yield from _dmd2(config)
        return
    yield Passes.training(checkpointing, frozen=isinstance(config, SingleNetworkConfig) and config.lora_rank > 0)
    if isinstance(config, CfgDistillationConfig):
        yield EVALUATION * 2  # the guided teacher


def _dmd2(config: Dmd2Config) -> Iterator[Passes]:
    """The simulation, the generator's training pass, both scores' evaluations, and the fake score's updates."""
    checkpointing = config.placement.gradient_checkpointing
    yield _simulation(config)
    yield Passes.training(checkpointing, frozen=config.generator_lora_rank > 0)
    yield EVALUATION * (2 if config.real_score == "teacher" and config.is_guided else 1)  # the real score
    yield EVALUATION  # the fake one
    yield _fake_update(config) * config.fake_updates_per_step
    if config.is_adversarial:
        yield Passes.training(checkpointing, frozen=True)


def _simulation(config: Dmd2Config) -> Passes:
    """The student's chain up to its exit, and the frames that it generates to continue."""
    before_exit = sum(step * share for step, share in enumerate(exit_shares(config)))
    chain = (before_exit if config.generator_input == "backward_simulation" else 0) + 1
    own_frames = config.own_frames_fraction * config.continued_fraction  # share of the clips that follow a made window
    return EVALUATION * (chain + own_frames * config.num_inference_steps)


def _fake_update(config: Dmd2Config) -> Passes:
    """Generated clips, and for a discriminator real and generated ones."""
    fake = Passes.training(config.placement.gradient_checkpointing, frozen=config.fake_score == "lora")
    return fake * (3 if config.is_adversarial else 1)
