from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from magic141.evaluation.short_videos import _sample
from magic141.evaluation.suite import Conditions
from magic141.models.text_embedding import TextEmbedding


class Seeds:
    """A generator whose clips are their seed."""

    num_evaluations = 1

    def sample(self, text: TextEmbedding, image_tokens: Tensor, prefix: Tensor, seed: int) -> Tensor:
        return torch.full((len(prefix),), seed)


def test_every_batch_of_every_seed_has_its_own_noise() -> None:
    work: Any = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(batch_size=2, num_threads=1))
    text = TextEmbedding(torch.zeros(6, 1, 1), torch.ones(6, 1, dtype=torch.bool), torch.zeros(6, 1))
    conditions = Conditions(text, torch.zeros(6, 1, 1), torch.zeros(6, 1, 1, 2, 2))
    generator: Any = Seeds()
    seeds = [_sample(work, generator, conditions, seed, lambda _: None)[0] for seed in (0, 1)]
    assert len(torch.cat(seeds).unique()) == 2 * 3
