from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation import costs
from magic141.evaluation.generation.costs import Costs, latency_s, tensors_mb, variant_record
from magic141.evaluation.generation.suite import Conditions
from magic141.evaluation.generation.tensor_memory import TensorMemory
from magic141.evaluation.variants import teacher_variant
from magic141.models.config import Sampler
from magic141.models.generator import VideoGenerator
from magic141.models.sampling import SamplingSettings
from magic141.models.text_embedding import TextEmbedding
from tests.evaluation.generation.conditions import conditions_of
from tests.models.tiny import CHANNELS, POOLED, TEXT, tiny_transformer

FIRST = Costs(6, 3.0, 2.0, weight_mb=50.0, added_memory_mb=10.0, latency_s=0.3, device="cpu", precision="float32")


@dataclass
class Slow:
    """A generator that takes longer for the first clips than for the rest."""

    seconds: tuple[float, ...]
    num_steps: int = 4
    clips: list[int] = field(default_factory=list)

    def in_steps(self, num_steps: int) -> Slow:
        return replace(self, num_steps=num_steps)

    def sample(self, text: TextEmbedding, image_tokens: torch.Tensor, prefix: torch.Tensor, seed: int) -> None:
        if self.num_steps > 1:  # else the warm-up
            time.sleep(self.seconds[min(len(self.clips), len(self.seconds) - 1)])
            self.clips.append(len(prefix))


def test_a_short_clip_is_timed_often_and_a_long_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    short: Any = Slow((0.5, 0.01))
    long: Any = Slow((2.1,))
    monkeypatch.setattr(costs, "LATENCY_BUDGET_S", 2.0)
    assert latency_s(short, conditions_of(1)) < 0.4, "one slow clip does not count"
    assert latency_s(long, conditions_of(1)) >= 2.1
    assert len(short.clips) > 1
    assert long.clips == [1]


def test_the_costs_of_pieces_are_those_of_all_their_clips_together() -> None:
    variant = teacher_variant(GenerateConfig(), 25)
    later = replace(FIRST, num_clips=2, cpu_s=5.0, wall_s=4.0, added_memory_mb=30.0, latency_s=None)
    record = variant_record(variant, [FIRST, later])
    assert (record["name"], record["nfe"], record["num_clips"]) == ("teacher_25", 50, 8)
    assert (record["cpu_ms_per_clip"], record["wall_ms_per_clip"]) == (1000.0, 750.0)
    assert (record["latency_ms"], record["peak_memory_mb"]) == (300.0, 80.0)
    assert variant_record(variant, [FIRST, replace(later, added_memory_mb=None)])["peak_memory_mb"] == 60.0
    assert variant_record(variant, [FIRST, replace(later, device="NVIDIA H200")])["device"] == "NVIDIA H200 + cpu"


@pytest.mark.parametrize("sampler", ["renoise", "euler"])
def test_one_network_takes_the_same_memory_at_every_number_of_steps_and_at_every_time(sampler: Sampler) -> None:
    """But for the grid of times, of four bytes a step, and what a second step holds of the first."""
    text = TextEmbedding(torch.zeros(4, 3, TEXT), torch.ones(4, 3, dtype=torch.bool), torch.zeros(4, POOLED))
    conditions = Conditions(text, torch.zeros(4, 2, TEXT), torch.zeros(4, CHANNELS, 1, 8, 8))
    network = tiny_transformer(guidance_embeds=True, image_condition=True)

    def generator(num_steps: int) -> VideoGenerator:
        return VideoGenerator(
            network, text.select(slice(0, 1)), 3, SamplingSettings(num_steps, 5.0, 1.5, "embedded", sampler)
        )

    with torch.no_grad():
        counted = [tensors_mb(generator(num_steps), conditions) for num_steps in (25, 4, 2, 1, 25)]
        with TensorMemory() as whole:
            generator(25).sample(conditions.text, conditions.image_tokens, conditions.prefix, 0)
    latents_mb = 4 * 4 * CHANNELS * 3 * 8 * 8 / 2**20
    assert len({counted[k] for k in (0, 1, 2, 4)}) == 1
    assert counted[0] == pytest.approx(whole.peak_mb, rel=1e-3)
    assert counted[0] - 4 * latents_mb < counted[3] <= counted[0]
