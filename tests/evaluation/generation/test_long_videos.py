from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation import long_videos
from magic141.evaluation.generation.long_videos import frame_spans, long_latents, mean_costs
from magic141.evaluation.generation.suite import Conditions
from magic141.models.sampling import SamplingSettings
from magic141.models.text_embedding import TextEmbedding


class Blank:
    """A generator whose long videos are nothing but zeros."""

    settings = SamplingSettings(1, 5.0, 1.0, "embedded", "euler")

    def fuse(self, *_: Any) -> Tensor:
        return torch.zeros(1)


def test_spans_follow_the_latent_frames() -> None:
    # 5 latent frames a window: 9 frames; then the anchor, 1 carried and 3 new ones of 2 frames each
    assert frame_spans(3, 5, 1, 2) == [(0, 9), (7, 15), (13, 21)]
    assert frame_spans(3, 5, 2, 2) == [(0, 9), (5, 13), (9, 17)]


def test_the_peak_of_windows_made_together_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = count(100.0, 60.0)
    monkeypatch.setattr(long_videos, "peak_megabytes", lambda device: next(peaks))
    text = TextEmbedding(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))
    conditions = Conditions(text, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 2, 2))
    config = GenerateConfig(long_video_scheme="fused", long_video_windows=3)
    generator: Any = Blank()
    costs = long_latents(config, generator, conditions, 0, lambda _: None)[1]
    assert [window["rss_mb"] for window in costs] == [160, 160, 160]


def test_the_cost_of_a_window_is_the_mean_over_its_batches_clips() -> None:
    batches = [
        {"num_clips": 2, "windows": [{"wall_ms_per_clip": 10.0}]},
        {"num_clips": 1, "windows": [{"wall_ms_per_clip": 40.0}]},
    ]
    assert mean_costs(batches) == [{"wall_ms_per_clip": 20.0}]
