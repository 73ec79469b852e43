"""Frames of video files in order of time, from any time on; damaged files and storage that fails are told apart."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from magic141.errors import UserError

# Errors that a damaged or foreign file raises while it is opened or decoded. FFmpeg reads through a file that Python
# opened: what the storage refuses arrives as Python's own OSError, which is none of these.
_DECODE_ERRORS = (av.error.FFmpegError, ValueError, EOFError, IndexError)
_EXACT_INDEX = ("mov", "matroska")  # formats in which a jump lands on a key frame at or before the wanted time
_BY_DECODING_TIME = ("avi",)  # it stores no other: what FFmpeg guesses from it jumps back and forth


class BadVideo(UserError):
    """A video that cannot be used, by its own fault."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"video {self.args[0]}: {self.reason}; replace or remove the file"


class StorageError(OSError):
    """Storage that does not deliver, here and now: no fault of the file's, so that nothing is skipped for it."""


class Unusable(Exception):
    """Why the video that is being read cannot be used."""


class Video(NamedTuple):
    """An open file and its first video stream."""

    container: InputContainer
    stream: VideoStream


Decode = Callable[[Video], Iterator[VideoFrame]]


class TimedFrame(NamedTuple):
    """A frame and when it is on screen, in seconds after the video's start."""

    begin: float
    end: float
    frame: VideoFrame


