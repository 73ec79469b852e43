"""Builds the networks of DMD2 step distillation and applies guidance to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn

from magic141.diffusion.guidance import guided_velocity
from magic141.models.adapters import add_lora, share_frozen
from magic141.models.transformer import add_guidance_embedding, load_transformer, velocity
from magic141.training.batches import Batch
from magic141.training.context import TrainContext
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.score_networks import Scores, SeparateScores, SharedScores
from magic141.training.engines.engine import passes_dtype

if TYPE_CHECKING:
    from magic141.training.dmd2.spec import Dmd2Spec


def takes_image(folder: Path) -> bool:
    """Whether a diffusers transformer folder holds an I2V model."""
    return HunyuanVideoTransformer3DModel.load_config(folder).get("image_condition_type") is not None


def build_generator(spec: Dmd2Spec, context: TrainContext) -> HunyuanVideoTransformer3DModel:
    """The few-step student, with w as an input; all of it is trained, or only a low-rank branch."""
    config, folder = spec.config, spec.folder(spec.config.start)
    dtype = passes_dtype(config.precision) if config.generator_lora_rank else torch.float32
    generator = add_guidance_embedding(load_transformer(folder, dtype, context.needs_no_weights))
    if config.generator_lora_rank > 0:
        add_lora(generator, config.generator_lora_rank, context.seed)
    return generator


def build_scores(spec: Dmd2Spec, context: TrainContext, generator: nn.Module) -> Scores:
    """Real and fake score on the configured base, with an exit embedding and a discriminator head if configured.

    Their base is that of `generator`, which is in its place, where both are branches of the same network.
    """
    config, empty = spec.config, context.needs_no_weights
    folder = spec.folder(config.real_score)
    scores: Scores
    if config.fake_score == "full":
        scores = SeparateScores(load_transformer(folder, empty=empty))
    else:
        base = load_transformer(folder, passes_dtype(config.precision), empty)
        scores = SharedScores(base, config.lora_rank, config.a_weak, config.a_strong, context.seed)
        if config.has_one_base and not context.splits_weights:
            share_frozen(scores.network, generator)
    if config.exit_embedding:
        scores.add_exits(config.num_inference_steps)
    if config.is_adversarial:
        scores.add_head(context.seed)
    return scores


@dataclass(frozen=True)
class Guidance:
    """The guidance scales of a batch.

    Attributes:
        student: w that the student gets as an input, [B].
        real: w of the real score, [B].
    """

    student: Tensor
    real: Tensor

    @classmethod
    def draw(cls, config: Dmd2Config, num: int, rng: torch.Generator) -> Guidance:
        """The two fixed values, or one value per clip from `student_guidance_range` for both."""
        if config.student_guidance_range is None:
            return cls.fixed(config, num)
        low, high = config.student_guidance_range
        w = low + (high - low) * torch.rand(num, generator=rng)
        return cls(w, w)

    @classmethod
    def fixed(cls, config: Dmd2Config, num: int) -> Guidance:
        """The configured scales: those of validation and, without a range, of training too."""
        real = config.student_guidance_scale if config.student_guidance_range else config.real_guidance_scale
        return cls(torch.full((num,), config.student_guidance_scale), torch.full((num,), real))

    def to(self, device: torch.device) -> Guidance:
        """The same on another device."""
        return Guidance(self.student.to(device), self.real.to(device))

    def part(self, rows: slice | Tensor) -> Guidance:
        """The samples `rows` of the batch."""
        return Guidance(self.student[rows], self.real[rows])


@dataclass(frozen=True)
class GuidedScores:
    """The scores with guidance: a CFG-distilled base takes w as an input, the teacher is guided by two evaluations.

    Attributes:
        scores: real and fake score.
        kind: which network is their base.
        two_evaluations: whether the teacher is evaluated twice; the same on all workers, whatever w each has drawn.
    """

    scores: Scores
    kind: Literal["teacher", "cfg_distilled"]
    two_evaluations: bool

    def real(self, x_t: Tensor, sigma: Tensor, batch: Batch, w: Guidance) -> Tensor:
        """The real score's velocity [B, C, T, h, w], without a gradient; x_t is as large, sigma [B]."""
        return self._guided(self.scores.real(), x_t, sigma, batch, w)

    def base(self, x_t: Tensor, sigma: Tensor, batch: Batch, w: Guidance) -> Tensor:
        """The base's velocity, without a gradient: that of the many-step model that the student is compared with."""
        return self._guided(self.scores.base(), x_t, sigma, batch, w)

    def fake(self, network: Any, x_t: Tensor, sigma: Tensor, batch: Batch, w: Guidance) -> Tensor:
        """The fake score's velocity; `network` is the scores or the engine that wraps them."""
        return velocity(network, x_t, sigma, batch.cond, batch.prefix, w.real if self.kind == "cfg_distilled" else None)

    @torch.no_grad()
    def _guided(self, network: Any, x_t: Tensor, sigma: Tensor, batch: Batch, w: Guidance) -> Tensor:
        if self.kind == "cfg_distilled":
            return velocity(network, x_t, sigma, batch.cond, batch.prefix, w.real)
        conditional = velocity(network, x_t, sigma, batch.cond, batch.prefix, None)
        if not self.two_evaluations:
            return conditional
        return guided_velocity(velocity(network, x_t, sigma, batch.uncond, batch.prefix, None), conditional, w.real)
