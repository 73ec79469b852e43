"""CFG distillation: one evaluation of a student with w as an input replaces the teacher's two (paper, 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from magic141.diffusion.flow import interpolate, sample_sigma, velocity_target
from magic141.diffusion.guidance import guided_velocity
from magic141.diffusion.samplers import randn_like
from magic141.models.adapters import share_frozen
from magic141.models.config import TransformerConfig
from magic141.models.transformer import add_guidance_embedding, load_transformer, velocity
from magic141.training.batches import Batch, BatchMaker
from magic141.training.config import CfgDistillationConfig
from magic141.training.context import TrainContext
from magic141.training.engines.engine import passes_dtype
from magic141.training.engines.make import make_frozen
from magic141.training.single_network import RandomNumbers, SingleNetworkObjective


def cfg_distillation_loss(student: Tensor, guided: Tensor, target: Tensor, distillation_weight: float) -> Tensor:
    """`lambda*||u_s - u_guided||^2 + (1-lambda)*||u_s - (noise - x0)||^2`, squares averaged over all elements.

    The paper names a weighted sum of two terms, but neither the second term nor the weights. Flow matching on real data
    is the natural second term; lambda is a setting.

    Args:
        student: the student's velocity u_s, [B, ...].
        guided: the teacher's guided velocity, [B, ...].
        target: the flow-matching target `noise - x0`, [B, ...].
        distillation_weight: lambda in [0, 1].
    """
    loss = distillation_weight * mse_loss(student, guided)
    if distillation_weight < 1:
        loss = loss + (1 - distillation_weight) * mse_loss(student, target)
    return loss


@dataclass(frozen=True)
class CfgDistillationSpec:
    """What a worker needs to build the objective."""

    config: CfgDistillationConfig
    model: TransformerConfig
    data: Path
    teacher: Path

    def build(self, context: TrainContext) -> CfgDistillation:
        """Loads data and networks on this worker."""
        return CfgDistillation(self, context)


class CfgDistillation(SingleNetworkObjective):
    """Trains a student with w as an input to predict the frozen teacher's guided velocity at a random w."""

    def __init__(self, spec: CfgDistillationSpec, context: TrainContext) -> None:
        self.config = spec.config
        maker = BatchMaker.open(
            spec.data, spec.model.window_frames, image_condition=True, continued_fraction=spec.config.continued_fraction
        )
        frozen, empty = passes_dtype(spec.config.precision), context.needs_no_weights
        student = load_transformer(spec.teacher, frozen if spec.config.lora_rank else torch.float32, empty)
        super().__init__(add_guidance_embedding(student), maker, spec.data, spec.config, context)
        teacher = load_transformer(spec.teacher, frozen, empty).requires_grad_(False)
        if spec.config.lora_rank and not context.splits_weights:
            share_frozen(teacher, self.engine.module)  # the student's base is the teacher
        self.teacher = make_frozen(teacher, spec.config.precision, context)

    def draw(self, x0: Tensor, rng: torch.Generator) -> RandomNumbers:
        """Draws guidance scales w [B], times [B] and noise [B, C, T, h, w]."""
        low, high = self.config.min_guidance_scale, self.config.max_guidance_scale
        w = (low + (high - low) * torch.rand(len(x0), generator=rng)).to(x0.device)
        sigma = sample_sigma(len(x0), self.config.shift, rng).to(x0.device)
        return w, sigma, randn_like(x0, rng)

    def loss(self, batch: Batch, drawn: RandomNumbers) -> Tensor:
        """The distillation loss of a batch or a part of it."""
        w, sigma, noise = drawn
        x_t = interpolate(batch.x0, noise, sigma)
        student = velocity(self.engine, x_t, sigma, batch.cond, batch.prefix, w)
        target = velocity_target(batch.x0, noise)
        return cfg_distillation_loss(
            student, self.guided(x_t, sigma, batch, w), target, self.config.distillation_weight
        )

    @torch.no_grad()
    def guided(self, x_t: Tensor, sigma: Tensor, batch: Batch, w: Tensor) -> Tensor:
        """The teacher's `u_unc + w*(u_cond - u_unc)`; x_t and result [B, C, T, h, w], sigma and w [B]."""
        conditional = velocity(self.teacher, x_t, sigma, batch.cond, batch.prefix)
        unconditional = velocity(self.teacher, x_t, sigma, batch.uncond, batch.prefix)
        return guided_velocity(unconditional, conditional, w)
