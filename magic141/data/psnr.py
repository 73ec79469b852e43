"""How near pixels are to others, in decibels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def psnr_db(mse: npt.ArrayLike, least: float = 1e-6) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio, of any shape.

    Args:
        mse: mean squared errors of pixels in [0, 1].
        least: what smaller errors count as; 1e-6 makes 60 dB the most.
    """
    return np.asarray(-10 * np.log10(np.maximum(mse, least)), np.float64)
