"""The exact scores accept every valid future of a first frame and caption, and name what is wrong with the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from magic141.data.config import ShapesConfig
from magic141.data.shapes import ShapeClip, compose, coverage, other_future, render_clip, sample_clip
from magic141.evaluation.scoring.shapes import measure_movement, score_clip, score_clips


def draw(clip: ShapeClip, num_frames: int = 9) -> np.ndarray:
    return render_clip(clip, num_frames, 32, 32)


def world(num: int, **changes: Any) -> list[ShapeClip]:
    rng = np.random.default_rng(1)
    return [replace(sample_clip(rng, ShapesConfig()), **changes) for _ in range(num)]


@pytest.fixture
def clip() -> ShapeClip:
    [one] = world(1, shape="square", colour="red", direction=2, speed=1.2, exact=True)
    return one


def test_true_clips_are_perfect() -> None:
    clips = world(40)
    scores = score_clips(np.stack([draw(clip) for clip in clips]), [clip.to_dict() for clip in clips])
    for name in ("direction", "motion", "shape", "colour"):
        assert scores[name].tolist() == [1.0] * 40
    assert scores["iou"].min() > 0.85  # faint edges count as background
    assert scores["iou"].max() <= 1
    assert scores["background_psnr_db"].min() > 45


def test_every_valid_future_is_as_good_as_the_stored_one() -> None:
    rng = np.random.default_rng(2)
    for clip in world(20, exact=False):
        assert score_clip(draw(other_future(clip, 1.7, rng)), clip)["motion"] == 1


def test_speed_and_sense_are_measured(clip: ShapeClip) -> None:
    axis = replace(clip, exact=False)
    assert measure_movement(draw(clip), clip).velocity == pytest.approx([0, -1.2], abs=0.03)
    assert score_clip(draw(clip), clip)["speed"] == pytest.approx(1.2, abs=0.03)
    assert score_clip(draw(axis), axis)["plus"] == 1
    assert score_clip(draw(replace(axis, direction=6)), axis)["plus"] == 0


@pytest.mark.parametrize("direction", [1, 3, 6])
def test_a_direction_that_the_caption_rules_out(clip: ShapeClip, direction: int) -> None:
    scores = score_clip(draw(replace(clip, direction=direction)), clip)
    assert (scores["direction"], scores["motion"]) == (0, 0)
    assert scores["iou"] > 0.9  # the object itself is fine


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("degrees_off", "allowed"), [(20, 1), (25, 0)])
def test_a_direction_is_the_captions_up_to_half_of_the_angle_to_the_next(
    clip: ShapeClip, side: int, degrees_off: int, allowed: int
) -> None:
    angle = np.deg2rad(90 + side * degrees_off)  # the caption says "up"
    steps = clip.speed * np.arange(9)[:, None] * np.array([np.cos(angle), -np.sin(angle)])
    frames = compose(clip, coverage(clip.shape, clip.radius, np.array([clip.x, clip.y]) + steps, 32, 32))
    assert score_clip(frames, clip)["direction"] == allowed


def test_a_still_object_has_no_direction(clip: ShapeClip) -> None:
    still = np.repeat(draw(clip)[:1], 9, axis=0)
    assert score_clip(still, clip)["direction"] == 0


@pytest.mark.parametrize("speed", [0.4, 3.0])
def test_a_speed_that_the_world_does_not_have(clip: ShapeClip, speed: float) -> None:
    scores = score_clip(draw(replace(clip, speed=speed)), clip)
    assert (scores["direction"], scores["motion"]) == (1, 0)


def test_an_object_that_vanishes_on_the_way(clip: ShapeClip) -> None:
    frames = draw(clip)
    frames[5:] = draw(replace(clip, radius=0.5))[5:]
    assert score_clip(frames, clip)["motion"] == 0


@pytest.mark.parametrize(("relative_area", "whole"), [(1.4, 1), (1.8, 0)])
def test_an_object_that_swells_on_the_way(clip: ShapeClip, relative_area: float, whole: int) -> None:
    frames = draw(clip)
    frames[5:] = draw(replace(clip, radius=clip.radius * relative_area**0.5))[5:]
    assert score_clip(frames, clip)["motion"] == whole


def test_an_object_that_jumps_does_not_move_evenly(clip: ShapeClip) -> None:
    frames = draw(clip)
    frames[4:] = draw(replace(clip, x=clip.x + 7))[4:]
    assert score_clip(frames, clip)["motion"] == 0


def test_an_object_that_waits_and_then_hurries_does_not_move_evenly(clip: ShapeClip) -> None:
    hurried = draw(replace(clip, speed=2.4), 5)
    frames = np.concatenate([hurried[:1]] * 4 + [hurried])
    scores = score_clip(frames, clip)
    assert 0.6 < scores["speed"] < 2.2, "a speed of the world"
    assert (scores["direction"], scores["motion"]) == (1, 0)


def test_an_object_that_starts_elsewhere(clip: ShapeClip) -> None:
    frames = draw(replace(clip, x=clip.x + 16, y=clip.y + 11))
    scores = score_clip(frames, clip)
    assert (scores["direction"], scores["motion"]) == (1, 0)
    assert score_clips(frames[None], [clip.to_dict()])["motion"] == [0]
    assert score_clip(frames, clip, from_start=False)["motion"] == 1, "a later window starts anywhere"
    assert score_clip(draw(replace(clip, x=clip.x + 32.5)), clip)["motion"] == 1, "on the torus, half a pixel away"


@pytest.mark.parametrize("height_and_width", [(32, 56), (48, 128), (64, 32)])
def test_true_clips_are_perfect_in_frames_of_any_form(height_and_width: tuple[int, int]) -> None:
    """The world's speeds and directions are of a square one, stretched to the frame."""
    clips = world(40)
    frames = np.stack([render_clip(clip, 9, *height_and_width) for clip in clips])
    scores = score_clips(frames, [clip.to_dict() for clip in clips])
    for name in ("direction", "motion", "shape", "colour"):
        assert scores[name].tolist() == [1.0] * 40, name
    assert scores["speed"] == pytest.approx([clip.speed for clip in clips], abs=0.05)


def test_a_subject_that_only_the_given_frame_shows_is_not_kept() -> None:
    for clip in world(12):
        frames = draw(clip)
        frames[1:] = compose(clip, np.zeros((1, 32, 32), np.float32))
        scores = score_clip(frames, clip)
        assert (scores["shape"], scores["iou"]) == (0, 0)


def test_shape_is_the_share_of_frames_that_show_it(clip: ShapeClip) -> None:
    frames = draw(clip)
    frames[5:] = draw(replace(clip, shape="triangle"))[5:]
    assert score_clip(frames, clip)["shape"] == pytest.approx(4 / 8)  # of those that were made


def test_another_shape_and_another_colour(clip: ShapeClip) -> None:
    assert score_clip(draw(replace(clip, shape="triangle")), clip)["shape"] == 0
    assert score_clip(draw(replace(clip, colour="yellow")), clip)["colour"] == 0


def test_background_error_in_decibels(clip: ShapeClip) -> None:
    brighter = np.clip(draw(clip).astype(int) + 26, 0, 255).astype(np.uint8)
    scores = score_clip(brighter, clip)
    assert scores["background_psnr_db"] == pytest.approx(-20 * np.log10(26 / 255), abs=0.3)
    assert scores["psnr_db"] == pytest.approx(scores["background_psnr_db"], abs=1), "most of the clip is background"
