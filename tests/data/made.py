"""Small videos in every container, whose frames say which they are."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import ExifTags, Image

from magic141.data.videos.video import read_frames

NUM_BITS = 8
MAX_FRAMES = 10_000  # of a video here
CODECS = {  # of a suffix, where it is not H.264 with B-frames
    ".webm": "libvpx",
    ".ogv": "libvpx",
    ".gif": "gif",
    ".mpg": "mpeg2video",
    ".mpeg": "mpeg1video",
    ".vob": "mpeg2video",
    ".wmv": "wmv2",
    ".asf": "wmv2",
}


def numbered(num_frames: int, height: int = 32, width: int = 64) -> np.ndarray:
    """Frame k shows k in binary, as vertical bars."""
    bars = (np.arange(num_frames)[:, None] >> np.arange(NUM_BITS)) & 1
    columns = np.repeat(bars, width // NUM_BITS, axis=1)
    gray = np.broadcast_to(columns[:, None, :, None] * 255, (num_frames, height, width, 3))
    return np.ascontiguousarray(gray.astype(np.uint8))


def numbers_of(frames: np.ndarray) -> list[int]:
    """What `numbered` frames show."""
    height, width = frames.shape[1:3]
    middles = (2 * np.arange(NUM_BITS) + 1) * width // (2 * NUM_BITS)
    bits = frames[:, height // 2, middles, 0] > 127
    return [int(number) for number in bits @ (1 << np.arange(NUM_BITS))]


def resampled(path: Path, fps: float, size: tuple[int, int] | None = None) -> np.ndarray:
    """All frames that a video shows at this rate, decoded from its first on."""
    return read_frames(path, fps, size, range(MAX_FRAMES))


def encode(
    path: Path,
    frames: np.ndarray,
    fps: float | Fraction = 24,
    codec: str | None = None,
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    times: Sequence[int] | None = None,
    pixel_aspect: Fraction | None = None,
) -> None:
    """Writes frames; key frames every second; `times`: when each is shown, in units of 1 / fps."""
    codec = codec or CODECS.get(path.suffix, "libx264")
    given = {"crf": "10"} if codec == "libx264" else {"b": "2000000"}
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else pix_fmt
        stream.options = {**given, **(options or {})}
        stream.codec_context.gop_size = 24
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for index, pixels in enumerate(frames):
            frame = VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[-1] == 4 else "rgb24")
            frame.pts, frame.time_base = times[index] if times else index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def copy_stream(source: Path, target: Path) -> None:
    """Puts a video into another container, as it is encoded."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def with_damaged_exif() -> bytes:
    """A JPEG to be turned, whose EXIF calls a number a text."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.ImageWidth] = 6, 48
    Image.new("RGB", (48, 40)).save(file, "JPEG", exif=exif)
    return file.getvalue().replace(b"\x01\x00\x00\x04\x00\x00\x00\x01", b"\x01\x00\x00\x02\x00\x00\x00\x01")
