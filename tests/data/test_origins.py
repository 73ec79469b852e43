"""What a corpus was made of: keys of clips that are encoded alike, and the record of a finished corpus."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magic141.data.config import DataConfig
from magic141.data.info import ORIGINS_FILE
from magic141.data.kept import write_record
from magic141.data.origins import (
    ClipKeys,
    ClipOrigin,
    Origins,
    probing_key,
    read_origins,
    write_origins,
)
from magic141.data.sources.clips import Clip, Probed
from magic141.data.sources.listing import Stamp, stamp_file

VIDEO = Probed(40, "digest", Stamp(3, 7), 1.5)
CLIP = Clip("train", "a.mp4", 4, "a cat", anchor_frame=-4)
KEY_OF = ClipKeys(DataConfig(), "code", "models", {"a.mp4": VIDEO})


@pytest.mark.parametrize(
    "change",
    [
        {"code": "other"},
        {"models": "other"},
        {"videos": {"a.mp4": VIDEO._replace(digest="other")}},
        {"config": DataConfig(num_gpus_per_worker=0.5)},  # in half precision
        *({"config": DataConfig.model_validate(frames)} for frames in ({"fps": 9}, {"num_frames": 17})),
        *({"config": DataConfig.model_validate(frames)} for frames in ({"height": 64}, {"width": 64})),
    ],
)
def test_a_clip_that_is_made_in_another_way_has_another_key(change: dict[str, Any]) -> None:
    assert replace(KEY_OF, **change)(CLIP) != KEY_OF(CLIP)


@pytest.mark.parametrize("change", [{"start_frame": 5}, {"anchor_frame": 0}, {"truth": {"colour": "red"}}])
def test_another_clip_of_the_same_video_has_another_key(change: dict[str, Any]) -> None:
    assert KEY_OF(replace(CLIP, **change)) != KEY_OF(CLIP)


def test_a_clip_of_no_video_is_known_by_what_it_shows() -> None:
    keys = [replace(KEY_OF, videos={})(replace(CLIP, truth={"colour": colour})) for colour in ("red", "blue")]
    assert len(set(keys)) == 2


def test_name_caption_and_split_do_not_change_the_key() -> None:
    elsewhere = replace(KEY_OF, videos={"b.mp4": VIDEO})
    assert elsewhere(replace(CLIP, source="b.mp4", caption="a dog", split="heldout")) == KEY_OF(CLIP)


def test_a_record_is_read_as_it_was_written_and_by_no_other_version(tmp_path: Path) -> None:
    key_of = replace(KEY_OF, config=DataConfig(source="folder", path=tmp_path))
    write_origins(tmp_path, key_of, [{"id": "a", "key": "k", "pixels": "p", "caption": "a cat"}])
    origins = Origins(probing_key(key_of.config, "code"), str(tmp_path), {}, {"a": ClipOrigin("k", "p")})
    assert read_origins(tmp_path) == origins
    assert read_origins(tmp_path / "elsewhere") is None
    older = origins._asdict()
    del older["clips"]
    for other in (older, {**origins._asdict(), "clips": 3}, ["probing"]):
        write_record(tmp_path / ORIGINS_FILE, other)
        assert read_origins(tmp_path) is None


def test_a_video_that_changed_since_it_was_probed_is_not_recorded(tmp_path: Path) -> None:
    file, config = tmp_path / "a.mp4", DataConfig(source="folder", path=tmp_path)
    file.write_bytes(b"123")
    key_of = replace(KEY_OF, config=config, videos={"a.mp4": VIDEO._replace(stamp=stamp_file(file))})
    write_origins(tmp_path, key_of, [])
    record = read_origins(tmp_path)
    assert (record and record.videos, key_of.hold_for("a.mp4"), key_of.hold_for("shapes")) == (
        key_of.videos,
        True,
        True,
    )
    file.write_bytes(b"1234")
    write_origins(tmp_path, key_of, [])
    record = read_origins(tmp_path)
    assert (record and record.videos, key_of.hold_for("a.mp4")) == ({}, False)


def test_a_file_that_is_gone_has_a_stamp_that_no_file_has(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"123")
    os.utime(file, ns=(5, 7))
    assert stamp_file(file) == Stamp(3, 7)
    assert stamp_file(tmp_path / "gone.mp4") == Stamp(-1, -1)
