"""Coverage of the many-step model's clips by a student's (Naeem et al. 2020, section 3.2), within each condition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

# Fine grain spans far more dimensions than the modes: at full resolution it alone would decide which clips are near.
MAX_PLACES = 4


def mode_coverage(student: Tensor, reference: Tensor) -> float:
    """Share of the reference's clips that are nearer to a student's clip than to the reference's own nearest other.

    From 0 for a student far away to 1 for one equal to the reference; other samples of the reference's distribution are
    expected at S / (2S - 1), which is 2/3 for two seeds. With so few it hardly tells how many of the modes are kept: a
    student with a single one has about 0.55. That is what the diversity ratio shows. Averaging over equal parts of the
    conditions gives the coverage of all of them.

    Args:
        student: latents [S, N, C, T, h, w]: S > 1 seeds for each of N conditions.
        reference: the many-step model's latents, of the same shape.
    """
    # Within each condition, with k = 1. Over all clips, the first frame determines so much that a clip's S - 1 nearest
    # are its condition's other seeds anyway; from the S-th neighbour on, even clips standing still cover most modes.
    own, others = (_coarse(x).transpose(0, 1) for x in (reference, student))
    radius = _distances(own, own).kthvalue(2, dim=-1).values  # the nearest is the clip itself
    nearest = _distances(own, others).amin(-1)
    return float(((nearest < radius) | (nearest == 0)).double().mean())


def _coarse(x: Tensor) -> Tensor:
    """[S, N, C, T, h, w] to [S, N, D]: averages every frame to a few positions."""
    num_frames, height, width = x.shape[3:]
    places = (num_frames, min(height, MAX_PLACES), min(width, MAX_PLACES))
    averaged: Tensor = adaptive_avg_pool3d(x.flatten(0, 1).float(), places)
    return averaged.reshape(*x.shape[:2], -1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances [N, S, R] between clips [N, S, D] and [N, R, D]; exactly 0 between equal clips."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
