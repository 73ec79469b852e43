from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from magic141.data.config import DataConfig
from magic141.data.shapes import ShapeClip, render_clip
from magic141.data.sources.chunks import place_chunks, stamp_of
from magic141.data.sources.clips import (
    Clip,
    Probed,
    cut_windows,
    make_chunks,
    probe_video,
    render_anchors,
    render_chunk,
    sample_shapes,
)
from magic141.data.sources.listing import BadFile, Stamp, VideoFile
from magic141.data.sources.splits import SPLITS
from magic141.data.videos.decoding import BadVideo, StorageError
from magic141.data.videos.video import Measured, write_video
from tests.data.made import encode, numbered, numbers_of

STAMP = Stamp(0, 0)


def add_video(folder: Path, name: str, num_frames: int = 20, seed: int = 0) -> None:
    frames = np.random.default_rng(seed).integers(0, 255, (num_frames, 32, 32, 3), np.uint8)
    write_video(folder / name, frames, fps=8.0)


def test_probe_names_broken_and_short_files(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=tmp_path, cut_score=None)
    add_video(tmp_path, "good.mp4", 20)
    add_video(tmp_path, "just.mp4", 13)
    add_video(tmp_path, "short.mp4", 12)
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 999)
    assert probe_video(tmp_path, VideoFile("good.mp4", "x"), config) == Measured(20, 20, 1.0)
    assert probe_video(tmp_path, VideoFile("just.mp4", "x"), config) == Measured(13, 13, 1.0)
    short = probe_video(tmp_path, VideoFile("short.mp4", "x"), config)
    assert short == BadFile("short.mp4", "too short: 12 frames at data.fps = 8, data.num_frames = 13")
    broken = probe_video(tmp_path, VideoFile("broken.mp4", "x"), config)
    assert isinstance(broken, BadFile)
    assert broken.reason.startswith("cannot be decoded")


def test_slow_videos_would_be_still_pictures(tmp_path: Path) -> None:
    """Half of data.fps is still taken, and a thousandth less: drawings move like that."""
    rates: dict[str, float | Fraction] = {"4": 4, "ntsc": Fraction(4000, 1001), "2": 2, "1": 1}
    for name, fps in rates.items():
        encode(tmp_path / f"{name}.mp4", numbered(20), fps)
    config = DataConfig(source="folder", path=tmp_path, cut_score=None)
    probed = {name: probe_video(tmp_path, VideoFile(f"{name}.mp4", "x"), config) for name in rates}
    assert probed["4"] == probed["ntsc"] == Measured(40, 20, 2.0)
    assert probed["2"] == BadFile(
        "2.mp4",
        "too slow: each of its 20 frames would be shown 4.0 times at data.fps = 8, expected at most 2; lower data.fps",
    )
    assert isinstance(probed["1"], BadFile)


