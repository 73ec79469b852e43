"""The adversarial losses of step distillation: a head on the fake score's features tells real from generated clips.

The abstract names "adversarial step distillation" without details. This is DMD2's form (Yin et al. 2024, section 4.3),
with the head where the sibling paper draws it, after the last double-stream block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from magic141.diffusion.samplers import randn_like
from magic141.training.batches import Batch
from magic141.training.dmd2.backward_simulation import Generated
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.distribution_matching import Noise, score_times
from magic141.training.dmd2.networks import Guidance, GuidedScores
from magic141.training.engines.accumulation import LossOfPart
from magic141.training.engines.engine import Engine

AdversarialLoss = Callable[[Tensor], Tensor]
"""The generator's loss of clips [B, C, T, h, w], near those around which it was made."""


def loss_as_real(logits: Tensor) -> Tensor:
    """`-log D` of logits of any shape: the head's loss on real clips, and the generator's non-saturating loss."""
    return softplus(-logits).mean()


def loss_as_generated(logits: Tensor) -> Tensor:
    """`-log(1 - D)` of logits of any shape: the head's loss on generated clips."""
    return softplus(logits).mean()


@dataclass(frozen=True)
class Discriminator:
    """The head on the fake score's features, and its losses.

    Attributes:
        config: the stage's settings.
        guided: real and fake score; the head belongs to the fake score.
        fake: the engine that trains the fake score and the head.
    """

    config: Dmd2Config
    guided: GuidedScores
    fake: Engine

    def noise(self, x: Tensor, rng: torch.Generator) -> Noise:
        """The noise on x [B, C, T, h, w] as the head sees it; if it is to see clean latents, times are 0: no noise."""
        noised = self.config.adversarial_input == "noised"
        sigma = score_times(x, self.config, rng) if noised else torch.zeros(len(x), device=x.device)
        return Noise(randn_like(x, rng), sigma)

    def losses(self, kept: Generated, rng: torch.Generator) -> list[LossOfPart]:
        """The head's losses on the real clips of a batch and on the generated ones; draws their noise from `rng`."""
        for_real, for_generated = self.noise(kept.batch.x0, rng), self.noise(kept.x0, rng)
        return [
            partial(self._loss, loss_as_real, kept.batch.x0, kept, for_real),
            partial(self._loss, loss_as_generated, kept.x0, kept, for_generated),
        ]

    def _loss(
        self, loss_of: Callable[[Tensor], Tensor], x: Tensor, kept: Generated, noise: Noise, rows: slice
    ) -> tuple[Tensor, dict[str, Tensor]]:
        part = kept.part(rows)
        with self.fake.autocast():
            loss = loss_of(self.logits(self.fake, x[rows], part.batch, part.w, noise.part(rows)))
        return self.config.discriminator_weight * loss, {"discriminator_loss": loss}

    def generator_loss(self, x: Tensor, batch: Batch, w: Guidance, noise: Noise) -> AdversarialLoss:
        """The generator's adversarial loss around its clips x [B, C, T, h, w], as a linear function of clips.

        Its gradient reaches the clips alone, not the fake score's weights, whose graph is gone when this returns.
        """
        leaf = x.detach().requires_grad_()
        with self.fake.autocast():
            loss = loss_as_real(self.logits(self.guided.scores, leaf, batch, w, noise))
        (gradient,) = torch.autograd.grad(loss, leaf)
        value, place = loss.detach(), leaf.detach()
        return lambda clips: value + ((clips - place) * gradient).sum()

    def logits(self, network: Any, x: Tensor, batch: Batch, w: Guidance, noise: Noise) -> Tensor:
        """The head's logits [B, tokens] for latents x [B, C, T, h, w]; `network` is the scores or their engine."""
        self.guided.fake(network, noise.on(x), noise.sigma, batch, w)
        return self.guided.scores.logits()
