"""Clips that are known from earlier shards: which chunks, and which rows of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from safetensors import SafetensorError

from magic141.data.earlier import Earlier, KnownClips, stacked
from magic141.data.shards import ShardWriter
from magic141.data.sources.chunks import Chunk, Group, Place
from magic141.data.sources.clips import Clip
from tests.data.test_shards import row_of, tensors_of, write_corpus


def chunk_of(clips: list[Clip]) -> Chunk:
    return Chunk(Place(0, Group(clips[0].split), 0), clips)


def test_a_chunk_is_known_if_all_of_its_clips_are_with_what_its_split_needs(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    keys = [f"key of train{number}" for number in (3, 4, 99)]
    clips = [Clip("train", "s", number, f"c{number}") for number in (3, 4, 99)]
    known = KnownClips(Earlier((tmp_path,)), list(zip(clips, keys, strict=True)))
    found = known.look_up(chunk_of(clips[:2]), keys[:2])
    assert found is not None
    assert [(clip.caption, clip.pixels) for clip in found] == [(f"c{n}", f"pixels of train{n}") for n in (3, 4)]
    assert stacked(found, "train")["latents"][:, 0, 0, 0, 0].tolist() == [3, 4]
    assert known.look_up(chunk_of(clips), keys) is None
    judged = [replace(clip, split="heldout") for clip in clips[:2]]
    assert known.look_up(chunk_of(judged), keys[:2]) is None, "training clips have no pixels"


def test_a_clip_is_known_by_its_own_row_of_a_shard_behind_one_that_was_left_out(tmp_path: Path) -> None:
    left_out = {"source": "s", "start_frame": 0, "reason": "damaged"}
    writer = ShardWriter(tmp_path, shard_size=2, stamp="")
    writer.add(
        Place(0, Group("train"), 0), [left_out, row_of("a", 1), row_of("b", 2)], tensors_of(1, 2, with_frames=False)
    )
    clips, keys = [Clip("train", "s", number, "") for number in (1, 2)], ["key of a", "key of b"]
    found = KnownClips(Earlier((tmp_path,)), list(zip(clips, keys, strict=True))).look_up(chunk_of(clips), keys)
    assert found is not None
    assert stacked(found, "train")["latents"][:, 0, 0, 0, 0].tolist() == [1, 2]


def test_a_held_out_clip_is_looked_for_behind_one_without_pixels_and_serves_as_a_training_clip_too(
    tmp_path: Path,
) -> None:
    folders = {split: tmp_path / split for split in ("train", "heldout")}
    for split, folder in folders.items():
        folder.mkdir()
        writer = ShardWriter(folder, shard_size=1, stamp="")
        writer.add(Place(0, Group(split), 0), [row_of("a")], tensors_of(0, 1, with_frames=split == "heldout"))
    for split, places in (("heldout", tuple(folders.values())), ("train", (folders["heldout"],))):
        clip, key = Clip(split, "s", 0, ""), "key of a"
        found = KnownClips(Earlier(places), [(clip, key)]).look_up(chunk_of([clip]), [key])
        assert found is not None
        assert ("frames" in stacked(found, split)) == (split == "heldout")


@pytest.mark.parametrize("error", [PermissionError(), SafetensorError()])
def test_an_earlier_folder_that_cannot_be_read_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is another user's, or was removed just now."""
    write_corpus(tmp_path)
    monkeypatch.setattr("magic141.data.earlier.load_file", Mock(side_effect=error))
    clip = Clip("train", "s", 3, "c3")
    assert (
        KnownClips(Earlier((tmp_path,)), [(clip, "key of train3")]).look_up(chunk_of([clip]), ["key of train3"]) is None
    )
