"""At which step of the student's chain an update trains it (DMD2, section 4.5: backward simulation)."""

from __future__ import annotations

import torch
from torch import Tensor


def exit_shares(num_steps: int, final_fraction: float, first_fraction: float | None = None) -> Tensor:
    """Share of the updates that train each step of the chain, [num_steps], together 1.

    The fake score knows one distribution, that of clips from all exits together. Those that leave early are blurred;
    if all exits are as frequent, the last ones learn to be as much too contrasty. The first step is also the whole
    chain of a student that is used at one step.

    Args:
        num_steps: length of the chain.
        final_fraction: share of the last step, 0 to 1; the others share the rest alike.
        first_fraction: share of the first step; None: as the steps between. Of two steps, the first has
            what the last leaves.
    """
    if num_steps == 1:
        return torch.ones(1)
    if first_fraction is None or num_steps == 2:
        first_fraction = (1 - final_fraction) / (num_steps - 1)
    shares = torch.full((num_steps,), (1 - final_fraction - first_fraction) / max(num_steps - 2, 1))
    shares[0], shares[-1] = first_fraction, final_fraction
    return shares


def draw_exit_step(shares: Tensor, generator: torch.Generator) -> int:
    """A step of the chain, 0 to `len(shares)` - 1, as often as its share says."""
    drawn = torch.rand((), generator=generator)
    return min(int(torch.searchsorted(shares.cumsum(0), drawn, right=True)), len(shares) - 1)
