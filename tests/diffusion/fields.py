"""Velocity fields that are known exactly."""

from __future__ import annotations

from torch import Tensor

from magic141.diffusion.flow import expand


def velocity_to(x0: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
    """The velocity `(x_t - x0)/sigma`, which leads from `x_t` to `x0`, all [B, ...]; sigma: [B] in (0, 1]."""
    return (x_t - x0) / expand(sigma, x_t)
