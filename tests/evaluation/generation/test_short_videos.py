from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.evaluation.generation import short_videos
from magic141.evaluation.generation.short_videos import _latency_s, _sample, _tensors_mb
from magic141.evaluation.generation.suite import Conditions
from magic141.evaluation.generation.tensor_memory import TensorMemory
from magic141.models.config import Sampler
from magic141.models.generator import VideoGenerator
from magic141.models.sampling import SamplingSettings
from magic141.models.text_embedding import TextEmbedding
from tests.models.tiny import CHANNELS, POOLED, TEXT, tiny_transformer


class Seeds:
    """A generator whose clips are their seed."""

    settings = SamplingSettings(1, 5.0, 1.0, "embedded", "euler")

    def sample(self, text: TextEmbedding, image_tokens: Tensor, prefix: Tensor, seed: int) -> Tensor:
        return torch.full((len(prefix),), seed)


@dataclass
class Slow:
    """A generator that takes longer for the first clips than for the rest."""

    seconds: tuple[float, ...]
    num_steps: int = 4
    clips: list[int] = field(default_factory=list)

    def in_steps(self, num_steps: int) -> Slow:
        return replace(self, num_steps=num_steps)

    def sample(self, text: TextEmbedding, image_tokens: Tensor, prefix: Tensor, seed: int) -> None:
        if self.num_steps > 1:  # else the warm-up
            time.sleep(self.seconds[min(len(self.clips), len(self.seconds) - 1)])
            self.clips.append(len(prefix))


def conditions_of(num: int) -> Conditions:
    text = TextEmbedding(torch.zeros(num, 1, 1), torch.ones(num, 1, dtype=torch.bool), torch.zeros(num, 1))
    return Conditions(text, torch.zeros(num, 1, 1), torch.zeros(num, 1, 1, 2, 2))


def _work(**config: int) -> Any:
    return SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(**config), seed=0)


def test_a_short_clip_is_timed_often_and_a_long_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    work = _work()
    short: Any = Slow((0.5, 0.01))
    long: Any = Slow((2.1,))
    monkeypatch.setattr(short_videos, "LATENCY_BUDGET_S", 2.0)
    assert _latency_s(work, short, conditions_of(3)) < 0.4, "one slow clip does not count"
    assert _latency_s(work, long, conditions_of(3)) >= 2.1
    assert set(short.clips) == {1}
    assert len(short.clips) > 1
    assert long.clips == [1]


def test_every_batch_of_every_seed_has_its_own_noise() -> None:
    work = _work(batch_size=2, num_threads=1)
    generator: Any = Seeds()
    seeds = [_sample(work, generator, conditions_of(6), seed, lambda _: None)[0] for seed in (0, 1)]
    assert len(torch.cat(seeds).unique()) == 2 * 3


@pytest.mark.parametrize("sampler", ["renoise", "euler"])
def test_one_network_takes_the_same_memory_at_every_number_of_steps_and_at_every_time(sampler: Sampler) -> None:
    """But for the grid of times, of four bytes a step, and what a second step holds of the first."""
    text = TextEmbedding(torch.zeros(5, 3, TEXT), torch.ones(5, 3, dtype=torch.bool), torch.zeros(5, POOLED))
    conditions = Conditions(text, torch.zeros(5, 2, TEXT), torch.zeros(5, CHANNELS, 1, 8, 8))
    network, work = tiny_transformer(guidance_embeds=True, image_condition=True), _work(batch_size=4)

    def generator(num_steps: int) -> VideoGenerator:
        return VideoGenerator(
            network, text.select(slice(0, 1)), 3, SamplingSettings(num_steps, 5.0, 1.5, "embedded", sampler)
        )

    with torch.no_grad():
        counted = [_tensors_mb(work, generator(num_steps), conditions) for num_steps in (25, 4, 2, 1, 25)]
        with TensorMemory() as whole:
            generator(25).sample(text.select(slice(0, 4)), torch.zeros(4, 2, TEXT), conditions.prefix[:4], 0)
    latents_mb = 4 * 4 * CHANNELS * 3 * 8 * 8 / 2**20
    assert len({counted[k] for k in (0, 1, 2, 4)}) == 1
    assert counted[0] == pytest.approx(whole.peak_mb, rel=1e-3)
    assert counted[0] - 4 * latents_mb < counted[3] <= counted[0]
