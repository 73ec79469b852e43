"""Clips that cannot be read or encoded are left out and named, or end the stage; a disk that fails is neither."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from magic141.artifacts.digests import digest_folder
from magic141.data import workers
from magic141.data.config import DataConfig
from magic141.data.dataset import ClipDataset
from magic141.data.encoding import clip_id
from magic141.data.info import load_info
from magic141.data.sources.clips import Clip, render_chunk
from magic141.data.videos.decoding import BadVideo, StorageError
from magic141.errors import UserError
from magic141.models.vae import VideoCodec
from tests.data.attempts import Here, Killed, make_folder, run
from tests.data.test_prepare import MemoryLog


def break_clip(monkeypatch: pytest.MonkeyPatch, file: str, start: int, error: Exception) -> None:
    """Reading a chunk with this clip raises."""

    def render(chunk: Sequence[Clip], config: DataConfig) -> Any:
        if any((clip.source, clip.start_frame) == (file, start) for clip in chunk):
            raise error
        return render_chunk(chunk, config)

    monkeypatch.setattr(workers, "render_chunk", render)


DAMAGED = BadVideo(Path("1.mp4"), "cannot be decoded (Invalid data)")


def test_a_clip_that_cannot_be_read_is_left_out_and_its_file_named(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_folder(tmp_path / "videos", 3)
    whole = run(config, tmp_path / "whole")
    break_clip(monkeypatch, "1.mp4", 4, DAMAGED)
    log = MemoryLog()
    out = run(config, tmp_path / "skipped", log)
    (bad,) = load_info(out).bad_files
    assert (bad.file, bad.reason) == ("1.mp4", "1 of its clips left out: cannot be decoded (Invalid data)")
    assert f"1.mp4: {bad.reason}" in log.notes
    before, after = ({(row["source"], row["start_frame"]) for row in manifest(folder)} for folder in (whole, out))
    assert before - after == {("1.mp4", 4)}
    for split in ("train", "validation", "heldout"):
        clips = ClipDataset.open(out, split)
        assert len(clips) == len(clips.latents) == load_info(out).num_clips[split]
    here.chunks_left = 5
    with pytest.raises(Killed):
        run(config, tmp_path / "killed")
    here.chunks_left = 10**9
    assert digest_folder(run(config, tmp_path / "killed")) == digest_folder(out)


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_with_fail_a_clip_that_cannot_be_read_ends_the_stage_and_finished_shards_stay(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_folder(tmp_path / "videos", 3).model_copy(update={"on_bad_file": "fail"})
    break_clip(monkeypatch, "2.mp4", 0, DAMAGED)
    with pytest.raises(UserError, match=r"data\.path = .*videos: 2\.mp4: cannot be decoded \(Invalid data\); repair"):
        run(config, tmp_path)
    assert list((tmp_path / "run" / "shards").iterdir())


def test_a_clip_that_overflows_is_left_out_and_its_file_named(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_folder(tmp_path / "videos", 3)
    whole = run(config, tmp_path / "whole")
    lost = {row["id"] for row in manifest(whole) if (row["source"], row["start_frame"]) == ("1.mp4", 4)}
    encode = VideoCodec.encode_video

    def overflowing(codec: VideoCodec, pixels: torch.Tensor) -> torch.Tensor:
        is_lost = [clip_id(workers.digest_pixels(clip.numpy()), "noise") in lost for clip in pixels]
        return encode(codec, pixels).masked_fill(torch.tensor(is_lost)[:, None, None, None, None], float("nan"))

    monkeypatch.setattr(VideoCodec, "encode_video", overflowing)
    out = run(config, tmp_path / "skipped")
    reason = "encoded to numbers that are not finite (latents)"
    (bad,) = load_info(out).bad_files
    assert (bad.file, bad.reason) == ("1.mp4", f"1 of its clips left out: {reason}")
    assert {row["id"] for row in manifest(whole)} - {row["id"] for row in manifest(out)} == lost
    with pytest.raises(UserError, match=rf"data\.path = .*videos: 1\.mp4: {re.escape(reason)}; repair"):
        run(config.model_copy(update={"on_bad_file": "fail"}), tmp_path / "failing")


def test_a_disk_that_does_not_answer_is_no_bad_file(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_folder(tmp_path / "videos", 3)
    with monkeypatch.context() as patch:
        break_clip(patch, "2.mp4", 0, StorageError("Input/output error"))
        with pytest.raises(OSError, match="Input/output error"):
            run(config, tmp_path)
    assert load_info(run(config, tmp_path)).bad_files == ()
