"""Draws which step of the student's chain an update trains, and from what (DMD2, section 4.5: backward simulation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class ExitDraw:
    """An update's exit step, and whether its continued clips continue frames that the student has generated."""

    exit_step: int
    own_frames: bool

    @classmethod
    def of(cls, shares: Sequence[float], own_frames_fraction: float, rng: torch.Generator) -> Self:
        """Draws the exit with the probabilities `shares`, then the frames with `own_frames_fraction`."""
        exit_step = draw_exit_step(shares, rng)
        return cls(exit_step, bool(torch.rand((), generator=rng) < own_frames_fraction))


def draw_exit_step(shares: Sequence[float], rng: torch.Generator) -> int:
    """Draws a step of the chain, 0 to `len(shares) - 1`, with the probabilities `shares`."""
    drawn = torch.rand((), generator=rng)
    ends = torch.tensor(shares).cumsum(0)
    return min(int(torch.searchsorted(ends, drawn, right=True)), len(shares) - 1)
