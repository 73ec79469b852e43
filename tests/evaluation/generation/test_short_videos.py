from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation import short_videos
from magic141.evaluation.generation.parts import PARTS
from magic141.evaluation.generation.short_videos import SeededBatch, make_suite, sample_batches
from magic141.evaluation.generation.workload import Workload
from magic141.evaluation.variants import teacher_variant
from magic141.models.sampling import SamplingSettings
from magic141.models.text_embedding import TextEmbedding
from tests.evaluation.generation.conditions import conditions_of
from tests.models.tiny import INFO

CONFIG = GenerateConfig(batch_size=2, num_threads=1, num_seeds=2)


class Seeds:
    """A generator whose clips are their seed."""

    settings = SamplingSettings(1, 5.0, 1.0, "embedded", "euler")

    def sample(self, text: TextEmbedding, image_tokens: Tensor, prefix: Tensor, seed: int) -> Tensor:
        return torch.full((len(prefix), 1), seed)


def workload_of(num_prompts: int) -> Workload:
    return Workload(CONFIG, INFO, Path(), [], 5, ["a circle"] * num_prompts, [], conditions_of(num_prompts), [], seed=3)


def test_batches_sampled_at_the_same_time_keep_their_order() -> None:
    work = workload_of(0)
    batches = [SeededBatch(conditions_of(num), seed) for num, seed in ((2, 5), (1, 4), (2, 9))]
    advanced: list[int] = []
    generator: Any = Seeds()
    latents, usage = sample_batches(work, generator, batches, advanced.append)
    assert latents.flatten().tolist() == [5, 5, 4, 9, 9]
    assert sum(advanced) == 5
    assert usage.wall_s > 0


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_prompts_video_has_its_name_and_its_noise_however_the_suite_is_cut(
    at_once: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work, variant, made = workload_of(3), teacher_variant(CONFIG, 1), {}
    generator: Any = Seeds()

    def decoded(_work: Workload, latents: Tensor) -> Any:
        return iter(latents)

    def save_video(path: Path, frames: Any, fps: float) -> None:
        made[path.name] = int(frames.item())

    monkeypatch.setattr(Workload, "decoded", decoded)
    monkeypatch.setattr(short_videos, "save_video", save_video)
    assert PARTS["suite"].batch_sizes(work) == [2, 1, 2, 1]
    for start in range(0, 4, at_once):
        make_suite(work, variant, generator, range(start, start + at_once), tmp_path, lambda _: None)
    names = [f"{number:02d}-s{seed}.mp4" for seed in (0, 1) for number in (0, 1, 2)]
    assert list(made) == names
    first, _, second, *_ = made.values()
    assert list(made.values())[:3] == [first, first, second]
    assert len(set(made.values())) == 4, "every batch of every seed has its own noise"
