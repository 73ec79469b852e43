"""Flow-matching pretraining: T2V from scratch or a base, I2V from T2V widened to 2C+1 channels (paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor
from torch.nn.functional import mse_loss

from magic141.data.info import load_info
from magic141.diffusion.flow import interpolate, sample_sigma, velocity_target
from magic141.diffusion.samplers import PredictVelocity, randn_like
from magic141.models.config import TransformerConfig
from magic141.models.transformer import (
    build_transformer,
    expand_to_i2v,
    fold_guidance,
    load_transformer,
    velocity,
)
from magic141.training.batches import Batch, BatchMaker
from magic141.training.config import FlowMatchingConfig
from magic141.training.context import TrainContext
from magic141.training.engines.engine import passes_dtype
from magic141.training.single_network import RandomNumbers, SingleNetworkObjective


def flow_matching_loss(predict: PredictVelocity, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """`E || u(x_t, sigma) - (noise - x0) ||^2` with `x_t = sigma*noise + (1-sigma)*x0`.

    Args:
        predict: the network.
        x0: clean latents [B, ...].
        noise: standard normal, [B, ...].
        sigma: times in [0, 1], shape [B].
    """
    return mse_loss(predict(interpolate(x0, noise, sigma), sigma), velocity_target(x0, noise))


@dataclass(frozen=True)
class FlowMatchingSpec:
    """What a worker needs to build the objective.

    Attributes:
        config: the stage's settings.
        model: the transformer's settings.
        data: the data artifact.
        start: diffusers folder of the network to train on from; None: a new one.
        image_condition: whether it is trained as an I2V model.
    """

    config: FlowMatchingConfig
    model: TransformerConfig
    data: Path
    start: Path | None
    image_condition: bool

    def build(self, context: TrainContext) -> FlowMatching:
        """Loads data and builds the network on this worker."""
        return FlowMatching(self, context)


class FlowMatching(SingleNetworkObjective):
    """The flow-matching objective: regression onto the velocity of noised windows, with condition dropout."""

    def __init__(self, spec: FlowMatchingSpec, context: TrainContext) -> None:
        self.shift = spec.config.shift
        self.first_step_with_far_anchors = int(spec.config.anchored_from * spec.config.num_steps)
        maker = BatchMaker.open(
            spec.data,
            spec.model.window_frames,
            image_condition=spec.image_condition,
            continued_fraction=spec.config.continued_fraction,
            text_dropout=spec.config.text_dropout,
            image_dropout=spec.config.image_dropout,
        )
        network = initial_network(spec, context.needs_no_weights)
        super().__init__(network, maker, spec.data, spec.config, context)

    def maker_at(self, step: int) -> BatchMaker:
        """Without far anchors early on: they are slow to learn and would delay everything else."""
        return self.maker if step >= self.first_step_with_far_anchors else replace(self.maker, far_anchors=False)

    def draw(self, x0: Tensor, rng: torch.Generator) -> RandomNumbers:
        """Draws times [B] and noise [B, C, T, h, w]."""
        sigma = sample_sigma(len(x0), self.shift, rng).to(x0.device)
        return sigma, randn_like(x0, rng)

    def loss(self, batch: Batch, drawn: RandomNumbers) -> Tensor:
        """The flow-matching loss of a batch or a part of it."""
        sigma, noise = drawn
        return flow_matching_loss(
            lambda x_t, t: velocity(self.engine, x_t, t, batch.cond, batch.prefix), batch.x0, noise, sigma
        )


def initial_network(spec: FlowMatchingSpec, empty: bool = False) -> HunyuanVideoTransformer3DModel:
    """A new network, or the one to train on from, if `empty` without its weights; a T2V network is widened for I2V."""
    if spec.start is None:
        info = load_info(spec.data)
        return build_transformer(
            spec.model, info.latent_shape[0], info.text_width, info.pooled_width, spec.image_condition
        )
    dtype = passes_dtype(spec.config.precision) if spec.config.lora_rank else torch.float32
    base = load_base(spec.start, spec.config.base_guidance_scale, dtype, empty)
    return expand_to_i2v(base) if spec.image_condition and not base.config.image_condition_type else base


def load_base(
    folder: Path | str, guidance_scale: float, dtype: torch.dtype = torch.float32, empty: bool = False
) -> HunyuanVideoTransformer3DModel:
    """Loads a base and folds away an input w, which neither pretraining nor guiding the teacher later on uses."""
    base = load_transformer(folder, dtype, empty)
    return fold_guidance(base, guidance_scale) if base.config.guidance_embeds else base
