from __future__ import annotations

import errno
import os
import pickle
import resource
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pytest

from magic141.data.sources.listing import VIDEO_SUFFIXES
from magic141.data.videos import decoding
from magic141.data.videos.decoding import BadVideo, StorageError
from magic141.data.videos.video import measure_video, read_frames
from tests.data.made import copy_stream, encode, numbered, numbers_of, resampled

PARTS = ((1, 5), (5, 13), (23, 4), (24, 4), (25, 4), (49, 13), (77, 13))
NUM_FRAMES = 90


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_a_part_of_a_video_equals_that_part_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path, fps = tmp_path / f"a{suffix}", 20.0 if suffix == ".gif" else 24.0
    encode(path, numbered(NUM_FRAMES), fps)
    whole = resampled(path, fps)
    assert numbers_of(whole) == list(range(NUM_FRAMES))
    assert measure_video(path, fps).num_frames == NUM_FRAMES
    for first, count in PARTS:
        np.testing.assert_array_equal(
            read_frames(path, fps, None, range(first, first + count)), whole[first : first + count]
        )
    assert numbers_of(read_frames(path, 10.0, None, range(7, 12))) == numbers_of(resampled(path, 10.0))[7:12]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "mpeg4"), ("a.avi", "mjpeg"), ("a.ts", "mpeg2video"), ("a.mpg", "mpeg1video")]
)
def test_other_codecs_in_containers_without_an_index(tmp_path: Path, name: str, codec: str) -> None:
    path, pix_fmt = tmp_path / name, "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encode(path, numbered(NUM_FRAMES), codec=codec, pix_fmt=pix_fmt, options={} if codec == "mjpeg" else {"bf": "2"})
    whole = resampled(path, 24.0)
    assert numbers_of(whole) == list(range(NUM_FRAMES))
    for first, count in PARTS:
        np.testing.assert_array_equal(
            read_frames(path, 24.0, None, range(first, first + count)), whole[first : first + count]
        )


def test_a_recording_that_begins_between_key_frames(tmp_path: Path) -> None:
    encode(tmp_path / "whole.ts", numbered(NUM_FRAMES))
    content = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(content[len(content) // 4 // 188 * 188 :])
    whole = resampled(tmp_path / "cut.ts", 24.0)
    assert numbers_of(whole) == list(range(NUM_FRAMES - len(whole), NUM_FRAMES))
    for first in (0, 1, 20, 40):
        part = read_frames(tmp_path / "cut.ts", 24.0, None, range(first, first + 9))
        np.testing.assert_array_equal(part, whole[first : first + 9])


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.flv"])
@pytest.mark.parametrize("fps", [24, 30, 60, Fraction(30000, 1001)])
def test_times_in_milliseconds_lose_and_repeat_no_frame(tmp_path: Path, name: str, fps: Fraction) -> None:
    encode(tmp_path / name, numbered(NUM_FRAMES), fps)
    assert numbers_of(resampled(tmp_path / name, float(fps))) == list(range(NUM_FRAMES))
    half = numbers_of(resampled(tmp_path / name, float(fps) / 2))
    assert half == list(range(0, NUM_FRAMES, 2))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".ts"])
@pytest.mark.parametrize("fps", [24, 30])
def test_times_once_rounded_to_milliseconds_lose_no_frame_in_a_finer_container(
    tmp_path: Path, suffix: str, fps: int
) -> None:
    encode(tmp_path / "a.mkv", numbered(NUM_FRAMES), fps, options={"bf": "0"})
    copy_stream(tmp_path / "a.mkv", tmp_path / f"a{suffix}")
    assert numbers_of(resampled(tmp_path / f"a{suffix}", fps)) == list(range(NUM_FRAMES))


@pytest.mark.parametrize("fps", [16, 24, 30])
def test_frames_that_jitter_are_neither_lost_nor_repeated_at_their_own_rate(tmp_path: Path, fps: int) -> None:
    jitter_ms = np.random.default_rng(0).uniform(-4, 4, NUM_FRAMES)
    times = np.round(1000 * np.arange(NUM_FRAMES) / fps + jitter_ms).astype(int) + 4
    encode(tmp_path / "a.mp4", numbered(NUM_FRAMES), fps=1000, times=times.tolist(), options={"bf": "0"})
    shown = numbers_of(resampled(tmp_path / "a.mp4", fps))
    assert shown[: NUM_FRAMES - 1] == list(range(NUM_FRAMES - 1))


