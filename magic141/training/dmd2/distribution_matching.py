"""Distribution matching: noised clips for the scores of DMD2, and the gradient from the scores' difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from magic141.diffusion.flow import expand, interpolate, sample_sigma
from magic141.diffusion.samplers import randn_like
from magic141.training.dmd2.config import Dmd2Config

MIN_NORMALISER = 1e-4


@dataclass(frozen=True)
class Noise:
    """The noise that is mixed into a batch of clips.

    Attributes:
        noise: standard normal, [B, C, T, h, w].
        sigma: times in [0, 1], shape [B].
    """

    noise: Tensor
    sigma: Tensor

    @classmethod
    def draw(cls, x: Tensor, config: Dmd2Config, rng: torch.Generator) -> Self:
        """Noise for clips x [B, C, T, h, w], at random score times."""
        sigma = score_times(x, config, rng)
        return cls(randn_like(x, rng), sigma)

    def on(self, x: Tensor) -> Tensor:
        """The noised clips `sigma*noise + (1-sigma)*x`; x: [B, C, T, h, w]."""
        return interpolate(x, self.noise, self.sigma)

    def part(self, rows: slice) -> Noise:
        """The noise of the samples `rows`."""
        return Noise(self.noise[rows], self.sigma[rows])


def score_times(x: Tensor, config: Dmd2Config, rng: torch.Generator) -> Tensor:
    """Random times [B] at which the scores are evaluated for clips x [B, ...]."""
    low, high = config.min_score_time, config.max_score_time
    return sample_sigma(len(x), config.score_shift, rng, low, high).to(x.device)


def dmd2_gradient(x: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """`g = (x0_fake - x0_real) / mean|x - x0_real|`, [B, ...].

    The mean is per sample and has a floor; elements of g that are not finite become zero.

    Args:
        x: the generator's clean estimate, [B, ...].
        x0_real: the real score's clean estimate of the noised x, [B, ...].
        x0_fake: the fake score's clean estimate of the noised x, [B, ...].
    """
    normaliser = (x - x0_real).abs().flatten(1).mean(1).clamp_min(MIN_NORMALISER)
    gradient = (x0_fake - x0_real) / expand(normaliser, x)
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def dmd2_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """`0.5*mean((x - stopgrad(x - g))^2)`, whose derivative by x is g / number of elements; x, gradient: [B, ...]."""
    return 0.5 * mse_loss(x, (x - gradient).detach())
