"""Frame counts of a causal codec: the first frame has a latent frame of its own, later ones share one in groups."""

from __future__ import annotations


def num_latent_frames(num_frames: int, temporal_factor: int) -> int:
    """Latent frames that hold `num_frames` frames; after the first, `temporal_factor` frames share one."""
    return -(-(num_frames - 1) // temporal_factor) + 1


def num_pixel_frames(num_latent: int, temporal_factor: int) -> int:
    """Frames that `num_latent` latent frames hold."""
    return 1 + (num_latent - 1) * temporal_factor
