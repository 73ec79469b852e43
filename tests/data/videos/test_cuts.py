"""Cuts are found where scenes change, and not where things move."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame

from magic141.data.videos.cuts import CutDetector
from magic141.data.videos.video import measure_video
from tests.data.made import encode

SCORE = 10.0


def scene(seed: int, num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture of its own brightness that moves two pixels a frame, uint8 [F, H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-40, 40, (6, 8, 3)) + (60 if seed % 2 else 190)
    picture = np.kron(coarse, np.ones((height // 6, width // 8, 1))).clip(0, 255).astype(np.uint8)
    return np.stack([np.roll(picture, 2 * frame, axis=1) for frame in range(num_frames)])


def frames_of(pictures: np.ndarray, pix_fmt: str = "yuv420p") -> list[VideoFrame]:
    frames = [VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt) for picture in pictures]
    for place, frame in enumerate(frames):
        frame.pts, frame.time_base = place, Fraction(1, 24)
    return frames


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le", "rgb24", "gray", "yuva420p", "rgb8"])
def test_a_frame_of_another_scene_is_a_cut_in_every_format(pix_fmt: str) -> None:
    pictures = np.concatenate([scene(0, 6), scene(1, 5), scene(2, 4)])
    detector = CutDetector(SCORE)
    frames = frames_of(pictures, pix_fmt)
    assert [place for place, frame in enumerate(frames) if detector.is_cut(frame)] == [6, 11]


def test_motion_and_what_follows_a_cut_are_none() -> None:
    detector = CutDetector(SCORE)
    found = [detector.is_cut(frame) for frame in frames_of(np.concatenate([scene(0, 20), scene(3, 20)]))]
    assert [place for place, is_cut in enumerate(found) if is_cut] == [20]


def test_the_score_decides() -> None:
    pictures = np.concatenate([scene(0, 5), scene(1, 5)])
    for least, expected in ((5.0, 1), (90.0, 0)):
        detector = CutDetector(least)
        assert sum(detector.is_cut(frame) for frame in frames_of(pictures)) == expected


def test_a_stream_that_changes_its_size_goes_on() -> None:
    detector = CutDetector(SCORE)
    frames = [*frames_of(scene(0, 3)), *frames_of(scene(1, 3, 96, 128)), *frames_of(scene(2, 3, 96, 128))]
    assert [place for place, frame in enumerate(frames) if detector.is_cut(frame)] == [6]


@pytest.mark.parametrize(("fps", "cuts"), [(24.0, (30, 54)), (8.0, (10, 18)), (48.0, (60, 108))])
def test_cuts_are_counted_in_resampled_frames(tmp_path: Path, fps: float, cuts: tuple[int, ...]) -> None:
    encode(tmp_path / "a.mp4", np.concatenate([scene(0, 30), scene(1, 24), scene(2, 20)]), 24)
    assert measure_video(tmp_path / "a.mp4", fps, SCORE).cuts == cuts
    assert measure_video(tmp_path / "a.mp4", fps).cuts == ()
