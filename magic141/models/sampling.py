"""How a network is sampled: steps, time grid, guidance and sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from magic141.models.config import Sampler


@dataclass(frozen=True)
class SamplingSettings:
    """How a network makes a window.

    Attributes:
        num_steps: steps of a window.
        shift: shift of the time grid.
        guidance_scale: w; 1 is no guidance.
        guidance: "two_evaluations": with and without the caption at every step; "embedded": w is an input.
        sampler: "euler": deterministic ODE; "renoise": DMD2's chain.
    """

    num_steps: int
    shift: float
    guidance_scale: float
    guidance: Literal["two_evaluations", "embedded"]
    sampler: Sampler

    @property
    def num_evaluations(self) -> int:
        """Network evaluations per window and clip."""
        return self.num_steps * (2 if self.guidance == "two_evaluations" else 1)
