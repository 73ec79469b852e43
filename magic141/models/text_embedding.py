"""Encoded prompts, as stored, batched and given to the network; apart from the encoders, which are heavy to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextEmbedding:
    """Encoded prompts: tokens [B, Lt, D], mask [B, Lt] bool (valid tokens first), pooled [B, P]."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str) -> TextEmbedding:
        """The same on another device."""
        return TextEmbedding(self.tokens.to(device), self.mask.to(device), self.pooled.to(device))

    def select(self, rows: Tensor | slice | Sequence[int]) -> TextEmbedding:
        """Some of the rows, or rows repeated."""
        return TextEmbedding(self.tokens[rows], self.mask[rows], self.pooled[rows])

    def expand(self, batch_size: int) -> TextEmbedding:
        """One row repeated `batch_size` times (the null prompt)."""
        return self.select([0] * batch_size)
