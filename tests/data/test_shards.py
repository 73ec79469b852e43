from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from magic141.data import shards
from magic141.data.dataset import ClipDataset, load_null_text
from magic141.data.info import load_info
from magic141.data.shards import ShardWriter
from magic141.data.sizes import Size
from magic141.data.sources.chunks import Group, Place
from magic141.errors import UserError


def tensors_of(start: int, count: int, with_frames: bool) -> dict[str, torch.Tensor]:
    rows = torch.arange(start, start + count)
    tensors = {
        "latents": rows.float().reshape(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4).contiguous(),
        "text_tokens": torch.zeros(count, 4, 8),
        "text_mask": torch.ones(count, 4, dtype=torch.bool),
        "pooled": torch.zeros(count, 8),
        "image_tokens": torch.zeros(count, 2, 8),
        "anchor": torch.zeros(count, 4, 1, 1, 1),
        "anchor_tokens": torch.zeros(count, 2, 8),
        "first_frame": torch.zeros(count, 8, 8, 3, dtype=torch.uint8),
    }
    return {**tensors, "frames": torch.zeros(count, 5, 8, 8, 3, dtype=torch.uint8)} if with_frames else tensors


def row_of(id_: str, start_frame: int = 0, caption: str = "", source: str = "s") -> dict[str, Any]:
    return {
        "id": id_,
        "key": f"key of {id_}",
        "pixels": f"pixels of {id_}",
        "caption": caption,
        "source": source,
        "start_frame": start_frame,
        "truth": None,
    }


def write_corpus(folder: Path) -> None:
    writer = ShardWriter(folder, shard_size=4, stamp="")
    for split in ("train", "heldout"):
        for number, (start, count) in enumerate(((0, 3), (3, 7), (10, 1))):
            rows = [row_of(f"{split}{n}", n, f"c{n}") for n in range(start, start + count)]
            writer.add(Place(number, Group(split), start), rows, tensors_of(start, count, split == "heldout"))
    writer.close()
    assert writer.num_clips == {"train": 11, "heldout": 11}


def test_shards_have_the_asked_size_and_rows_stay_together(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    sizes = [len(load_file(path)["latents"]) for path in sorted((tmp_path / "shards").glob("train-*"))]
    assert sizes == [4, 4, 3]
    for row in map(json.loads, (tmp_path / "manifest.jsonl").read_text().splitlines()):
        latents = load_file(tmp_path / row["shard"])["latents"]
        assert latents[row["row"]].unique().tolist() == [row["start_frame"]]


def test_shards_of_large_clips_have_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter(tmp_path, shard_size=4, stamp="")
    clip = tensors_of(0, 1, with_frames=True)
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 2 * sum(tensor.nbytes for tensor in clip.values()))
    written = []
    for number in range(5):
        row = row_of(str(number), number)
        writer.add(Place(number, Group("heldout"), number), [row], tensors_of(number, 1, with_frames=True))
        written.append(len(list((tmp_path / "shards").iterdir())))
    assert written == [0, 1, 1, 2, 2], "as soon as they are full: a kill loses no more"
    writer.close()
    files = sorted((tmp_path / "shards").iterdir())
    assert [len(load_file(path)["frames"]) for path in files] == [2, 2, 1]
    assert ClipDataset.open(tmp_path, "heldout").latents[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_later_attempt_goes_on_behind_a_clip_that_was_left_out(tmp_path: Path) -> None:
    rows = [row_of(str(n), n) for n in range(4)]
    rows[1] = {"source": "s", "start_frame": 1, "reason": "damaged"}
    tensors = {name: tensor[[0, 2, 3]] for name, tensor in tensors_of(0, 4, with_frames=False).items()}
    for _ in range(2):  # the first is killed with its last clip in memory, behind a shard of two
        writer = ShardWriter(tmp_path, shard_size=2, stamp="")
        writer.add(Place(0, Group("train"), 0), rows, tensors)
    writer.add(Place(1, Group("heldout"), 0), [rows[1]], {})
    writer.close()
    sizes = [len(load_file(path)["latents"]) for path in sorted((tmp_path / "shards").iterdir())]
    assert sizes == [2, 1]
    assert ClipDataset.open(tmp_path, "train").latents[:, 0, 0, 0, 0].tolist() == [0, 2, 3]
    assert writer.left_out == [rows[1]] * 2, "also where no clip of a split is left"


@pytest.mark.parametrize("lost", ["records/train-00000.json", "shards/train-00000.safetensors"])
def test_shards_behind_a_lost_one_are_dropped(tmp_path: Path, lost: str) -> None:
    """Counted from the start of their split, their clips would be taken for others."""
    write_corpus(tmp_path)
    (tmp_path / lost).unlink()
    assert ShardWriter(tmp_path, shard_size=4, stamp="").num_clips == {"heldout": 11}
    assert not list((tmp_path / "shards").glob("train-*"))


def test_clips_of_another_size_have_shards_of_their_own(tmp_path: Path) -> None:
    wide, tall = Group("train"), Group("train", Size(16, 8))
    starts = dict.fromkeys((wide, tall), 0)
    for _ in range(2):  # killed with what is left in memory, then from the start
        writer = ShardWriter(tmp_path, shard_size=2, stamp="", groups=(wide, tall, Group("heldout")))
        for number, group in enumerate((tall, wide, wide, tall, wide)):
            place = Place(number, group, starts[group])
            tensors = tensors_of(10 * number, 1, with_frames=False)
            latents = tensors["latents"] if group == wide else tensors["latents"].repeat(1, 1, 1, 2, 1)
            if not writer.is_kept(place, 1):
                writer.add(place, [row_of(str(number), number)], {**tensors, "latents": latents})
            starts[group] += 1
        starts = dict.fromkeys(starts, 0)
    writer.close()
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        "train-00000.safetensors",
        "train-00001.safetensors",
        "train_16x8-00000.safetensors",
    ]
    assert writer.num_clips == {"train": 5}
    train = ClipDataset.open(tmp_path, "train")
    assert train.ids == ["1", "2", "0", "3", "4"]
    assert [train.latents[row, 0, 0, 0, 0].item() for row in range(5)] == [10, 20, 0, 30, 40]
    assert [rows.tolist() for rows in train.latents.by_shape()] == [[0, 1, 4], [2, 3]]


