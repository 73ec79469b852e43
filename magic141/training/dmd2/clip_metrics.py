"""Metrics of a student's clips beside the many-step model's, generated from the same conditions and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from magic141.training.dmd2.mode_coverage import mode_coverage

PREFIX = "validation_"
SATURATED_STDS = 4.0
Pool = Callable[[Tensor], Tensor]


def compare(student: Tensor, reference: Tensor, pool: Pool = lambda own: own) -> dict[str, float]:
    """Metrics of the student's clips; if they equal the reference, ratios and coverage are 1, all others 0.

    With one frame there is no motion, with one seed neither diversity nor mode coverage: these are then left out. The
    detail ratio alone sees how neighbouring places differ: the others would not notice if they were swapped.

    Args:
        student: latents [S, N, C, T, h, w]: S seeds for each of N conditions.
        reference: the many-step model's latents from the same noise, of the same shape.
        pool: the mean over all workers, which have as many clips each; ratios are formed after it, as the few clips of
            one worker may hardly move.
    """
    made, expected = (_channels(x, pool) for x in (student, reference))
    drift = (made.mean - expected.mean) / expected.std
    saturated, usual = pool(torch.stack([_saturated(x, expected) for x in (student, reference)]))
    return {
        f"{PREFIX}variance_ratio": _ratio(made.variance, expected.variance),
        **_change_ratio("motion_ratio", student, reference, 3, pool),
        **_change_ratio("diversity_ratio", student, reference, 0, pool),
        **_change_ratio("detail_ratio", student, reference, -1, pool),
        **_coverage(student, reference, pool),
        f"{PREFIX}mean_drift": float(drift.square().mean().sqrt()),
        f"{PREFIX}saturation": max(0.0, float(saturated - usual)),
    }


def _ratio(value: Tensor, reference: Tensor) -> float:
    return float(value / reference.clamp_min(1e-12))


@dataclass(frozen=True)
class _Channels:
    """Mean and standard deviation of each channel [C], and the variance of all values about their common mean []."""

    mean: Tensor
    std: Tensor
    variance: Tensor


def _channels(x: Tensor, pool: Pool) -> _Channels:
    others = (0, 1, 3, 4, 5)
    mean, square = pool(torch.stack([x.double().mean(others), x.double().square().mean(others)]))
    std = (square - mean.square()).clamp_min(0).sqrt()
    return _Channels(mean, std.clamp_min(1e-6), square.mean() - mean.mean().square())


def _saturated(x: Tensor, expected: _Channels) -> Tensor:
    """Share of the values that are far from what is expected of their channel."""
    mean, std = (value.to(x.device)[:, None, None, None] for value in (expected.mean, expected.std))
    return ((x - mean).abs() > SATURATED_STDS * std).double().mean()


def _change_ratio(name: str, student: Tensor, reference: Tensor, dim: int, pool: Pool) -> dict[str, float]:
    """Ratio of the mean squared differences along `dim`; empty if `dim` has only one entry."""
    if reference.shape[dim] == 1:
        return {}
    value, expected = pool(torch.stack([x.diff(dim=dim).double().square().mean() for x in (student, reference)]))
    return {f"{PREFIX}{name}": _ratio(value, expected)}


def _coverage(student: Tensor, reference: Tensor, pool: Pool) -> dict[str, float]:
    """Mode coverage; empty with a single seed, which cannot tell how wide the modes are."""
    if len(reference) == 1:
        return {}
    return {f"{PREFIX}mode_coverage": float(pool(torch.tensor(mode_coverage(student, reference), dtype=torch.float64)))}
