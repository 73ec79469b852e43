"""The Frechet distance between latents, over the principal components of real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LatentSpace:
    """The first n principal components of whole latents."""

    mean: Array  # [D]
    basis: Array  # [D, n]

    @classmethod
    def fit(cls, latents: Tensor, num_components: int) -> Self:
        """Fits on latents [N, C, T, h, w]; at most N - 1 components exist."""
        flat = _flatten(latents)
        mean = flat.mean(0)
        _, _, directions = np.linalg.svd(flat - mean, full_matrices=False)
        return cls(mean, directions[: min(num_components, len(flat) - 1)].T)

    def project(self, latents: Tensor) -> Array:
        """Latents [N, C, T, h, w] to coefficients [N, n]."""
        return np.asarray((_flatten(latents) - self.mean) @ self.basis)


def frechet_distance(a: Array, b: Array) -> float:
    """`|mu_a - mu_b|^2 + tr(A + B - 2 (AB)^(1/2))` between Gaussians fitted to a [N, n] and b [M, n]; N, M > 1."""
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root_a = _root(cov_a)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0, None)).sum()
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(max(0.0, means + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


def _flatten(latents: Tensor) -> Array:
    return np.asarray(latents.flatten(1).double().cpu().numpy())
