from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from magic141.data.video import read_video
from tests.data.made import encode

RED = (200, 40, 90)


def plain(height: int, width: int, colour: tuple[int, int, int] = RED, num_frames: int = 2) -> np.ndarray:
    return np.full((num_frames, height, width, 3), colour, np.uint8)


@pytest.mark.parametrize("name", ["a.mp4", "a.mpg", "a.ts"])
def test_pixels_that_are_not_square_are_made_so(tmp_path: Path, name: str) -> None:
    frames = plain(96, 120, (0, 0, 0), 12)
    frames[:, 33:63, 48:72] = 255  # shown 34 wide
    encode(tmp_path / name, frames, 25, pixel_aspect=Fraction(64, 45))
    stored = read_video(tmp_path / name)
    assert stored.shape == (12, 96, 171, 3)
    cropped = read_video(tmp_path / name, 25.0, (96, 96))[0, :, :, 0] > 127
    assert abs(int(cropped.any(axis=0).sum()) - 34) <= 1
    assert abs(int(cropped.any(axis=1).sum()) - 30) <= 1


@pytest.mark.parametrize(("height", "space"), [(64, "ITU601"), (720, "ITU709")])
def test_colours_of_files_that_do_not_name_their_colour_space(tmp_path: Path, height: int, space: str) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height = stream.width = height
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1"}
        rgb = VideoFrame.from_ndarray(plain(height, height)[0], format="rgb24")
        container.mux(stream.encode(rgb.reformat(format="yuv420p", dst_colorspace=space)))
        container.mux(stream.encode())
    for size in (None, (32, 32)):
        shown = read_video(tmp_path / "a.mp4", size=size)[0].mean(axis=(0, 1))
        assert np.abs(shown - RED).max() <= 4


def test_of_interlaced_frames_one_moment_is_taken(tmp_path: Path) -> None:
    frames = plain(64, 96, (0, 0, 0), 12)
    for number in range(12):
        frames[number, 0::2, 4 * number : 4 * number + 16] = 255
        frames[number, 1::2, 4 * number + 24 : 4 * number + 40] = 255
    encode(tmp_path / "a.mpg", frames, 25, options={"flags": "+ilme+ildct", "b": "8000000", "top": "1"})
    shown = read_video(tmp_path / "a.mpg", 25.0, first=5, count=1)[0, :, :, 0].astype(int)
    assert shown.shape == (64, 96)
    assert np.abs(shown[2:-2, 22:34] - 255).max() < 40, "the upper field's bar"
    assert shown[2:-2, 46:58].max() < 40, "nothing of the lower field's"


@pytest.mark.parametrize("size", [None, (32, 32)])
def test_what_is_transparent_is_black(tmp_path: Path, size: tuple[int, int] | None) -> None:
    frames = np.zeros((2, 64, 64, 4), np.uint8)
    frames[..., 0] = 255
    frames[:, 16:48, 16:48] = (0, 255, 0, 255)
    encode(tmp_path / "a.mov", frames, codec="qtrle", pix_fmt="argb", options={})
    shown = read_video(tmp_path / "a.mov", 24.0, size)[0]
    assert shown[2, 2].tolist() == [0, 0, 0]
    assert shown[len(shown) // 2, len(shown) // 2].tolist() == [0, 255, 0]
