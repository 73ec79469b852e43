"""The schemes of the drift benchmark: what a window is told, and that no frame is lost or doubled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.evaluation.generation.suite import Conditions
from magic141.models.generator import VideoGenerator
from magic141.models.sampling import SamplingSettings
from magic141.models.text_embedding import TextEmbedding
from tests.benchmarks.test_tables import script

FRAMES, FACTOR, NUM_WINDOWS = 5, 2, 4
TEXT = TextEmbedding(torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1))
CLIPS = Conditions(TEXT, torch.zeros(2, 1, 1), torch.zeros(2, 1, 1, 1, 1))
SETTINGS = SamplingSettings(1, 1.0, 1.0, "embedded", "renoise")


@dataclass(frozen=True)
class Counting(VideoGenerator):
    """Continues a count: known frames as they are, then one more each frame."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def sample(self, text: TextEmbedding, image_tokens: Tensor, prefix_latents: Tensor, seed: int) -> Tensor:
        self.seen.append((image_tokens[0].flatten(), prefix_latents[0, 0, :, 0, 0]))
        fresh = torch.arange(1, FRAMES - prefix_latents.shape[2] + 1).reshape(1, 1, -1, 1, 1)
        return torch.cat([prefix_latents, prefix_latents[:, :, -1:] + fresh], dim=2)


class Clock:
    """A codec and an encoder: pixels of frame f are f, its latent frame is f / FACTOR, its token f."""

    temporal_factor = FACTOR

    def decode_video(self, latents: Tensor) -> Tensor:
        groups = [FACTOR * latents[:, 0, 1:] - back for back in reversed(range(FACTOR))]
        frames = torch.stack(groups, dim=2).flatten(1, 2)
        return torch.cat([FACTOR * latents[:, 0, :1], frames], dim=1)[..., None].expand(-1, -1, -1, -1, 3)

    def encode_video(self, frames: Tensor) -> Tensor:
        return frames[..., :1].permute(0, 4, 1, 2, 3) / FACTOR

    def encode_image(self, frames: Tensor) -> Tensor:
        return frames[:, :1, :1, 0]


def run(drift: Any, **scheme: Any) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    generator = Counting(None, TEXT, FRAMES, SETTINGS)
    videos = drift.LongVideos(generator, Clock(), Clock(), drift.Scheme(**scheme), NUM_WINDOWS)
    return videos.make(CLIPS, 0)[0, 0, :, 0, 0], generator.seen


@pytest.mark.parametrize("carried", [0, 1, 2, 3])
def test_without_an_anchor_a_window_begins_just_before_what_it_carries(
    carried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, seen = run(script("drift", monkeypatch), carried=carried, anchored=False)
    assert video.tolist() == list(range(FRAMES + (NUM_WINDOWS - 1) * (FRAMES - 1 - carried)))
    for window, (token, known) in enumerate(seen[1:], 1):
        start = window * (FRAMES - 1 - carried)
        assert known.tolist() == list(range(start, start + 1 + carried))
        assert token.tolist() == [FACTOR * start]


@pytest.mark.parametrize("anchored", [True, False])
def test_noise_reaches_all_that_is_known_but_the_anchor(anchored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drift = script("drift", monkeypatch)
    _, (_, (_, plain), *_) = run(drift, carried=2, anchored=anchored)
    _, (_, (_, known), *_) = run(drift, carried=2, anchored=anchored, noise=0.1)
    assert ((known - plain).abs() > 0).tolist() == [not anchored, True, True]
    assert float((known - plain).abs().max()) < 0.6


def test_with_an_anchor_the_chain_is_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    drift = script("drift", monkeypatch)
    generator = Counting(None, TEXT, FRAMES, SETTINGS)
    own = drift.LongVideos(generator, Clock(), Clock(), drift.Scheme(2), NUM_WINDOWS).chain(CLIPS, 0)
    assert torch.equal(own, generator.chain(TEXT, CLIPS.image_tokens, CLIPS.prefix, NUM_WINDOWS, 2, 0))


def test_the_default_stands_out_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    drift = script("drift", monkeypatch)
    config = drift.PipelineConfig()
    figures = {key: [0.9, 0.8, 0.7, 0.6] for key, _, _ in drift.COLUMNS} | {"same_way": 0.5, "frames": 53}
    seed = {model: {scheme.label: figures for scheme in schemes} for model, schemes in drift.SCHEMES.items()}
    lines = drift.table(config, [seed, seed]).splitlines()
    assert "| a window knows | frames | motion at window 1 / 4 / 8 / 12 |" in lines[0]
    default = "| student, 4 steps: **the video's first frame, 2 carried** | 53 | 0.90 / 0.80 / 0.70 / 0.60 |"
    assert next(line for line in lines if "**" in line and line.startswith("| student")).startswith(default)
    assert len(lines) == 2 + sum(map(len, drift.SCHEMES.values()))
    documented = drift.table(config, [seed, seed], drift.IN_DOCS).splitlines()
    assert [line for line in lines if line in documented] == documented
    assert len(documented) == 2 + 3 + 2 + 2
