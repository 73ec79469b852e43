"""Samplers that turn noise into clean latents: Euler's ODE method and DMD2's re-noising chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from magic141.diffusion.flow import interpolate, x0_from_velocity
from magic141.models.config import Sampler

PredictVelocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, ...], sigma [B]) -> velocity [B, ...]."""


def sample(predict: PredictVelocity, noise: Tensor, sigmas: Tensor, sampler: Sampler, rng: torch.Generator) -> Tensor:
    """Runs a chain of network steps along a grid of times.

    Args:
        predict: the velocity network.
        noise: [B, ...], standard normal.
        sigmas: decreasing times from 1, shape [n + 1]; the last is 0 for clean latents.
        sampler: "euler" integrates the probability-flow ODE, `x <- x + u*(sigma_next - sigma)`; "renoise", DMD2's
            chain, predicts the clean latents and noises them afresh to the next time (consistency sampling).
        rng: draws the fresh noise of "renoise".

    Returns:
        The latents at the last time, [B, ...], after n evaluations.
    """
    x_t = noise
    for sigma, sigma_next in pairwise(sigmas):
        time = _batch(sigma, x_t)
        velocity = predict(x_t, time)
        if sampler == "euler":
            x_t = x_t + velocity * (sigma_next - sigma)
        else:
            x0 = x0_from_velocity(x_t, velocity, time)
            x_t = interpolate(x0, randn_like(x0, rng), _batch(sigma_next, x0))
    return x_t


@dataclass(frozen=True)
class ChainStep:
    """The input of one step of a student's chain: noisy latents x_t [B, ...] at times sigma [B]."""

    x_t: Tensor
    sigma: Tensor  # [B]

    def part(self, rows: slice) -> ChainStep:
        """The samples `rows` of the batch."""
        return ChainStep(self.x_t[rows], self.sigma[rows])


def chain_input(
    predict: PredictVelocity, noise: Tensor, sigmas: Tensor, exit_step: int, sampler: Sampler, rng: torch.Generator
) -> ChainStep:
    """Backward simulation (DMD2, section 4.5): the student's input at `exit_step` of its own chain.

    Args:
        predict: the student; evaluated `exit_step` times.
        noise: [B, ...], standard normal.
        sigmas: the student's grid, shape [n + 1].
        exit_step: 0 (pure noise) to n - 1.
        sampler: the chain that the student is sampled with.
        rng: as in `sample`.
    """
    x_t = sample(predict, noise, sigmas[: exit_step + 1], sampler, rng)
    return ChainStep(x_t, _batch(sigmas[exit_step], x_t))


def randn_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise like `x`, drawn on the generator's device, so that a seed gives the same everywhere."""
    return torch.randn(x.shape, generator=rng, device=rng.device, dtype=torch.float32).to(x)


def _batch(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x.device).expand(x.shape[0])
