"""Conditions of nothing in particular."""

from __future__ import annotations

import torch

from magic141.evaluation.generation.suite import Conditions
from magic141.models.text_embedding import TextEmbedding


def conditions_of(num: int) -> Conditions:
    """Conditions of `num` clips."""
    text = TextEmbedding(torch.zeros(num, 1, 1), torch.ones(num, 1, dtype=torch.bool), torch.zeros(num, 1))
    return Conditions(text, torch.zeros(num, 1, 1), torch.zeros(num, 1, 1, 2, 2))