class Track(NamedTuple):
    """What holds for all frames of a video: how it tells the time, in seconds, and the shape of its pixels."""

    origin: float  # the video's start, as the file counts
    interval: float  # from frame to frame
    tick: float  # by which a time may be off
    by_decoding_time: bool
    pixel_aspect: float  # width / height

    @classmethod
    def of(cls, video: Video, first: VideoFrame) -> Track:
        """The track whose first frame is `first`: before it nothing can be shown."""
        stream, by_decoding_time = video.stream, is_of(video, _BY_DECODING_TIME)
        base = Fraction(stream.time_base or 0)
        rate = Fraction(stream.average_rate or stream.guessed_rate or 24)
        is_exact = not base or (1 / (rate * base)).denominator == 1  # a frame lasts whole ticks: no time is rounded
        times = [_seconds(first, by_decoding_time)]
        if not by_decoding_time and stream.start_time is not None:
            times.append(float(stream.start_time * base))
        origin = max((time for time in times if time is not None), default=0.0)
        tick = 0.0 if is_exact else float(base)
        return cls(origin, 1.0 / float(rate), tick, by_decoding_time, pixel_aspect(stream))

    def time_of(self, item: VideoFrame | Packet[Any]) -> float | None:
        """Seconds after the video's start; None if the file does not say."""
        seconds = _seconds(item, self.by_decoding_time)
        if seconds is None:
            return None
        time = seconds - self.origin
        regular = round(time / self.interval) * self.interval
        return regular if abs(time - regular) <= self.tick else time  # undoes the rounding of times to milliseconds

    def timed(self, frames: Iterable[VideoFrame]) -> Iterator[TimedFrame]:
        """Each frame with its time on screen, which the next one ends."""
        last: VideoFrame | None = None
        begin = 0.0
        for frame in frames:
            time = self.time_of(frame)
            if last is not None:
                end = begin + self.interval if time is None else time
                self._check(begin, end)
                yield TimedFrame(begin, end, last)
                begin = end
            else:
                begin = 0.0 if time is None else time
            last = frame
        if last is not None:
            yield TimedFrame(begin, begin + self.interval, last)

    def _check(self, begin: float, end: float) -> None:
        """Times that go back would show frames twice, one that jumps ahead is a still picture for as long."""
        longest = max(1.0, 3 * self.interval)
        if end < begin - 2 * self.tick:
            raise Unusable(f"its times go back from {begin:.3f} s to {end:.3f} s")
        if end - begin > longest:
            raise Unusable(f"the frame at {begin:.3f} s stays for {end - begin:.1f} s, expected at most {longest:g} s")


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Raises what goes wrong with a video inside as `BadVideo` or, if it cannot be read, as `StorageError`."""
    try:
        yield
    except Unusable as error:
        raise BadVideo(path, str(error)) from None
    except UserError:
        raise
    except _DECODE_ERRORS as error:
        raise BadVideo(path, f"cannot be decoded ({getattr(error, 'strerror', None) or error})") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a damaged file sends the reader before its first byte
            raise BadVideo(path, "cannot be decoded (it refers to offsets outside the file)") from error
        raise storage_error(f"video {path}", error) from error


@contextmanager
def opened(path: Path) -> Iterator[Video]:
    """The open video; what goes wrong with it inside is told apart as `blaming` does.

    It is decoded in one thread: many files are read at once, each on the one processor that its task was given.
    """
    with blaming(path), path.open("rb") as file, av.open(file) as container:
        if not container.streams.video:
            raise Unusable("has no video stream, expected a video file")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise Unusable("in a codec that FFmpeg does not know, expected one such as H.264")
        stream.codec_context.thread_count = 1
        yield Video(container, stream)


def storage_error(what: str, error: OSError) -> StorageError:
    """The error with the machine on which it happened."""
    return StorageError(
        f"{what}: machine {socket.gethostname()} cannot read it ({error.strerror or error}); "
        "check that the folder is mounted and readable there"
    )


def timed_frames(
    path: Path, start: Callable[[Track], float] | None = None, decode: Decode | None = None
) -> Iterator[tuple[Track, TimedFrame]]:
    """The frames of a video in order of time.

    Args:
        path: The file.
        start: Seconds after the video's start, given its track: the frames from the one on screen then, or an earlier
            one, are wanted. None: from the first frame on.
        decode: Gives the frames from the first one on. None: as FFmpeg does, which patches damaged ones up.
    """
    if start is not None:
        track = _track_of(path)
        wanted = start(track)
        for jump in (_sought, _skimmed):
            with opened(path) as video:
                frames = jump(video, track, wanted)
                first = next(frames, None)
                landed = None if first is None else track.time_of(first)
                if first is not None and landed is not None and landed <= wanted:
                    yield from ((track, timed) for timed in track.timed(chain((first,), frames)))
                    return
    with opened(path) as video:
        frames = decode(video) if decode else video.container.decode(video.stream)
        first = next(frames, None)
        if first is not None:
            track = Track.of(video, first)
            yield from ((track, timed) for timed in track.timed(chain((first,), frames)))


def _seconds(item: VideoFrame | Packet[Any], by_decoding_time: bool) -> float | None:
    """When the file says that it is shown; packets without such a time have that of their decoding."""
    by_decoding_time = by_decoding_time or (item.pts is None and isinstance(item, Packet))
    stamp = item.dts if by_decoding_time else item.pts
    return None if stamp is None or not item.time_base else float(stamp * item.time_base)


def pixel_aspect(stream: VideoStream) -> float:
    """Width of a pixel divided by its height; 1 if the file does not say."""
    return float(stream.sample_aspect_ratio or 1)


def _track_of(path: Path) -> Track:
    with opened(path) as video:
        first = next(video.container.decode(video.stream), None)
        if first is None:
            raise Unusable("holds no frame")
        return Track.of(video, first)


def _sought(video: Video, track: Track, time: float) -> Iterator[VideoFrame]:
    """Frames from the key frame before `time` on, if the file has an index of them."""
    if not is_of(video, _EXACT_INDEX) or not video.stream.time_base:
        return
    try:
        video.container.seek(int((track.origin + time) / video.stream.time_base), stream=video.stream)
    except av.error.FFmpegError:  # the index is broken
        return
    yield from video.container.decode(video.stream)


def _skimmed(video: Video, track: Track, time: float) -> Iterator[VideoFrame]:
    """Frames from the last but one key frame before `time` on, found by reading the file, not decoding it.

    Without an index a jump lands anywhere, and what lacks a time of its own is given another one after a jump. Frames
    between two key frames may refer to the first: therefore one more.
    """
    before: list[Packet[Any]] = []
    group: list[Packet[Any]] = []
    packets = video.container.demux(video.stream)
    for packet in packets:
        begin = track.time_of(packet) if packet.is_keyframe else None
        if begin is not None and begin <= time:
            before, group = group, []
        group.append(packet)
        if begin is not None and begin > time:
            break
    for packet in chain(before, group, packets):
        yield from (frame for frame in packet.decode() if isinstance(frame, VideoFrame))


def is_of(video: Video, formats: tuple[str, ...]) -> bool:
    """Whether a file has one of the formats, as FFmpeg calls them."""
    return not set(formats).isdisjoint(video.container.format.name.split(","))
