"""Windows lie within scenes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from magic141.data.config import DataConfig
from magic141.data.dataset import ClipDataset
from magic141.data.sources.clips import Probed, cut_windows, make_chunks, probe_video, render_anchors, render_chunk
from magic141.data.sources.listing import BadFile, Stamp, VideoFile
from magic141.data.sources.scenes import longest_scene, note_cuts, place_windows, scenes_of
from tests.data.attempts import run
from tests.data.made import encode
from tests.data.test_prepare import MemoryLog
from tests.data.videos.test_cuts import scene

CONFIG = DataConfig(source="folder", path=Path("videos"), num_frames=5, stride_frames=2, height=16, width=16)
STAMP = Stamp(0, 0)


def test_scenes_cover_a_video() -> None:
    assert scenes_of(30, ()) == [range(30)]
    assert scenes_of(30, (4, 20)) == [range(4), range(4, 20), range(20, 30)]
    assert (longest_scene(30, ()), longest_scene(30, (4, 20))) == (30, 16)


@pytest.mark.parametrize("cuts", [(), (1,), (5, 9, 24), (29,)], ids=str)
def test_every_window_lies_in_one_scene_and_none_is_left_out(cuts: tuple[int, ...]) -> None:
    places = place_windows(30, cuts, CONFIG)
    assert places == sorted(set(places))
    for start, scene_start in product(range(30), (0, *cuts)):
        stop = min([cut for cut in (*cuts, 30) if cut > scene_start])
        fits = scene_start <= start and start + CONFIG.num_frames <= stop
        is_turn = (start - scene_start) % CONFIG.stride_frames == 0
        assert ((start, scene_start) in places) == (fits and is_turn)


def test_without_cuts_windows_are_a_stride_apart() -> None:
    assert [place.start for place in place_windows(30, (), CONFIG)] == list(range(0, 26, 2))


@pytest.mark.parametrize("num_videos", [1, 30], ids=["ends are held out", "videos are held out"])
def test_splits_share_no_frame_and_clips_continue_their_own_scene(num_videos: int) -> None:
    videos = [VideoFile(f"{number}.mp4", "x") for number in range(num_videos)]
    probed = [Probed(80, str(number), STAMP, 1.0, (33, 40, 51)) for number in range(num_videos)]
    clips = cut_windows(videos, probed, CONFIG).clips
    used: dict[tuple[str, int], set[str]] = {}
    for clip in clips:
        scene_start = clip.start_frame + clip.anchor_frame
        assert scene_start in (0, 33, 40, 51)
        assert not any(scene_start < cut < clip.start_frame + CONFIG.num_frames for cut in (33, 40, 51))
        for frame in range(clip.start_frame, clip.start_frame + CONFIG.num_frames):
            used.setdefault((clip.source, frame), set()).add(clip.split)
    assert {len(splits) for splits in used.values()} == {1}
    assert {clip.split for clip in clips} == {"train", "validation", "heldout"}


def test_a_video_of_short_scenes_only_is_named(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", np.concatenate([scene(number, 8) for number in range(3)]), 8)
    config = DataConfig(source="folder", path=tmp_path)
    reason = "2 cuts (data.cut_score = 10) leave scenes of at most 8 frames at data.fps = 8, data.num_frames = 13"
    assert probe_video(tmp_path, VideoFile("a.mp4", "x"), config) == BadFile("a.mp4", f"too short: {reason}")
    whole = config.model_copy(update={"cut_score": None})
    assert not isinstance(probe_video(tmp_path, VideoFile("a.mp4", "x"), whole), BadFile)


def test_cuts_are_noted_if_there_are_any() -> None:
    assert note_cuts([(), ()], CONFIG) == []
    expected = "3 cuts in 2 of 3 videos (data.cut_score = 10): no clip spans two scenes"
    assert note_cuts([(4,), (), (2, 9)], CONFIG) == [expected]


def test_anchors_are_the_first_frames_of_scenes(tmp_path: Path) -> None:
    pictures = np.concatenate([scene(0, 12, 48, 48), scene(1, 15, 48, 48)])
    encode(tmp_path / "a.mp4", pictures, 8)
    config = CONFIG.model_copy(update={"path": tmp_path, "height": 48, "width": 48})
    clips = cut_windows([VideoFile("a.mp4", "x")], [Probed(27, "a", STAMP, 1.0, (12,))], config).clips
    seen = set()
    for chunk in make_chunks(clips, config):
        for clip, anchor, frames in zip(chunk, render_anchors(chunk, config), render_chunk(chunk, config), strict=True):
            first = 0 if clip.start_frame < 12 else 12
            seen.add(first)
            assert np.abs(anchor.astype(float) - pictures[first]).mean() < 8
            assert np.abs(frames[0].astype(float) - pictures[clip.start_frame]).mean() < 8
    assert seen == {0, 12}


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_corpus_of_cut_videos_has_no_clip_over_a_cut(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(4):
        pictures = [scene(2 * number, 15), scene(2 * number + 1, 15)]  # a bright and a dark one
        encode(videos / f"{number}.mp4", np.concatenate(pictures), 8)
        (videos / f"{number}.txt").write_text("two scenes")
    config = DataConfig.model_validate({"source": "folder", "path": videos, "num_frames": 5, "shard_size": 6})
    log = MemoryLog()
    out = run(config, tmp_path / "whole", log)
    assert "4 cuts in 4 of 4 videos (data.cut_score = 10): no clip spans two scenes" in log.notes
    frames = ClipDataset.open(out, "heldout").pixels[:].float()
    assert (frames.mean((2, 3, 4)).std(1) < 10).all(), "each is of one brightness"