def test_only_the_wanted_frames_are_kept(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", numbered(NUM_FRAMES))
    frames = read_frames(tmp_path / "a.mp4", 24.0, (32, 64), [70, 3, 4, 3])
    assert numbers_of(frames) == [3, 4, 70]
    assert len(read_frames(tmp_path / "a.mp4", 24.0, (32, 64), [88, 95])) == 1


def test_times_that_jump_are_refused(tmp_path: Path) -> None:
    times = [index + (24 * 600 if index >= 40 else 0) for index in range(60)]
    encode(tmp_path / "gap.mp4", numbered(60), times=times)
    with pytest.raises(BadVideo, match=r"gap\.mp4: the frame at 1\.625 s stays for 600\.0 s, expected at most"):
        measure_video(tmp_path / "gap.mp4", 24.0)
    assert numbers_of(read_frames(tmp_path / "gap.mp4", 24.0, None, range(0, 30))) == list(range(30))
    encode(tmp_path / "slow.mp4", numbered(9), fps=Fraction(1, 2))
    assert measure_video(tmp_path / "slow.mp4", 1.0).num_frames == 18


def test_times_that_go_back_are_refused(tmp_path: Path) -> None:
    for name in ("a.flv", "b.flv"):
        encode(tmp_path / name, numbered(40), options={"bf": "0"})
    first, second = ((tmp_path / name).read_bytes() for name in ("a.flv", "b.flv"))
    (tmp_path / "both.flv").write_bytes(first + second[13:])  # joined as they are: the second begins at 0 again
    with pytest.raises(BadVideo, match="its times go back from"):
        measure_video(tmp_path / "both.flv", 24.0)


def test_a_damaged_file_is_its_own_fault_and_the_error_travels(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\1" * 5000)
    with pytest.raises(BadVideo) as caught:
        measure_video(tmp_path / "a.mp4", 24.0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.reason.startswith("cannot be decoded (")


def test_a_codec_that_is_not_known_is_its_file_s_fault(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", numbered(9))
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content.replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    with pytest.raises(BadVideo, match="in a codec that FFmpeg does not know"):
        measure_video(tmp_path / "a.mp4", 24.0)


def test_frames_that_cannot_be_scaled_are_their_file_s_fault(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", np.zeros((2, 2, 3000, 3), np.uint8))
    with pytest.raises(BadVideo, match=r"a\.mp4: cannot be decoded \(Invalid argument\)"):
        resampled(tmp_path / "a.mp4", 24.0, (544, 960))


def test_an_index_that_is_broken_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "a.mkv", numbered(60))
    monkeypatch.setattr(decoding, "_sought", lambda *_: iter(()))
    assert numbers_of(read_frames(tmp_path / "a.mkv", 24.0, None, range(30, 39))) == list(range(30, 39))


def test_missing_files_and_too_many_open_ones_are_no_faults_of_a_video(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"video .*gone\.mp4: machine \S+ cannot read it \(No such file"):
        measure_video(tmp_path / "gone.mp4", 24.0)
    encode(tmp_path / "a.mp4", numbered(4))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    held: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            held.extend(iter(lambda: os.open("/dev/null", os.O_RDONLY), -1))
        with pytest.raises(StorageError, match="Too many open files"):
            measure_video(tmp_path / "a.mp4", 24.0)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("after_bytes", [0, 3000])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_disk_that_fails_while_a_video_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after_bytes: int
) -> None:
    encode(tmp_path / name, np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8))
    real = av.open

    def failing(file: BinaryIO, **options: Any) -> Any:
        return real(FailingFile(file, after_bytes), buffer_size=1024, **options)

    monkeypatch.setattr(av, "open", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        measure_video(tmp_path / name, 24.0)


class FailingFile:
    """A file of a disk that breaks after some bytes."""

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self.file, self.name, self.left = file, file.name, num_bytes

    def read(self, size: int) -> bytes:
        if self.left < size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.left -= size
        return self.file.read(size)

    def seek(self, *args: int) -> int:
        return self.file.seek(*args)

    def tell(self) -> int:
        return self.file.tell()