def test_dataset_opens_one_split_in_order(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    train, heldout = (ClipDataset.open(tmp_path, split) for split in ("train", "heldout"))
    assert len(train) == 11
    assert train.frames is None
    assert heldout.frames is not None
    assert heldout.frames.shape == (11, 5, 8, 8, 3)
    assert train.latents[:, 0, 0, 0, 0].tolist() == list(range(11))
    assert train.ids == [f"train{n}" for n in range(11)]
    assert heldout.captions[3] == "c3"
    assert len(train.text([3, 8])) == 2
    assert train.truths == [None] * 11


def test_signs_that_end_lines_elsewhere_may_be_in_names_and_captions(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, shard_size=4, stamp="")
    texts = ["a\u2028b", "a\x85b", "a\x0cb", "é"]
    rows = [
        {"id": text, "caption": text, "source": text, "start_frame": 0, "truth": None, "key": "k"} for text in texts
    ]
    writer.add(Place(0, Group("train"), 0), rows, tensors_of(0, 4, with_frames=False))
    writer.close()
    train = ClipDataset.open(tmp_path, "train")
    assert train.captions == train.sources == texts


def test_opening_a_split_reads_no_clip(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, shard_size=32, stamp="")
    rows = [
        {"id": str(n), "caption": "", "source": "s", "start_frame": 0, "truth": None, "key": "k"} for n in range(64)
    ]
    frames = torch.ones(64, 1024, 1024, dtype=torch.uint8)
    writer.add(Place(0, Group("train"), 0), rows, {**tensors_of(0, 64, with_frames=False), "frames": frames})
    writer.close()
    del writer, frames
    before = resident_mb()
    clips = ClipDataset.open(tmp_path, "train")
    assert clips.frames is not None
    assert int(clips.frames[[0, 40, 63]].sum()) == 3 * 1024**2
    assert resident_mb() - before < 32, "64 clips of 1 MB each, of which three were needed"
    whole = clips.frames[:]
    assert resident_mb() - before >= 64, "or the test shows nothing"
    assert whole.shape == (64, 1024, 1024)


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


def test_missing_parts_are_user_errors(tmp_path: Path) -> None:
    for read in (load_info, load_null_text, lambda folder: ClipDataset.open(folder, "train")):
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path)
    write_corpus(tmp_path)
    with pytest.raises(UserError, match="no clips of split 'validation'"):
        ClipDataset.open(tmp_path, "validation")


def test_rows_in_turns_show_many_videos_first(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, shard_size=8, stamp="")
    for number, source in enumerate("aaabbc"):
        row = row_of(str(number), number, source=source)
        writer.add(Place(number, Group("heldout"), number), [row], tensors_of(number, 1, with_frames=True))
    writer.close()
    heldout = ClipDataset.open(tmp_path, "heldout")
    assert heldout.in_turns(range(6)) == [1, 4, 5, 0, 3, 2]
    assert heldout.in_turns([1, 2, 4]) == [2, 4, 1]


def test_the_first_of_the_rows_in_turns_are_of_all_parts_of_a_video(tmp_path: Path) -> None:
    """Otherwise a few clips of long videos would all be their openings."""
    writer = ShardWriter(tmp_path, shard_size=200, stamp="")
    for number in range(200):
        row = row_of(str(number), number, source="long")
        writer.add(Place(number, Group("heldout"), number), [row], tensors_of(number, 1, with_frames=True))
    writer.close()
    rows = ClipDataset.open(tmp_path, "heldout").in_turns(range(200))
    assert sorted(rows) == list(range(200))
    for num in (5, 8, 30):
        ends = [0, *sorted(rows[:num]), 199]
        assert max(later - earlier for earlier, later in pairwise(ends)) < 2.7 * 200 / num


def test_clips_that_are_videos_of_their_own_keep_their_order(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, shard_size=8, stamp="")
    for number in range(4):
        row = {
            "id": str(number),
            "caption": "",
            "source": "shapes",
            "start_frame": 0,
            "truth": {"colour": "red"},
            "key": "k",
        }
        writer.add(Place(number, Group("heldout"), number), [row], tensors_of(number, 1, with_frames=True))
    writer.close()
    assert ClipDataset.open(tmp_path, "heldout").in_turns([0, 3, 1]) == [0, 3, 1]
