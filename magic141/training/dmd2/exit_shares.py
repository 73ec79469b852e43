"""How often an update of DMD2 trains each step of the student's chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magic141.training.dmd2.config import Dmd2Config


def exit_shares(config: Dmd2Config) -> tuple[float, ...]:
    """Share of the updates that train each step of the chain: num_inference_steps numbers that sum to 1.

    Clips that leave early are blurred. A fake score that cannot tell the exits apart models their mixture, and so
    pushes late clips towards too much contrast: the more, the more often clips leave early. The first step is also the
    whole chain of a student used with one step. Of two steps, the first gets what the last leaves.
    """
    num, first, last = config.num_inference_steps, config.first_exit_fraction, config.final_exit_fraction
    if num == 1:
        return (1.0,)
    if first is None:
        first = (1 - last) / (num - 1)
    between = (1 - last - first) / max(num - 2, 1)
    return (first, *[between] * (num - 2), last)
