"""Classifier-free guidance in the standard form, where w = 1 means none."""

from __future__ import annotations

from torch import Tensor

from magic141.diffusion.flow import expand


def guided_velocity(unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
    """`u_unc + w*(u_cond - u_unc)`; `guidance_scale` w of shape [B]."""
    return unconditional + expand(guidance_scale, conditional) * (conditional - unconditional)
