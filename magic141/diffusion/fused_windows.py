"""Long video in one denoising loop: at every step overlapping windows are evaluated and averaged where they overlap.

This is the other reading of the paper's sliding window: its group's later work speaks of a sliding window inside the
denoising. The default is `long_video`. Each window knows the video's first frame and, as carried frames, the previous
windows' clean estimate of the overlap at this step, which at first is blurred. It takes as many evaluations and as much
memory per forward pass as chained windows, but holds the latents of the whole video at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from magic141.diffusion.flow import x0_from_velocity
from magic141.diffusion.long_video import fresh_latent_frames
from magic141.diffusion.samplers import PredictVelocity

PredictWindow = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t [B, C, T, h, w], sigma [B], known latent frames [B, C, 1 or 1 + k, h, w]) -> velocity [B, C, T, h, w]."""


def fuse_windows(
    predict_window: PredictWindow, first_latent: Tensor, num_windows: int, window_latent_frames: int, num_carried: int
) -> PredictVelocity:
    """The velocity field of a long video, from that of a window; any sampler can integrate it.

    Args:
        predict_window: the network on one window, given its known latent frames.
        first_latent: the anchor, known at the start of every window, [B, C, 1, h, w].
        num_windows: n, at least 1.
        window_latent_frames: T, latent frames of a window, including the anchor.
        num_carried: k, latent frames that a window shares with the previous one; less than T - 1.

    Returns:
        The field on [B, C, T + (n-1)*(T-1-k), h, w]; every frame is averaged over the windows that contain it.
    """
    assert 0 < num_carried < window_latent_frames - 1, (num_carried, window_latent_frames)
    fresh = fresh_latent_frames(window_latent_frames, num_carried)

    def predict(x_t: Tensor, sigma: Tensor) -> Tensor:
        total, count = torch.zeros_like(x_t), x_t.new_zeros(x_t.shape[2], 1, 1)
        for start in range(1, 1 + num_windows * fresh, fresh):
            known = first_latent
            if start > 1:
                shared = slice(start, start + num_carried)
                x0 = x0_from_velocity(x_t[:, :, shared], total[:, :, shared] / count[shared], sigma)
                known = torch.cat([first_latent, x0], dim=2)
            frames = torch.tensor([0, *range(start, start + window_latent_frames - 1)], device=x_t.device)
            total[:, :, frames] += predict_window(x_t[:, :, frames], sigma, known)
            count[frames] += 1
        return total / count

    return predict
