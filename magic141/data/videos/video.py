"""Reads and writes videos with PyAV, and reads images with PIL."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps

from magic141.data.sizes import Size, nearest_size
from magic141.data.videos.cuts import CutDetector
from magic141.data.videos.decoding import Decode, Track, blaming, opened, pixel_aspect, timed_frames
from magic141.data.videos.pictures import UNREADABLE, upright_rgb
from magic141.data.videos.pixels import Frames, check_picture, shown_aspect, to_rgb
from magic141.data.videos.soundness import sound_frames
from magic141.errors import UserError

_TIME_EPS = 1e-6
_MILLISECOND = 0.001
CRF = 12
_BT709 = 1  # FFmpeg's number of the standard, for space, primaries and curve alike


class Measured(NamedTuple):
    """What a video has.

    Attributes:
        num_frames: after resampling.
        num_distinct: different ones among them.
        aspect: width / height of the first one as shown; 0 of a video without frames.
        cuts: indices of those that begin a new scene, if these were looked for.
    """

    num_frames: int
    num_distinct: int
    aspect: float
    cuts: tuple[int, ...] = ()


class _Shown(NamedTuple):
    """A frame in its place among the output frames; `pixel_aspect`: width / height of its pixels."""

    place: int
    frame: VideoFrame
    pixel_aspect: float


def measure_video(path: Path, fps: float, cut_score: float | None = None) -> Measured:
    """Decodes the whole video and looks at every frame that resampling to `fps` shows.

    Args:
        path: The file.
        fps: Resample to this rate.
        cut_score: Score from which a frame begins a new scene (`CutDetector`); None: cuts are not looked for.

    Raises:
        BadVideo: it is damaged, or has pictures that cannot be used.
        StorageError: it cannot be read.
    """
    num_frames, num_distinct, shown = 0, 0, 0.0
    cuts: list[int] = []
    detector = None if cut_score is None else CutDetector(cut_score)
    last: VideoFrame | None = None
    for place, frame, aspect in _indexed_frames(path, fps, 0, decode=sound_frames):
        if frame is not last:
            check_picture(path, frame, aspect)
            with blaming(path):
                cuts += [place] if detector and detector.is_cut(frame) else []
        shown = shown or shown_aspect(frame, aspect)
        num_frames, num_distinct, last = num_frames + 1, num_distinct + (frame is not last), frame
    return Measured(num_frames, num_distinct, shown, tuple(cuts))


def read_video(path: Path, size: tuple[int, int] | None = None) -> Frames:
    """Decodes every frame of a video.

    Args:
        path: The file.
        size: (height, width) to scale and centre-crop to; None keeps the stored size.

    Returns:
        uint8 [F, H, W, 3].
    """
    return _stacked(path, _stored(path), size)


def read_frames(path: Path, fps: float, size: tuple[int, int] | None, wanted: Collection[int]) -> Frames:
    """Decodes some frames of a video, in order; those in between are neither converted nor kept.

    Args:
        path: The file.
        fps: Resample to this rate: output frame k is what is on screen at k / fps seconds, or comes on a quarter of a
            frame's time later.
        size: As in `read_video`.
        wanted: Indices after resampling.

    Returns:
        uint8 [len(set(wanted)), H, W, 3]; fewer when the video ends early.
    """
    chosen = set(wanted)
    shown = _indexed_frames(path, fps, min(chosen), max(chosen) + 1)
    return _stacked(path, (item for item in shown if item.place in chosen), size)


def write_video(path: Path, frames: Frames, fps: float, zoom: int = 1, crf: int = CRF) -> None:
    """Writes uint8 [F, H, W, 3] as H.264 (yuv420p, BT.709); `crf`: quality; the default looks like the original.

    `zoom` repeats pixels; odd sides gain one repeated row or column, because yuv420p needs even sides.
    """
    height, width = (side * zoom for side in frames.shape[1:3])
    margins = ((0, height % 2), (0, width % 2), (0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        # In small frames x264's macroblock tree reads memory that nobody wrote: equal frames gave other bytes, 1 in 20.
        stream.options = {"crf": str(crf), "preset": "veryfast", "mbtree": "0"}
        codec = stream.codec_context
        codec.color_range = int(ColorRange.MPEG)
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        for frame in frames:
            zoomed = frame.repeat(zoom, axis=0).repeat(zoom, axis=1)
            container.mux(stream.encode(_in_bt709(np.pad(zoomed, margins, mode="edge"))))
        container.mux(stream.encode())


def shrunk_video(path: Path, max_width: int, crf: int) -> bytes:
    """The file's bytes, or those of a smaller version if it is wider than `max_width`; for pages with many videos."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        width, height, fps = stream.width, stream.height, float(stream.average_rate or 1)
    if width <= max_width:
        return path.read_bytes()
    return video_bytes(read_video(path, size=(round(height * max_width / width), max_width)), fps, crf)


