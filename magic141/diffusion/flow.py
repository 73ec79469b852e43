"""The flow-matching path, its time schedule, and the clean estimate that follows from a velocity.

Conventions of the paper (section 3.1): `x_t = sigma*noise + (1-sigma)*x0`; the network predicts the velocity
`u = noise - x0`; time is `sigma` in [0, 1], 1 is pure noise. The network itself sees `1000*sigma`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """Shapes `sigma`, or another number per sample, [B] so that it broadcasts over `x` [B, ...]."""
    return sigma.reshape(-1, *[1] * (x.dim() - 1))


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """`x_t = sigma*noise + (1-sigma)*x0`, [B, ...]; x0, noise: [B, ...]; sigma: [B] in [0, 1]."""
    s = expand(sigma, x0)
    return s * noise + (1 - s) * x0


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """`u = noise - x0`, the derivative of the path with respect to sigma; all [B, ...]."""
    return noise - x0


def x0_from_velocity(x_t: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The clean estimate `x0 = x_t - sigma*u`, [B, ...]; x_t, velocity: [B, ...]; sigma: [B] in [0, 1]."""
    return x_t - expand(sigma, x_t) * velocity


def shift_sigma(x: Tensor, shift: float) -> Tensor:
    """`s(x) = shift*x/(1+(shift-1)*x)`: moves times in [0, 1] towards noise for shift > 1; 1/shift moves them back."""
    return shift * x / (1 + (shift - 1) * x)


def sigma_grid(num_steps: int, shift: float) -> Tensor:
    """The sampler's times from 1 to 0, [num_steps + 1]; for 4 steps and shift 5: 1, 0.9375, 0.8333, 0.625, 0."""
    return shift_sigma(torch.linspace(1, 0, num_steps + 1), shift)


def sample_sigma(num: int, shift: float, rng: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Random training times [num]: uniform in [low, high], then shifted."""
    return shift_sigma(low + (high - low) * torch.rand(num, generator=rng), shift)
