"""Classifier-free guidance in the standard form, in which w = 1 means no guidance."""

from __future__ import annotations

from torch import Tensor

from magic141.diffusion.flow import expand


def guided_velocity(unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
    """`u_unc + w*(u_cond - u_unc)`, [B, ...]; unconditional, conditional: [B, ...]; guidance_scale: w, [B]."""
    return unconditional + expand(guidance_scale, conditional) * (conditional - unconditional)