def test_probe_refuses_pictures_that_cannot_be_shown_as_meant(tmp_path: Path) -> None:
    encode(tmp_path / "thin.mp4", np.zeros((20, 16, 96, 3), np.uint8), 8)
    curve = {"x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
    encode(tmp_path / "hdr.mp4", numbered(20), 8, options=curve)
    config = DataConfig(source="folder", path=tmp_path, cut_score=None)
    assert probe_video(tmp_path, VideoFile("thin.mp4", "x"), config) == BadFile(
        "thin.mp4", "a picture of 96x16 pixels, expected sides of at most 4:1"
    )
    hdr = probe_video(tmp_path, VideoFile("hdr.mp4", "x"), config)
    assert isinstance(hdr, BadFile)
    assert hdr.reason.startswith("high dynamic range (PQ), expected a standard one")


def test_storage_that_fails_makes_no_bad_file(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=tmp_path, cut_score=None)
    with pytest.raises(StorageError, match=r"gone\.mp4: machine \S+ cannot read it"):
        probe_video(tmp_path, VideoFile("gone.mp4", "x"), config)


def test_windows_far_apart_are_rendered_without_what_lies_between(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", numbered(90, 32, 32), 8)
    config = DataConfig(source="folder", path=tmp_path, cut_score=None)
    frames = render_chunk([Clip("train", "a.mp4", start, "x") for start in (0, 4, 70)], config)
    assert [numbers_of(window) for window in frames] == [list(range(n, n + 13)) for n in (0, 4, 70)]
    with pytest.raises(BadVideo, match="ended early at frame 90"):
        render_chunk([Clip("train", "a.mp4", 80, "x")], config)


def test_windows_render_as_cut(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=tmp_path, cut_score=None, height=16, width=16)
    add_video(tmp_path, "a.mp4", 60)
    clips = cut_windows([VideoFile("a.mp4", "x")], [Probed(60, "a", STAMP, 1.0)], config).clips
    whole = render_chunk([Clip("train", "a.mp4", start, "x") for start in (0, 13, 26, 39)], config).reshape(
        -1, 16, 16, 3
    )
    for chunk in make_chunks(clips, config):
        assert len({clip.split for clip in chunk}) == 1
        frames = render_chunk(chunk, config)
        assert frames.shape == (len(chunk), 13, 16, 16, 3)
        for clip, window in zip(chunk, frames, strict=True):
            expected = whole[clip.start_frame : clip.start_frame + 13]
            np.testing.assert_array_equal(window[: len(expected)], expected)


def test_few_windows_are_held_out_of_many_if_so_configured() -> None:
    config = DataConfig(source="folder", path=Path("videos"), max_heldout_clips=3)
    videos = [VideoFile(f"{number}.mp4", "x") for number in range(100)]
    probed = [Probed(13, str(number), STAMP, 1.0) for number in range(100)]
    splits = [clip.split for clip in cut_windows(videos, probed, config).clips]
    assert all(2 <= splits.count(name) <= 3 for name in ("validation", "heldout"))
    assert splits.count("train") >= 94


def test_windows_of_a_video_are_anchored_in_its_first_frame(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=tmp_path, cut_score=None, height=16, width=16)
    add_video(tmp_path, "a.mp4", 60)
    clips = cut_windows([VideoFile("a.mp4", "x")], [Probed(60, "a", STAMP, 1.0)], config).clips
    first = render_chunk([Clip("train", "a.mp4", 0, "x")], config)[0, 0]
    assert all(clip.start_frame + clip.anchor_frame == 0 for clip in clips)
    for chunk in make_chunks(clips, config):
        assert np.array_equal(render_anchors(chunk, config), np.stack([first] * len(chunk)))


def test_shapes_are_anchored_in_their_own_past() -> None:
    config = DataConfig.model_validate({"shapes": {"num_train": 20, "num_validation": 1, "num_heldout": 1}})
    clips = sample_shapes(config, seed=0)
    offsets = [clip.anchor_frame for clip in clips]
    assert min(offsets) < -30
    assert max(offsets) <= 0
    for clip, anchor in zip(clips, render_anchors(clips, config), strict=True):
        shape = ShapeClip.from_dict(clip.truth or {})
        assert np.array_equal(render_clip(shape, 1, 32, 32, clip.anchor_frame)[0], anchor)


def test_chunks_are_bounded_and_keep_the_order() -> None:
    config = DataConfig.model_validate({"shapes": {"num_train": 600, "num_validation": 3, "num_heldout": 2}})
    clips = sample_shapes(config, seed=0)
    chunks = make_chunks(clips, config)
    assert [len(chunk) for chunk in chunks] == [256, 256, 88, 3, 2]
    assert [clip for chunk in chunks for clip in chunk] == clips
    large = config.model_copy(update={"height": 544, "width": 960, "num_frames": 81})
    assert {len(chunk) for chunk in make_chunks(clips[:4], large)} == {1}


def test_shards_are_stamped_with_the_clips_their_chunks_and_the_models() -> None:
    """What an earlier attempt left is of this one only if all three are the same."""
    clips = [Clip("train", "a.mp4", start, "x") for start in range(3)]
    stamps = {
        stamp_of(place_chunks(chunks), models)
        for chunks in ([clips], [clips[:1], clips[1:]], [clips[:2]])
        for models in ("models", "fitted again")
    }
    assert len(stamps) == 3 * 2


def test_shapes_are_reproducible_and_splits_differ() -> None:
    config = DataConfig.model_validate({"shapes": {"num_train": 5, "num_validation": 5, "num_heldout": 5}})
    clips = sample_shapes(config, seed=1)
    assert clips == sample_shapes(config, seed=1) != sample_shapes(config, seed=2)
    assert len({json.dumps(clip.truth) for clip in clips}) == 15
    assert all(clip.caption == ShapeClip.from_dict(clip.truth or {}).caption for clip in clips)
    again = [Clip.from_dict(json.loads(json.dumps(clip.to_dict()))) for clip in clips]
    np.testing.assert_array_equal(render_chunk(again, config), render_chunk(clips, config))


@pytest.mark.parametrize("stride", [1, 3, 4, 12, 13, 14])
def test_no_frame_of_a_video_is_in_two_splits(stride: int) -> None:
    config = DataConfig(source="folder", path=Path("videos"), stride_frames=stride)
    splits: dict[int, set[str]] = {}
    for clip in cut_windows([VideoFile("a.mp4", "x")], [Probed(600, "0", STAMP, 1.0)], config).clips:
        for frame in range(clip.start_frame, clip.start_frame + config.num_frames):
            splits.setdefault(frame, set()).add(clip.split)
    assert {len(found) for found in splits.values()} == {1}
    assert set.union(*splits.values()) == set(SPLITS)
