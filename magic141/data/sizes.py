"""Heights and widths of clips: a corpus may have several, so that upright videos need not be cropped to lying ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

NUM_DIGITS = 9  # that are compared: equally near shapes differ in the last ones


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def aspect(self) -> float:
        """Width divided by height."""
        return self.width / self.height


def nearest_size(aspect: float, sizes: Sequence[Size]) -> Size:
    """The size to which a picture of width / height = `aspect` loses least by cropping; the first of equal ones."""
    return min(sizes, key=lambda size: round(abs(math.log(size.aspect / aspect)), NUM_DIGITS))
