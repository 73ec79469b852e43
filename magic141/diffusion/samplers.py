"""Samplers that turn noise into clean latents: Euler's ODE method and DMD2's re-noising chain."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from magic141.diffusion.flow import interpolate, x0_from_velocity

PredictVelocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, ...], sigma [B]) -> velocity [B, ...]."""


def sample_euler(predict: PredictVelocity, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Integrates the probability-flow ODE: `x <- x + u*(sigma_next - sigma)`.

    Args:
        predict: the velocity network.
        noise: [B, ...], standard normal.
        sigmas: decreasing times from 1 to 0, shape [n + 1].

    Returns:
        Clean latents [B, ...] after n evaluations.
    """
    x_t = noise
    for sigma, sigma_next in pairwise(sigmas):
        x_t = x_t + predict(x_t, _batch(sigma, x_t)) * (sigma_next - sigma)
    return x_t


def sample_renoise(predict: PredictVelocity, noise: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor:
    """DMD2's chain: predict clean latents, then re-noise them to the next time (consistency sampling).

    Args and result as in `sample_euler`; `generator` draws the fresh noise.
    """
    return deque(renoise_chain(predict, noise, sigmas, generator), maxlen=1)[0]


@dataclass(frozen=True)
class ChainStep:
    """The input of one step of a student's chain: noisy latents x_t [B, ...] at times sigma [B]."""

    x_t: Tensor
    sigma: Tensor  # [B]


def renoise_chain(
    predict: PredictVelocity, noise: Tensor, sigmas: Tensor, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yields the clean estimate [B, ...] of every step of `sample_renoise`."""
    x_t = noise
    for sigma, sigma_next in pairwise(sigmas):
        time = _batch(sigma, x_t)
        x0 = x0_from_velocity(x_t, predict(x_t, time), time)
        yield x0
        x_t = interpolate(x0, randn_like(x0, generator), _batch(sigma_next, x0))


def chain_input(
    predict: PredictVelocity, noise: Tensor, sigmas: Tensor, exit_step: int, sampler: str, generator: torch.Generator
) -> ChainStep:
    """Backward simulation (DMD2, section 4.5): the student's input at `exit_step` of its own chain.

    Args:
        predict: the student; evaluated `exit_step` times.
        noise: [B, ...], standard normal.
        sigmas: the student's grid, shape [n + 1].
        exit_step: 0 (pure noise) to n - 1.
        sampler: "renoise" or "euler", as the student is sampled.
        generator: draws the fresh noise for "renoise".
    """
    x_t = noise
    for sigma, sigma_next in pairwise(sigmas[: exit_step + 1]):
        time = _batch(sigma, x_t)
        velocity = predict(x_t, time)
        if sampler == "euler":
            x_t = x_t + velocity * (sigma_next - sigma)
        else:
            x0 = x0_from_velocity(x_t, velocity, time)
            x_t = interpolate(x0, randn_like(x0, generator), _batch(sigma_next, x0))
    return ChainStep(x_t, _batch(sigmas[exit_step], x_t))


def randn_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise like `x`, drawn on the generator's device, so that a seed gives the same everywhere."""
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=torch.float32).to(x)


def _batch(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x.device).expand(x.shape[0])
