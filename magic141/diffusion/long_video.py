"""Long video by a sliding window: each window continues the last latent frames of the one before (abstract; 3.3).

The paper names a test-time sliding window without details. Here windows are chained and anchored: every window knows
the video's very first latent frame and, after it, the last k latent frames of the previous window. Without the anchor,
small errors of the background add up from window to window. Frames are carried as latents: decoding and encoding them
again, as other implementations do, makes colours drift. Cost is linear in the number of windows, memory constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SampleWindow = Callable[[Tensor, int], Tensor]
"""(known latent frames [B, C, 1 or 1 + k, h, w], window index) -> latents [B, C, T, h, w]."""


def chain_windows(sample_window: SampleWindow, first_latent: Tensor, num_windows: int, num_carried: int) -> Tensor:
    """Chains windows; every latent frame appears once.

    Args:
        sample_window: generates a window from its known frames.
        first_latent: the anchor, known at the start of every window, [B, C, 1, h, w].
        num_windows: at least 1.
        num_carried: k, latent frames carried from window to window; less than T - 1.

    Returns:
        Latents [B, C, T + (num_windows-1)*(T-1-k), h, w].
    """
    window = sample_window(first_latent, 0)
    assert 0 < num_carried < window.shape[2] - 1, (num_carried, tuple(window.shape))
    parts = [window]
    for index in range(1, num_windows):
        known = torch.cat([first_latent, window[:, :, -num_carried:]], dim=2)
        window = sample_window(known, index)
        parts.append(window[:, :, 1 + num_carried :])
    return torch.cat(parts, dim=2)


def fresh_latent_frames(window_latent_frames: int, num_carried: int) -> int:
    """Latent frames that every window but the first adds to a long video: T - 1 - k, for the anchor and the carried."""
    return window_latent_frames - 1 - num_carried


def video_latent_frames(num_windows: int, window_latent_frames: int, num_carried: int) -> int:
    """Latent frames of a video of n windows, each counted once: T + (n-1)*(T-1-k)."""
    return window_latent_frames + (num_windows - 1) * fresh_latent_frames(window_latent_frames, num_carried)


def num_windows_for(num_latent_frames: int, window_latent_frames: int, num_carried: int) -> int:
    """The smallest number of windows that cover `num_latent_frames`."""
    fresh = fresh_latent_frames(window_latent_frames, num_carried)
    return 1 + max(0, -(-(num_latent_frames - window_latent_frames) // fresh))
