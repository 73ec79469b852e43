"""Fréchet distance between sets of clips, over each latent position's values through time.

A sample is a tube: all channels and frames of one latent position, C*T numbers. Whole latents would be the obvious
samples, but a few hundred clips are too few for them: other valid futures of the same clips would lie as far away as a
good model's clips.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from magic141.data.rows import Rows

Array = NDArray[np.float64]
MAX_FIT_TUBES = 200_000
NUM_GROUPS = 16  # of videos, each left out once for the error


@dataclass(frozen=True)
class TubeSpace:
    """The first n principal components of the tubes of real latents."""

    mean: Array  # [C*T]
    basis: Array  # [C*T, n]

    @classmethod
    def fit(cls, latents: Tensor | Rows, num_components: int, num_frames: int | None = None) -> Self:
        """Fits on clips of latents [N, C, T, h, w]: on as many as are enough, and only these are read.

        They are spread evenly over the set, since neighbours are of the same video.

        Args:
            latents: latents of real clips.
            num_components: n; at most C*T, and fewer than there are tubes.
            num_frames: T of a tube; None: as many as the clips have.
        """
        num_clips = min(len(latents), max(1, MAX_FIT_TUBES // latents[0, 0, 0].numel()))
        spread = [(2 * place + 1) * len(latents) // (2 * num_clips) for place in range(num_clips)]
        tubes = np.concatenate([_tubes(latents[[clip], :, :num_frames]) for clip in spread])  # they may differ in size
        _, directions = np.linalg.eigh(np.atleast_2d(np.cov(tubes, rowvar=False)))
        return cls(tubes.mean(0), directions[:, ::-1][:, : min(num_components, len(tubes) - 1)])

    def project(self, latents: Tensor) -> Array:
        """Coefficients [N*h*w, n] of latents [N, C, T, h, w]."""
        return np.asarray((_tubes(latents) - self.mean) @ self.basis)


def frechet_distance(a: Array, b: Array) -> float:
    """`|mu_a - mu_b|^2 + tr(A + B - 2 (AB)^(1/2))` between Gaussians fitted to a [N, n] and b [M, n]; N, M > 1."""
    return frechet_between(moments(a), moments(b))


def moments(samples: Array) -> Array:
    """Count, sums and sums of products of samples [N, n] in one matrix [1 + n, 1 + n]; moments of parts add up."""
    extended = np.concatenate([np.ones((len(samples), 1)), samples], axis=1)
    return np.asarray(extended.T @ extended)


def frechet_between(a: Array, b: Array) -> float:
    """The Fréchet distance between Gaussians given by `moments`."""
    (mean_a, cov_a), (mean_b, cov_b) = _gaussian(a), _gaussian(b)
    root_a = _root(cov_a)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0, None)).sum()
    means = ((mean_a - mean_b) ** 2).sum()
    return float(max(0.0, means + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def frechet_error(a: Array, b: Array, videos: Sequence[Hashable]) -> float | None:
    """The standard error of `frechet_distance` that comes from which videos were drawn, by the grouped jackknife.

    Args:
        a: samples [N*P, n] of N clips with P places each.
        b: samples [F*N*P, n] of F clips for each of those, all of one round after all of the other.
        videos: what each of the N clips is of; clips of a video are alike, and left out together.

    Returns:
        None if there is one video, or what is left without a group is too little for n directions.
    """
    numbers = {video: number for number, video in enumerate(dict.fromkeys(videos))}
    num_groups = min(len(numbers), NUM_GROUPS)
    group = np.array([numbers[video] % num_groups for video in videos])
    parts = [_moments_of_groups(x, len(a) // len(videos), group, num_groups) for x in (a, b)]
    left = [[part.sum(0) - part[number] for part in parts] for number in range(num_groups)]
    if num_groups < 2 or min(without_a[0, 0] for without_a, _ in left) <= a.shape[1] + 1:
        return None
    return float(np.sqrt((num_groups - 1) * np.var([frechet_between(*pair) for pair in left])))


def _moments_of_groups(x: Array, num_places: int, group: NDArray[np.int64], num_groups: int) -> Array:
    """The `moments` [G, 1 + n, 1 + n] of the clips of each group; `group` [N]: of each clip."""
    of_sample = group[np.arange(len(x)) // num_places % len(group)]
    return np.stack([moments(x[of_sample == number]) for number in range(num_groups)])


def _gaussian(summed: Array) -> tuple[Array, Array]:
    """Mean and unbiased covariance of summed `moments`."""
    count, mean = summed[0, 0], summed[0, 1:] / summed[0, 0]
    return mean, (summed[1:, 1:] - count * np.outer(mean, mean)) / (count - 1)


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


def _tubes(latents: Tensor) -> Array:
    """[N, C, T, h, w] to [N*h*w, C*T]."""
    return np.asarray(latents.permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2).double().cpu().numpy())
