"""Samplers that turn noise into clean latents: Euler's ODE method and DMD2's re-noising chain."""

from __future__ import annotations

from collections.abc import Callable
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


def randn_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise like `x`, drawn on the generator's device, so that a seed gives the same everywhere."""
    return torch.randn(x.shape, generator=rng, device=rng.device, dtype=torch.float32).to(x)


def _batch(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x.device).expand(x.shape[0])
