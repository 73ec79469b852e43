from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from magic141.data.clips import (
    BadFile,
    Clip,
    Probed,
    VideoFile,
    cut_windows,
    list_videos,
    make_chunks,
    probe_video,
    render_anchors,
    render_chunk,
    sample_shapes,
)
from magic141.data.config import DataConfig
from magic141.data.shapes import ShapeClip, render_clip
from magic141.data.video import write_video
from magic141.frozen import UserError


def add_video(folder: Path, name: str, num_frames: int = 20, seed: int = 0) -> None:
    frames = np.random.default_rng(seed).integers(0, 255, (num_frames, 32, 32, 3), np.uint8)
    write_video(folder / name, frames, fps=8.0)


def write_captions(folder: Path, *rows: object) -> None:
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_captions_from_the_table_and_from_text_files(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.mp4", "c.mp4", "d.mp4"):
        add_video(tmp_path, name, 2)
    write_captions(tmp_path, {"file": "a.mp4", "caption": " a  red\nball "}, {"file": "gone.mp4", "caption": "x"})
    (tmp_path / "sub" / "b.txt").write_text("a cat")
    (tmp_path / "c.txt").write_text(" \n")
    listing = list_videos(tmp_path)
    assert listing.videos == [VideoFile("a.mp4", "a red ball"), VideoFile("sub/b.mp4", "a cat")]
    reasons = dict(listing.bad_files)
    assert reasons["c.mp4"] == "empty caption"
    assert "no caption" in reasons["d.mp4"]
    assert "there is no such video" in reasons["gone.mp4"]


def test_captions_are_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    for name, encoding in (("ok", "utf-8-sig"), ("utf16", "utf-16"), ("no_mark", "utf-16-le"), ("latin", "latin-1")):
        (tmp_path / f"{name}.mp4").touch()
        (tmp_path / f"{name}.txt").write_text("a café", encoding=encoding)
    listing = list_videos(tmp_path)
    assert listing.videos == [VideoFile("ok.mp4", "a café")]
    assert set(listing.bad_files) == {
        BadFile(f"{name}.mp4", f"{name}.txt is not UTF-8, the encoding expected")
        for name in ("utf16", "no_mark", "latin")
    }
    table = tmp_path / "captions.jsonl"
    table.write_text('{"file": "latin.mp4", "caption": "a café"}', encoding="utf-8-sig")
    assert VideoFile("latin.mp4", "a café") in list_videos(tmp_path).videos
    table.write_text('{"file": "latin.mp4", "caption": "a café"}', encoding="latin-1")
    with pytest.raises(UserError, match=r"captions\.jsonl: not UTF-8"):
        list_videos(tmp_path)


def test_links_are_followed_names_with_a_dot_left_out_and_suffixes_are_of_any_case(tmp_path: Path) -> None:
    folder, disk = tmp_path / "videos", tmp_path / "disk"
    for path in (folder / "._ok.mp4", folder / ".cache" / "x.mp4", folder / "UPPER.MP4", disk / "far.mp4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "UPPER.TXT").write_text("a cat")
    (disk / "far.txt").write_text("a dog")
    (folder / "link").symlink_to(disk)
    (disk / "back").symlink_to(folder)
    assert list_videos(folder) == ([VideoFile("UPPER.MP4", "a cat"), VideoFile("link/far.mp4", "a dog")], [])


def test_the_table_may_name_files_by_their_whole_path(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "link").symlink_to("videos")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "videos" / name).touch()
    rows = [{"file": str(tmp_path / name), "caption": "x"} for name in ("videos/a.mp4", "link/b.mp4")]
    write_captions(tmp_path / "videos", *rows)
    assert list_videos(tmp_path / "videos") == ([VideoFile("a.mp4", "x"), VideoFile("b.mp4", "x")], [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"line 2: '\{oops' is not JSON"),
        ('["a.mp4"]', "line 2: .* is not a JSON object"),
        ('{"file": "a.mp4"}', "line 2: field 'caption' is None"),
        ('{"file": 3, "caption": "x"}', "line 2: field 'file' is 3"),
        ('{"file": "v.mp4", "caption": "y"}', "line 2: file 'v.mp4' is named a second time"),
    ],
)
def test_bad_caption_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "captions.jsonl").write_text('{"file": "v.mp4", "caption": "x"}\n' + line)
    with pytest.raises(UserError, match=message):
        list_videos(tmp_path)


def test_missing_folder_file_and_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, message in (("none", "no such folder"), ("file", "not a folder"), ("empty", "no videos in it")):
        with pytest.raises(UserError, match=message):
            list_videos(tmp_path / name)


def test_probe_names_broken_and_short_files(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=tmp_path)
    add_video(tmp_path, "good.mp4", 20)
    add_video(tmp_path, "short.mp4", 12)
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 999)
    assert probe_video(tmp_path, VideoFile("good.mp4", "x"), config) == 20
    short = probe_video(tmp_path, VideoFile("short.mp4", "x"), config)
    assert short == BadFile("short.mp4", "too short: 12 frames at 8 fps, data.num_frames = 13")
    broken = probe_video(tmp_path, VideoFile("broken.mp4", "x"), config)
    assert isinstance(broken, BadFile)
    assert broken.reason.startswith("cannot be decoded")


def test_windows_render_as_cut(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=tmp_path, height=16, width=16)
    add_video(tmp_path, "a.mp4", 60)
    clips = cut_windows([VideoFile("a.mp4", "x")], [Probed(60, "a")], config).clips
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
    probed = [Probed(13, str(number)) for number in range(100)]
    splits = [clip.split for clip in cut_windows(videos, probed, config).clips]
    assert all(2 <= splits.count(name) <= 3 for name in ("validation", "heldout"))
    assert splits.count("train") >= 94


def test_windows_of_a_video_are_anchored_in_its_first_frame(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=tmp_path, height=16, width=16)
    add_video(tmp_path, "a.mp4", 60)
    clips = cut_windows([VideoFile("a.mp4", "x")], [Probed(60, "a")], config).clips
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


def test_shapes_are_reproducible_and_splits_differ() -> None:
    config = DataConfig.model_validate({"shapes": {"num_train": 5, "num_validation": 5, "num_heldout": 5}})
    clips = sample_shapes(config, seed=1)
    assert clips == sample_shapes(config, seed=1) != sample_shapes(config, seed=2)
    assert len({json.dumps(clip.truth) for clip in clips}) == 15
    assert all(clip.caption == ShapeClip.from_dict(clip.truth or {}).caption for clip in clips)
    again = [Clip.from_dict(json.loads(json.dumps(clip.to_dict()))) for clip in clips]
    np.testing.assert_array_equal(render_chunk(again, config), render_chunk(clips, config))
