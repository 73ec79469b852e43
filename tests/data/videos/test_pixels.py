from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from magic141.data.videos.video import read_frames, read_video
from tests.data.made import encode, resampled

RED = (200, 40, 90)


def plain(height: int, width: int, colour: tuple[int, int, int] = RED, num_frames: int = 2) -> np.ndarray:
    return np.full((num_frames, height, width, 3), colour, np.uint8)


def shown_by(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes where an mp4's pixel (x, y) is shown: at (a x + c y, b x + d y), moved into view."""
    a, b, c, d = (value << 16 for value in matrix)
    whole = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    stored = path.read_bytes()
    place = stored.index(whole, stored.index(b"tkhd"))  # the track's, not the file's
    path.write_bytes(stored[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + stored[place + 36 :])


@pytest.mark.parametrize("name", ["a.mp4", "a.mpg", "a.ts"])
def test_pixels_that_are_not_square_are_made_so(tmp_path: Path, name: str) -> None:
    frames = plain(96, 120, (0, 0, 0), 12)
    frames[:, 33:63, 48:72] = 255  # shown 34 wide
    encode(tmp_path / name, frames, 25, pixel_aspect=Fraction(64, 45))
    stored = read_video(tmp_path / name)
    assert stored.shape == (12, 96, 171, 3)
    cropped = resampled(tmp_path / name, 25.0, (96, 96))[0, :, :, 0] > 127
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
    shown = read_frames(tmp_path / "a.mpg", 25.0, None, [5])[0, :, :, 0].astype(int)
    assert shown.shape == (64, 96)
    assert np.abs(shown[2:-2, 22:34] - 255).max() < 40, "the upper field's bar"
    assert shown[2:-2, 46:58].max() < 40, "nothing of the lower field's"


@pytest.mark.parametrize(
    ("matrix", "corners"),
    [
        ((1, 0, 0, 1), ("red", "green", "blue", "white")),
        ((0, 1, -1, 0), ("blue", "red", "white", "green")),  # as a phone notes it
        ((-1, 0, 0, 1), ("green", "red", "white", "blue")),  # as one notes it that films its owner
        ((1, 0, 0, -1), ("blue", "white", "red", "green")),
        ((0, 1, 1, 0), ("red", "blue", "green", "white")),
        ((0, -1, -1, 0), ("white", "green", "blue", "red")),
    ],
)
@pytest.mark.parametrize("size", [None, (32, 32)])
def test_pictures_are_turned_and_mirrored_as_browsers_do(
    tmp_path: Path, matrix: tuple[int, int, int, int], corners: tuple[str, ...], size: tuple[int, int] | None
) -> None:
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    frames = np.array(list(colours.values()), np.uint8).reshape(1, 2, 2, 3).repeat(32, 1).repeat(48, 2).repeat(2, 0)
    encode(tmp_path / "a.mp4", frames)
    shown_by(tmp_path / "a.mp4", matrix)
    picture = resampled(tmp_path / "a.mp4", 24.0, size)[0].astype(int)
    height, width = picture.shape[:2]
    assert (width > height) == (size is None and matrix[0] != 0)
    quarters = (picture[y * height // 4, x * width // 4] for y in (1, 3) for x in (1, 3))
    named = [min(colours, key=lambda name: int(np.abs(pixel - colours[name]).sum())) for pixel in quarters]
    assert named == list(corners)


@pytest.mark.parametrize("size", [None, (32, 32)])
def test_what_is_transparent_is_black(tmp_path: Path, size: tuple[int, int] | None) -> None:
    frames = np.zeros((2, 64, 64, 4), np.uint8)
    frames[..., 0] = 255
    frames[:, 16:48, 16:48] = (0, 255, 0, 255)
    encode(tmp_path / "a.mov", frames, codec="qtrle", pix_fmt="argb", options={})
    shown = resampled(tmp_path / "a.mov", 24.0, size)[0]
    assert shown[2, 2].tolist() == [0, 0, 0]
    assert shown[len(shown) // 2, len(shown) // 2].tolist() == [0, 255, 0]
