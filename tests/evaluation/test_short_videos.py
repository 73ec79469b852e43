from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.evaluation import short_videos
from magic141.evaluation.short_videos import _latency_s, _sample
from magic141.evaluation.suite import Conditions
from magic141.models.text_embedding import TextEmbedding


class Seeds:
    """A generator whose clips are their seed."""

    num_evaluations = 1

    def sample(self, text: TextEmbedding, image_tokens: Tensor, prefix: Tensor, seed: int) -> Tensor:
        return torch.full((len(prefix),), seed)


@dataclass
class Slow:
    """A generator that takes longer for the first clips than for the rest."""

    seconds: tuple[float, ...]
    num_steps: int = 4
    clips: list[int] = field(default_factory=list)

    def sample(self, text: TextEmbedding, image_tokens: Tensor, prefix: Tensor, seed: int) -> None:
        if self.num_steps > 1:  # else the warm-up
            time.sleep(self.seconds[min(len(self.clips), len(self.seconds) - 1)])
            self.clips.append(len(prefix))


def conditions_of(num: int) -> Conditions:
    text = TextEmbedding(torch.zeros(num, 1, 1), torch.ones(num, 1, dtype=torch.bool), torch.zeros(num, 1))
    return Conditions(text, torch.zeros(num, 1, 1), torch.zeros(num, 1, 1, 2, 2))


def test_a_short_clip_is_timed_often_and_a_long_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    work: Any = SimpleNamespace(device=torch.device("cpu"), seed=0)
    short: Any = Slow((0.2, 0.01))
    long: Any = Slow((0.3,))
    monkeypatch.setattr(short_videos, "LATENCY_BUDGET_S", 0.25)
    assert _latency_s(work, short, conditions_of(3)) < 0.1, "one slow clip does not count"
    assert _latency_s(work, long, conditions_of(3)) >= 0.3
    assert set(short.clips) == {1}
    assert len(short.clips) > 1
    assert long.clips == [1]


def test_every_batch_of_every_seed_has_its_own_noise() -> None:
    work: Any = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(batch_size=2, num_threads=1))
    generator: Any = Seeds()
    seeds = [_sample(work, generator, conditions_of(6), seed, lambda _: None)[0] for seed in (0, 1)]
    assert len(torch.cat(seeds).unique()) == 2 * 3
