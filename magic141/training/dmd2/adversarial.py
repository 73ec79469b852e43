"""The adversarial losses of step distillation: a head on the fake score's features tells real from generated clips.

The abstract names "adversarial step distillation" without details. This is DMD2's form (Yin et al. 2024, section 4.4),
with the head where the sibling paper draws it, after the last double-stream block.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from magic141.training.engines.engine import Engine


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """`-log D(real) - log(1 - D(generated))` of logits of any shape; 2*log 2 for a head that cannot tell them apart."""
    return softplus(-real).mean() + softplus(generated).mean()


def generator_loss(generated: Tensor) -> Tensor:
    """`-log D(generated)` of logits of any shape: the non-saturating loss."""
    return softplus(-generated).mean()


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

    def noises(self, x: Tensor, rng: torch.Generator) -> tuple[Noise, Noise]:
        """Noise for the real clips of a batch, and for the generated ones x [B, C, T, h, w]."""
        return self.noise(x, rng), self.noise(x, rng)

    def loss(self, kept: Generated, for_real: Noise, for_generated: Noise) -> Tensor:
        """The head's loss in telling the real clips of a batch from the generated ones."""
        real = self.logits(self.fake, kept.batch.x0, kept.batch, kept.w, for_real)
        return discriminator_loss(real, self.logits(self.fake, kept.x0, kept.batch, kept.w, for_generated))

    def generator_loss(self, x: Tensor, batch: Batch, w: Guidance, noise: Noise) -> Tensor:
        """The generator's adversarial loss; its gradient reaches x alone, not the fake score's weights."""
        leaf = x.detach().requires_grad_()
        with self.fake.autocast():
            loss = generator_loss(self.logits(self.guided.scores, leaf, batch, w, noise))
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach() + ((x - leaf.detach()) * gradient).sum()

    def logits(self, network: Any, x: Tensor, batch: Batch, w: Guidance, noise: Noise) -> Tensor:
        """The head's logits [B, tokens] for latents x [B, C, T, h, w]; `network` is the scores or their engine."""
        self.guided.fake(network, noise.on(x), noise.sigma, batch, w)
        return self.guided.scores.logits()
