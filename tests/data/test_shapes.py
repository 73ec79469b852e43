"""The demo's world: what is drawn is what the record says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from magic141.data.config import ShapesConfig
from magic141.data.shapes import (
    DIRECTIONS,
    SHAPES,
    ShapeClip,
    background,
    coverage,
    direction_vectors,
    other_future,
    path,
    render_clip,
    sample_clip,
)


@pytest.fixture
def clip() -> ShapeClip:
    return replace(sample_clip(np.random.default_rng(0), ShapesConfig()), shape="circle", direction=0, speed=1.5)


def test_caption_names_the_direction_or_only_its_axis(clip: ShapeClip) -> None:
    assert replace(clip, direction=3, exact=True).caption.endswith("circle moves up left")
    assert replace(clip, direction=3, exact=False).caption.endswith("moves along the falling diagonal")
    assert replace(clip, direction=7, exact=False).caption == replace(clip, direction=3, exact=False).caption


def test_up_is_towards_row_zero_and_right_towards_higher_columns() -> None:
    vectors = dict(zip(DIRECTIONS, direction_vectors(), strict=True))
    assert vectors["up"] == pytest.approx([0, -1])
    assert vectors["right"] == pytest.approx([1, 0])
    assert np.hypot(*vectors["down left"]) == pytest.approx(1)


def test_path_is_even_and_scales_with_the_frame(clip: ShapeClip) -> None:
    steps = np.diff(path(clip, 5, 32, 32), axis=0)
    assert steps == pytest.approx(np.tile([1.5, 0], (4, 1)))
    assert path(clip, 5, 64, 64) == pytest.approx(2 * path(clip, 5, 32, 32))


def test_the_world_is_a_torus(clip: ShapeClip) -> None:
    moved = replace(clip, x=clip.x + 32)
    assert np.array_equal(render_clip(clip, 3, 32, 32), render_clip(moved, 3, 32, 32))


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_about_the_same_area(shape: str) -> None:
    area = coverage(shape, 6.0, np.array([[16.0, 16.0]]), 32, 32).sum()
    assert area == pytest.approx(np.pi * 36, rel=0.15)


def test_background_shows_where_the_object_is_not(clip: ShapeClip) -> None:
    frame = render_clip(replace(clip, x=4, y=4), 1, 32, 32)[0]
    still = background(clip, 32, 32)
    assert frame[20:24, 20:24] / 255 == pytest.approx(still[20:24, 20:24], abs=1 / 255)


def test_a_clip_can_be_drawn_from_before_its_start(clip: ShapeClip) -> None:
    earlier = render_clip(clip, 5, 32, 32, first=-3)
    assert np.array_equal(earlier[3:], render_clip(clip, 2, 32, 32))
    assert not np.array_equal(earlier[0], earlier[3])


def test_another_future_shares_first_frame_and_caption(clip: ShapeClip) -> None:
    rng = np.random.default_rng(0)
    axis = replace(clip, exact=False)
    others = [other_future(axis, 0.9, rng) for _ in range(20)]
    assert {other.direction for other in others} == {0, 4}
    for other in others:
        assert other.caption == axis.caption
        assert np.array_equal(render_clip(other, 1, 32, 32), render_clip(axis, 1, 32, 32))
    assert other_future(replace(clip, exact=True), 0.9, rng).direction == 0


def test_record_survives_json(clip: ShapeClip) -> None:
    values = {**clip.to_dict(), "corners": [list(corner) for corner in clip.corners]}
    assert ShapeClip.from_dict(values) == clip
