"""The parts of scoring: PSNR, valid futures, the distance to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magic141.data.config import ShapesConfig
from magic141.data.shapes import sample_clip
from magic141.evaluation.scoring.scorer import CODEC_BATCH, NUM_FUTURES, clip_psnr_db, frechet_score, valid_futures
from magic141.evaluation.scoring.shapes import score_clips
from magic141.models.vae import VideoCodec, load_codec
from tests.evaluation.artifacts import RecordingLog
from tests.models.tiny import tiny_vae


def test_psnr_of_known_errors() -> None:
    truth = np.zeros((2, 3, 4, 4, 3), np.uint8)
    frames = truth.copy()
    frames[1] = 51  # a fifth of the range
    np.testing.assert_allclose(clip_psnr_db(frames, truth), [60, 20 * np.log10(5)])


class CountingCodec(VideoCodec):
    """Remembers how many clips it was given at a time."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        self.batches: list[int] = []

    def encode_video(self, frames: Tensor) -> Tensor:
        self.batches.append(len(frames))
        return super().encode_video(frames)


def test_futures_are_encoded_in_batches_and_as_if_at_once(
    generated: tuple[dict[str, Path], RecordingLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    truths = [sample_clip(rng, ShapesConfig()).to_dict() for _ in range(CODEC_BATCH + 3)]
    codec = CountingCodec(load_codec(generated[0]["prepare_data"] / "codec").vae)
    latents = valid_futures(truths, 9, 32, 32, codec)
    assert codec.batches == [CODEC_BATCH, 3] * NUM_FUTURES
    monkeypatch.setattr("magic141.evaluation.scoring.scorer.CODEC_BATCH", len(truths))
    assert torch.equal(latents, valid_futures(truths, 9, 32, 32, codec))


class KeepingCodec(VideoCodec):
    """Keeps the frames that it encodes."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        self.frames: list[Tensor] = []

    def encode_video(self, frames: Tensor) -> Tensor:
        self.frames.append(frames)
        return super().encode_video(frames)


def test_every_future_is_one_that_the_caption_allows(generated: tuple[dict[str, Path], RecordingLog]) -> None:
    rng = np.random.default_rng(0)
    truths = [sample_clip(rng, ShapesConfig()).to_dict() for _ in range(16)]
    codec = KeepingCodec(load_codec(generated[0]["prepare_data"] / "codec").vae)
    valid_futures(truths, 9, 32, 32, codec)
    scores = score_clips(torch.cat(codec.frames).numpy(), truths * NUM_FUTURES)
    assert scores["motion"].tolist() == [1.0] * (16 * NUM_FUTURES)
    assert set(scores["plus"][~np.isnan(scores["plus"])]) == {0.0, 1.0}, "both senses of an axis"


def test_a_vae_encodes_one_clip_at_a_time() -> None:
    rng = np.random.default_rng(0)
    truths = [sample_clip(rng, ShapesConfig()).to_dict() for _ in range(2)]
    codec = CountingCodec(tiny_vae())
    assert valid_futures(truths, 5, 32, 32, codec).shape == (2 * NUM_FUTURES, 4, 2, 4, 4)
    assert codec.batches == [1] * 2 * NUM_FUTURES


def test_clips_with_a_value_that_is_not_finite_miss_their_distance_and_no_other_score() -> None:
    sound, broken = np.random.default_rng(0).normal(size=(2, 20, 3))
    broken[7, 1] = np.nan
    assert frechet_score(sound, sound, [0]).value is not None
    assert frechet_score(broken, sound, [0]).reason == "latents with values that are not finite"


def test_a_distance_needs_more_places_than_dimensions_in_both_sets() -> None:
    many = np.random.default_rng(0).normal(size=(20, 3))
    assert frechet_score(many, many[:4], [0]).value is not None
    for a, b in ((many, many[:3]), (many[:3], many)):
        reason = frechet_score(a, b, [0]).reason or ""
        assert reason.startswith("its 3 dimensions (evaluate.frechet_dimensions) need more latent positions of")
        assert reason.endswith(f"there are {len(a)} and {len(b)}")
