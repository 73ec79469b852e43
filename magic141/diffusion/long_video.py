"""Long video by a sliding window: each window continues the last latent frames of the one before (abstract; 3.3).

The paper names a test-time sliding window and gives no details. Here windows are chained: the last k latent frames of
a window are the known frames of the next. They are carried as latents, never decoded and encoded again, which is
where other implementations pick up colour drift. Cost is linear in the number of windows, memory constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SampleWindow = Callable[[Tensor, int], Tensor]
"""(known latent frames [B, C, k, h, w], window index) -> latents [B, C, T, h, w]."""


def chain_windows(sample_window: SampleWindow, first_latent: Tensor, num_windows: int, prefix_frames: int) -> Tensor:
    """Chains windows; every latent frame appears once.

    Args:
        sample_window: generates a window from its known frames.
        first_latent: known at the start of the first window, [B, C, 1, h, w].
        num_windows: at least 1.
        prefix_frames: k, latent frames carried on, below the window's T.

    Returns:
        [B, C, T + (num_windows-1)*(T-k), h, w].
    """
    window = sample_window(first_latent, 0)
    assert 0 < prefix_frames < window.shape[2], (prefix_frames, tuple(window.shape))
    parts = [window]
    for index in range(1, num_windows):
        known = window[:, :, -prefix_frames:]
        window = sample_window(known, index)
        parts.append(window[:, :, prefix_frames:])
    return torch.cat(parts, dim=2)


def num_windows_for(num_latent_frames: int, window_latent_frames: int, prefix_frames: int) -> int:
    """The fewest windows that cover `num_latent_frames`."""
    fresh = window_latent_frames - prefix_frames
    return 1 + max(0, -(-(num_latent_frames - window_latent_frames) // fresh))