def video_bytes(frames: Frames, fps: float, crf: int = CRF) -> bytes:
    """The content of an mp4 file of uint8 [T, H, W, 3]."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        write_video(file, frames, fps, crf=crf)
        return file.read_bytes()


def read_image(path: Path) -> Frames:
    """Reads an image as uint8 [H, W, 3], upright."""
    if not path.is_file():
        raise UserError(f"image {path}: no such file; give the path of a PNG, JPEG or WebP image")
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except Image.DecompressionBombError as error:
        raise UserError(f"image {path}: too large ({error}); give a smaller one") from error
    except UNREADABLE as error:
        raise UserError(f"image {path}: not a readable image; give a PNG, JPEG or WebP image") from error


def fit_image(image: Frames, height: int, width: int) -> Frames:
    """Scales uint8 [H, W, 3] so that it covers height x width, keeping its aspect, and crops the centre."""
    if image.shape[:2] == (height, width):
        return image
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted)


def fit_nearest(image: Frames, sizes: Sequence[Size]) -> Frames:
    """`fit_image` to the size to which uint8 [H, W, 3] loses least by cropping."""
    height, width = image.shape[:2]
    return fit_image(image, *nearest_size(width / height, sizes))


def _in_bt709(rgb: Frames) -> VideoFrame:
    """In the space that the file names: of files that name none players guess it by their size."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)


def _stacked(path: Path, shown: Iterable[_Shown], size: tuple[int, int] | None) -> Frames:
    """uint8 [F, H, W, 3]; a frame that is shown several times in a row is converted once."""
    frames: list[Frames] = []
    last: VideoFrame | None = None
    for _, frame, aspect in shown:
        if frame is not last:
            with blaming(path):
                pixels = to_rgb(frame, size, aspect)
        frames.append(pixels)
        last = frame
    return np.stack(frames) if frames else np.zeros((0, *(size or (0, 0)), 3), np.uint8)


def _indexed_frames(
    path: Path, fps: float, first: int, stop: int | None = None, decode: Decode | None = None
) -> Iterator[_Shown]:
    """Output frames from index `first` on, before `stop`.

    Raises:
        BadVideo: the file cannot be decoded.
        StorageError: it cannot be read.
    """
    for shown in _resampled(path, fps, first, decode):
        if stop is not None and shown.place >= stop:
            return
        if shown.place >= first:
            yield shown


def _stored(path: Path) -> Iterator[_Shown]:
    with opened(path) as video:
        aspect = pixel_aspect(video.stream)
        for index, frame in enumerate(video.container.decode(video.stream)):
            yield _Shown(index, frame, aspect)


def _resampled(path: Path, fps: float, first: int, decode: Decode | None) -> Iterator[_Shown]:
    """At index k the frame on screen at k / fps seconds after the video's start; may begin before `first`."""
    frames = timed_frames(path, (lambda track: (first + _tolerance(track, fps)) / fps) if first else None, decode)
    for track, (begin, end, frame) in frames:
        yield from (_Shown(index, frame, track.pixel_aspect) for index in _shown_at(begin, end, fps, track))


def _shown_at(begin: float, end: float, fps: float, track: Track) -> range:
    """The k with begin <= k / fps < end, where frames may be a little late."""
    tolerance = _tolerance(track, fps)
    return range(math.ceil(begin * fps - tolerance), math.ceil(end * fps - tolerance))


def _tolerance(track: Track, fps: float) -> float:
    """How late a frame may be, in output frames; less than half of one, so that it can only move to its nearest place.

    At equal rates frames begin when they are wanted: with none to spare, every one that jitters, or whose time was once
    rounded to milliseconds, would be dropped, and the one before shown twice.
    """
    return min(_TIME_EPS + fps * max(track.tick, _MILLISECOND, track.interval / 4), 0.49)
