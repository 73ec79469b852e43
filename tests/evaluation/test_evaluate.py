from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magic141.data.config import ShapesConfig
from magic141.data.shapes import sample_clip
from magic141.evaluation.config import EvaluateConfig
from magic141.evaluation.evaluate import (
    CODEC_BATCH,
    NO_TRUTH,
    NUM_FUTURES,
    _frechet,
    clip_psnr_db,
    evaluate_suite,
    valid_futures,
)
from magic141.evaluation.scores import AVERAGE, EXACT, FRECHET, VBENCH
from magic141.evaluation.shapes import score_clips
from magic141.models.vae import VideoCodec, load_codec
from tests.evaluation.artifacts import RecordingLog
from tests.models.tiny import tiny_vae

ALL = [dimension.key for dimension in (*EXACT, FRECHET, *VBENCH, AVERAGE)]


def _evaluate(parts: dict[str, Path], out: Path) -> tuple[dict[str, Any], RecordingLog]:
    log = RecordingLog()
    evaluate_suite(EvaluateConfig(), parts["prepare_data"], parts["generate"], out, log)
    return json.loads((out / "scores.json").read_text()), log


@pytest.fixture(scope="module")
def scored(
    generated: tuple[dict[str, Path], RecordingLog], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], RecordingLog]:
    return _evaluate(generated[0], tmp_path_factory.mktemp("scores"))


def test_every_dimension_is_a_value_or_a_reason(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    for row in scored[0]["variants"]:
        assert set(ALL) <= set(row["scores"])
        for score in row["scores"].values():
            assert (score["value"] is None) != (score["reason"] is None)


def test_real_clips_are_the_ceiling(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    rows = {row["name"]: row["scores"] for row in scored[0]["variants"]}
    assert rows["real"]["motion"]["value"] == 1.0
    assert rows["real"]["psnr_db"]["value"] > rows["codec"]["psnr_db"]["value"] > rows["student_4"]["psnr_db"]["value"]
    assert rows["real"]["motion"]["stderr"] == 0
    floor = rows["real"]["frechet"]["value"]
    assert rows["codec"]["frechet"]["value"] == pytest.approx(floor, rel=0.5)
    assert floor < rows["student_4"]["frechet"]["value"]


def test_untrained_networks_do_not_move_anything(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    rows = {row["name"]: row["scores"] for row in scored[0]["variants"]}
    assert rows["student_4"]["motion"]["value"] == 0
    assert rows["student_4"]["continuation_psnr_db"]["value"] > 0
    assert rows["cfg_4"]["continuation_psnr_db"]["value"] > 0


def test_drift_is_scored_for_every_window(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    drift = scored[0]["long_video"]["drift"]
    assert [len(windows) for windows in drift.values()] == [3, 3]
    assert set(drift["student_4"][0]) >= {"motion", "background_psnr_db"}


def test_summary_holds_the_main_scores(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    summary = scored[1].summaries
    assert summary["real/motion"] == 1.0
    assert "student_4/frechet" in summary


def test_without_ground_truth_exact_scores_say_so(generated_from_folder: dict[str, Path], tmp_path: Path) -> None:
    result, log = _evaluate(generated_from_folder, tmp_path)
    for row in result["variants"]:
        assert row["scores"]["motion"] == {"value": None, "reason": NO_TRUTH, "stderr": None}
        assert (row["scores"]["frechet"]["value"] is None) == (row["name"] == "real")  # to which distances are
    assert result["long_video"]["drift"] is None
    assert not any("motion" in key.split("/")[1].split("_") for key in log.summaries)


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
    monkeypatch.setattr("magic141.evaluation.evaluate.CODEC_BATCH", len(truths))
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
    assert _frechet(sound, sound).value is not None
    assert _frechet(broken, sound).reason == "latents with values that are not finite"
