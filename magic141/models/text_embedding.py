"""The type of encoded prompts, in a module of its own because the encoders are slow to import."""

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
        """The given rows, which may repeat."""
        return TextEmbedding(self.tokens[rows], self.mask[rows], self.pooled[rows])

    def expand(self, batch_size: int) -> TextEmbedding:
        """The first row, repeated `batch_size` times (for the null prompt)."""
        return self.select([0] * batch_size)
