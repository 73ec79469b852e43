"""The share of the many-step model's modes that a student keeps: coverage (Naeem et al. 2020, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

# Grain has more dimensions than modes have: in the whole latents of large clips it alone would decide who is near.
MAX_PLACES = 4


def mode_coverage(student: Tensor, reference: Tensor) -> float:
    """Share of the reference's clips nearer to a clip of the student than to the next of their own, from 0 to 1.

    1 for a student like the reference, 0 for one far away; other draws from the same distribution are expected at
    S / (2S - 1), which is 2/3 for two seeds. The mean over parts of the conditions is the coverage of all of them.

    Args:
        student: latents [S, N, C, T, h, w]: S > 1 seeds for each of N conditions.
        reference: the many-step model's.
    """
    # Within a condition, and to the nearest clip (k = 1): a first frame says so much that over all clips the S - 1
    # nearest are the condition's other seeds anyway, and from the S-th on even clips standing still cover most modes.
    own, others = (_coarse(x).transpose(0, 1) for x in (reference, student))
    radius = _distances(own, own).kthvalue(2, dim=-1).values  # the nearest is the clip itself
    nearest = _distances(own, others).amin(-1)
    return float(((nearest < radius) | (nearest == 0)).double().mean())


def _coarse(x: Tensor) -> Tensor:
    """[S, N, C, T, h, w] to [S, N, D]: every frame averaged to a few places."""
    num_frames, height, width = x.shape[3:]
    places = (num_frames, min(height, MAX_PLACES), min(width, MAX_PLACES))
    averaged: Tensor = adaptive_avg_pool3d(x.flatten(0, 1).float(), places)
    return averaged.reshape(*x.shape[:2], -1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """[N, S, D] and [N, R, D] to [N, S, R]; exactly 0 between equal clips."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
