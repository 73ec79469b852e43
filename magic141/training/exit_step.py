"""At which step of the student's chain an update trains it (DMD2, section 4.5: backward simulation)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def draw_exit_step(shares: Sequence[float], generator: torch.Generator) -> int:
    """A step of the chain, 0 to `len(shares)` - 1, as often as its share says."""
    drawn = torch.rand((), generator=generator)
    ends = torch.tensor(shares).cumsum(0)
    return min(int(torch.searchsorted(ends, drawn, right=True)), len(shares) - 1)
