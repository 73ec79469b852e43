"""Reads and writes videos with PyAV, and reads images with PIL."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from PIL import Image, ImageOps, UnidentifiedImageError

from magic141.frozen import UserError

Frames = npt.NDArray[np.uint8]
_TIME_EPS = 1e-6
# Errors that a damaged or foreign file raises while it is opened or decoded.
_DECODE_ERRORS = (av.error.FFmpegError, ValueError, EOFError, IndexError)


def count_frames(path: Path, fps: float | None = None) -> int:
    """Decodes the whole video and counts its frames after resampling to `fps` (None: as stored)."""
    return sum(1 for _ in _indexed_frames(path, fps, 0))


def read_video(
    path: Path,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    first: int = 0,
    count: int | None = None,
) -> Frames:
    """Decodes a video.

    Args:
        path: The file.
        fps: Resample to this rate: output frame k is what is on screen at k / fps seconds. None keeps every frame.
        size: (height, width) to scale and centre-crop to; None keeps the stored size.
        first: Index of the first wanted frame, after resampling.
        count: Number of wanted frames; None reads to the end.

    Returns:
        uint8 [F, H, W, 3]; fewer than `count` frames when the video ends early.
    """
    frames: list[Frames] = []
    last: tuple[VideoFrame, Frames] | None = None
    for index, frame in _indexed_frames(path, fps, first):
        if count is not None and index >= first + count:
            break
        if last is None or last[0] is not frame:
            last = (frame, _to_rgb(frame, size))
        frames.append(last[1])
    if not frames:
        height, width = size or (0, 0)
        return np.zeros((0, height, width, 3), np.uint8)
    return np.stack(frames)


def write_video(path: Path, frames: Frames, fps: float, zoom: int = 1, crf: int = 12) -> None:
    """Writes uint8 [F, H, W, 3] as H.264 (yuv420p); `crf` is its quality: 12 is hard to tell from the original.

    `zoom` repeats pixels; odd sides gain one repeated row or column, because yuv420p needs even sides.
    """
    zoomed = np.repeat(np.repeat(frames, zoom, axis=1), zoom, axis=2)
    height, width = zoomed.shape[1:3]
    even = np.pad(zoomed, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        for frame in even:
            container.mux(stream.encode(VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def shrunk_video(path: Path, max_width: int, crf: int) -> bytes:
    """The file's bytes, or those of a smaller version if it is wider than `max_width`; for pages with many videos."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        width, height, fps = stream.width, stream.height, float(stream.average_rate or 1)
    if width <= max_width:
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.mp4"
        write_video(small, read_video(path, size=(round(height * max_width / width), max_width)), fps, crf=crf)
        return small.read_bytes()


def read_image(path: Path, size: tuple[int, int] | None = None) -> Frames:
    """Reads an image as uint8 [H, W, 3], upright, scaled and centre-cropped to `size` (height, width) if given."""
    if not path.is_file():
        raise UserError(f"image {path}: no such file; give the path of a PNG, JPEG or WebP image")
    try:
        with Image.open(path) as image:
            rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.DecompressionBombError as error:
        raise UserError(f"image {path}: too large ({error}); give a smaller one") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"image {path}: not a readable image; give a PNG, JPEG or WebP image") from error
    return rgb if size is None else fit_image(rgb, *size)


def fit_image(image: Frames, height: int, width: int) -> Frames:
    """Scales uint8 [H, W, 3] so that it covers height x width, keeping its aspect, and crops the centre."""
    if image.shape[:2] == (height, width):
        return image
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted)


def _indexed_frames(path: Path, fps: float | None, first: int) -> Iterator[tuple[int, VideoFrame]]:
    """Yields (output index, frame) from index `first` on; raises `UserError` if the file cannot be decoded."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"video {path}: has no video stream; expected a video file; replace or remove it")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            source = enumerate(container.decode(stream)) if fps is None else _resampled(container, stream, fps, first)
            yield from ((index, frame) for index, frame in source if index >= first)
    except UserError:
        raise
    except (*_DECODE_ERRORS, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"video {path}: cannot be decoded ({reason}); replace or remove the file") from error


def _resampled(
    container: InputContainer, stream: VideoStream, fps: float, first: int
) -> Iterator[tuple[int, VideoFrame]]:
    """Yields (k, the frame on screen at k / fps seconds after the stream's start)."""
    time_base = stream.time_base or 0
    start = float((stream.start_time or 0) * time_base)
    if first and time_base:
        container.seek(int((start + first / fps) / time_base), stream=stream)  # to the key frame before
    interval = 1.0 / float(stream.average_rate or 24)
    previous: VideoFrame | None = None
    begin = 0.0
    for position, frame in enumerate(container.decode(stream)):
        time = position * interval if frame.time is None else frame.time - start
        if previous is not None:
            yield from ((index, previous) for index in _shown_at(begin, time, fps))
        previous, begin = frame, time
    if previous is not None:
        yield from ((index, previous) for index in _shown_at(begin, begin + interval, fps))


def _shown_at(begin: float, end: float, fps: float) -> range:
    """The k with begin <= k / fps < end."""
    return range(math.ceil(begin * fps - _TIME_EPS), math.ceil(end * fps - _TIME_EPS))


def _to_rgb(frame: VideoFrame, size: tuple[int, int] | None) -> Frames:
    """The frame as uint8 [H, W, 3], upright, scaled to cover `size` (height, width) and centre-cropped to it."""
    quarter_turns = round(frame.rotation / 90) % 4
    if size is None:
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))
    height, width = size if quarter_turns % 2 == 0 else size[::-1]
    scale = max(height / frame.height, width / frame.width)
    covering = (max(height, round(frame.height * scale)), max(width, round(frame.width * scale)))
    method = Interpolation.AREA if scale < 1 else Interpolation.BICUBIC
    scaled = frame.reformat(width=covering[1], height=covering[0], format="rgb24", interpolation=method).to_ndarray()
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return np.ascontiguousarray(np.rot90(scaled[top : top + height, left : left + width], quarter_turns))
