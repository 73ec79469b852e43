"""Draws the step of the student's chain that an update trains (DMD2, section 4.5: backward simulation)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def draw_exit_step(shares: Sequence[float], rng: torch.Generator) -> int:
    """Draws a step of the chain, 0 to `len(shares) - 1`, with the probabilities `shares`."""
    drawn = torch.rand((), generator=rng)
    ends = torch.tensor(shares).cumsum(0)
    return min(int(torch.searchsorted(ends, drawn, right=True)), len(shares) - 1)
