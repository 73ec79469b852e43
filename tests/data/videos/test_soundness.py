"""Damage within a video makes it unusable; that a recording begins and ends anywhere does not."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from magic141.data.config import DataConfig
from magic141.data.sources.clips import probe_video
from magic141.data.sources.listing import BadFile, VideoFile
from magic141.data.videos.decoding import BadVideo
from magic141.data.videos.video import measure_video
from tests.data.made import encode, resampled

NUM_FRAMES = 60
OPEN = "open-gop=1:keyint=12:bframes=3:log-level=-1"  # frames before a key frame refer to what was before it


def moving(num_frames: int = NUM_FRAMES) -> np.ndarray:
    """A coarse pattern that moves, so that every packet has something in it."""
    pattern = np.random.default_rng(0).integers(0, 255, (8, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(pattern, 2 * number, axis=1) for number in range(num_frames)])


def num_frames(path: Path) -> int:
    return measure_video(path, 24.0).num_frames


def test_a_video_with_damaged_bytes_is_a_bad_file(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", moving(), options={"crf": "20"})
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    begin = content.index(b"mdat") + 3000
    for place in range(begin, begin + 2000, 300):
        content[place] ^= 1
    (tmp_path / "a.mp4").write_bytes(content)
    assert len(resampled(tmp_path / "a.mp4", 24.0)) == NUM_FRAMES, "which FFmpeg patches up"
    probed = probe_video(tmp_path, VideoFile("a.mp4", "x"), DataConfig(source="folder", path=tmp_path))
    assert isinstance(probed, BadFile)
    assert probed.reason.startswith("cannot be decoded (Invalid data found")


def test_a_damaged_first_picture_is_no_cut(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", moving(), options={"crf": "20"})
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    begin = content.index(b"mdat") + 1000
    content[begin : begin + 200] = bytes(200)
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(BadVideo, match="cannot be decoded"):
        num_frames(tmp_path / "a.mp4")


@pytest.mark.parametrize("key_frame", [1, 2, 3])
def test_a_copied_part_may_refer_to_what_was_before_it(tmp_path: Path, key_frame: int) -> None:
    encode(tmp_path / "a.mp4", moving(), options={"x264-params": OPEN})
    with av.open(str(tmp_path / "a.mp4")) as whole, av.open(str(tmp_path / "part.mp4"), "w") as part:
        stream = part.add_stream_from_template(whole.streams.video[0])
        packets = [packet for packet in whole.demux(video=0) if packet.size]
        begin = [number for number, packet in enumerate(packets) if packet.is_keyframe][key_frame]
        for packet in packets[begin:]:
            packet.stream = stream
            part.mux(packet)
    assert num_frames(tmp_path / "part.mp4") == len(resampled(tmp_path / "part.mp4", 24.0))


KINDS = [
    ("a.ts", "libx264", {"bf": "2"}),
    ("b.ts", "libx264", {"x264-params": OPEN}),
    ("c.ts", "libx265", {"x265-params": "open-gop=1:keyint=12:log-level=none"}),
    ("d.ts", "mpeg2video", {"bf": "2"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), KINDS)
def test_recordings_begin_and_end_within_a_picture(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    encode(tmp_path / name, moving(), codec=codec, options=options)
    content, cut = (tmp_path / name).read_bytes(), tmp_path / f"cut-{name}"
    assert num_frames(tmp_path / name) == NUM_FRAMES
    for share in (0.3, 0.5, 0.65):
        place = round(share * len(content)) // 188 * 188
        cut.write_bytes(content[:place])
        loose = len(resampled(cut, 24.0))
        assert num_frames(cut) in (loose, loose - 1), "without what is left of the last"
        cut.write_bytes(content[place:])
        assert num_frames(cut) == len(resampled(cut, 24.0))
