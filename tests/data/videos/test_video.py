from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import ExifTags, Image

from magic141.data.videos.video import (
    fit_image,
    measure_video,
    read_frames,
    read_image,
    read_video,
    shrunk_video,
    video_bytes,
    write_video,
)
from magic141.errors import UserError
from tests.data.made import encode, numbered, resampled, with_damaged_exif


def gray_levels(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame k is plain gray of level 10 * k."""
    levels = (10 * np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def levels_of(frames: np.ndarray) -> list[int]:
    return [round(float(level) / 10) for level in frames.mean(axis=(1, 2, 3))]


def test_written_video_reads_back_nearly_equal(tmp_path: Path) -> None:
    frames = gray_levels(9)
    write_video(tmp_path / "new" / "a.mp4", frames, fps=8.0)
    again = read_video(tmp_path / "new" / "a.mp4")
    assert again.shape == frames.shape
    assert again.dtype == np.uint8
    assert np.abs(again.astype(int) - frames).max() <= 3


@pytest.mark.parametrize("height", [64, 720])
def test_written_colours_are_those_given_at_every_size(tmp_path: Path, height: int) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 60)]
    frames = np.broadcast_to(np.repeat(np.array([colours], np.uint8), 16, axis=1), (2, height, 64, 3))
    write_video(tmp_path / "a.mp4", frames, fps=8.0)
    shown = read_video(tmp_path / "a.mp4")[0, height // 2, 8::16]
    assert np.abs(shown.astype(int) - colours).max() <= 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert {codec.colorspace, codec.color_primaries, codec.color_trc} == {1}, "named, so that no player guesses"


def test_equal_frames_give_equal_bytes() -> None:
    """So that an artifact made again, or after a crash, has the digest that it had; memory in between is not equal."""
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 255, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([np.roll(squares, shift, axis=1) for shift in range(12)])
    found: set[bytes] = set()
    others = [b""] * 40
    for turn in range(200):
        others[turn % 40] = rng.bytes(int(rng.integers(1000, 200_000)))
        found.add(video_bytes(frames, 8.0))
    assert len(found) == 1


def test_odd_sides_become_even_and_zoom_repeats(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", gray_levels(2, 15, 17), fps=8.0)
    write_video(tmp_path / "b.mp4", gray_levels(2, 15, 17), fps=7.5, zoom=2)
    assert read_video(tmp_path / "a.mp4").shape == (2, 16, 18, 3)
    assert read_video(tmp_path / "b.mp4").shape == (2, 30, 34, 3)


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(8.0, [0, 3, 6, 9, 12, 15]), (24.0, list(range(18))), (16.0, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16])],
)
def test_resampling_shows_the_frame_of_its_time(tmp_path: Path, fps: float, expected: list[int]) -> None:
    write_video(tmp_path / "a.mp4", gray_levels(18), fps=24)
    assert levels_of(resampled(tmp_path / "a.mp4", fps)) == expected
    assert measure_video(tmp_path / "a.mp4", fps).num_frames == len(expected)


def test_upsampling_repeats_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", gray_levels(4), fps=4)
    assert levels_of(resampled(tmp_path / "a.mp4", 8.0)) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_part_equals_that_part_of_the_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", rng.integers(0, 255, (300, 16, 16, 3), np.uint8), fps=24)  # several key frames
    whole = resampled(tmp_path / "a.mp4", 10.0)
    for first, count in ((0, 5), (17, 13), (110, 13)):
        part = read_frames(tmp_path / "a.mp4", 10.0, None, range(first, first + count))
        np.testing.assert_array_equal(part, whole[first : first + count])


def test_resize_keeps_the_aspect_and_the_centre(tmp_path: Path) -> None:
    frames = gray_levels(3, 32, 96)
    frames[:, :, 32:64] = 200  # only the centre square survives the crop
    write_video(tmp_path / "a.mp4", frames, fps=8)
    cropped = resampled(tmp_path / "a.mp4", 8.0, (16, 16))
    assert cropped.shape == (3, 16, 16, 3)
    assert np.abs(cropped[:, :, 2:14].astype(int) - 200).max() < 8


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_broken_video_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4: cannot be decoded"):
        read_video(tmp_path / "a.mp4")


def test_read_image(tmp_path: Path) -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    assert fit_image(image, 10, 10).min() > 200  # the black sides are cropped
    assert fit_image(image, 10, 20).shape == (10, 20, 3)


def test_an_image_too_large_to_open_safely_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"too large .*; give a smaller one"):
        read_image(tmp_path / "a.png")


def test_what_is_no_image_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UserError, match="not a readable image"):
        read_image(tmp_path / "a.png")
    (tmp_path / "a.jpg").write_bytes(with_damaged_exif())
    with pytest.raises(UserError, match="not a readable image"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / "b.png")


def test_a_wide_video_is_shrunk_for_a_page_and_a_small_one_stays(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 60, 100, 3), np.uint8)
    write_video(tmp_path / "wide.mp4", frames, 8)
    assert shrunk_video(tmp_path / "wide.mp4", 100, 23) == (tmp_path / "wide.mp4").read_bytes()
    (tmp_path / "small.mp4").write_bytes(shrunk_video(tmp_path / "wide.mp4", 50, 23))
    assert read_video(tmp_path / "small.mp4").shape == (6, 30, 50, 3)
    assert resampled(tmp_path / "small.mp4", 8.0).shape[0] == 6


def test_a_picture_that_was_taken_upright_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # as a phone notes it
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (40, 20, 3)


def test_a_video_that_was_taken_upright_is_turned(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.set_display_rotation(90)  # as a phone notes it
        for pixels in gray_levels(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    assert read_video(tmp_path / "a.mp4").shape == (3, 48, 32, 3)
    assert read_video(tmp_path / "a.mp4", size=(24, 16)).shape == (3, 24, 16, 3)
    assert measure_video(tmp_path / "a.mp4", 8.0).aspect == pytest.approx(32 / 48)


def test_the_shape_of_a_video_is_the_one_that_is_shown(tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", numbered(5, 32, 48), 8, pixel_aspect=Fraction(4, 3))
    assert measure_video(tmp_path / "a.mkv", 8.0).aspect == pytest.approx(2)
    assert read_video(tmp_path / "a.mkv").shape == (5, 32, 64, 3)
