"""Clips of several sizes: which size a video takes, and a corpus of them from files to training data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from magic141.data.config import DataConfig
from magic141.data.dataset import ClipDataset
from magic141.data.info import load_info
from magic141.data.shapes import ShapeClip, render_clip
from magic141.data.sizes import Size, nearest_size
from magic141.data.sources.clips import Clip, Probed, cut_windows, make_chunks
from magic141.data.sources.listing import Stamp, VideoFile
from magic141.data.videos.video import write_video
from magic141.errors import UserError
from tests.data.attempts import Here, Killed, run
from tests.data.test_earlier import contents, prepared
from tests.data.test_left_out import DAMAGED, break_clip
from tests.data.test_prepare import MemoryLog

LYING, UPRIGHT, SQUARE = Size(32, 48), Size(48, 32), Size(40, 40)
NUM_EACH = 10


def kept_share(aspect: float, size: Size) -> float:
    """Of a picture's area, after cropping."""
    return min(aspect / size.aspect, size.aspect / aspect)


@pytest.mark.parametrize("aspect", np.geomspace(0.25, 4, 9))
def test_the_nearest_size_keeps_most_of_a_picture(aspect: float) -> None:
    sizes = [LYING, SQUARE, UPRIGHT]
    assert kept_share(aspect, nearest_size(aspect, sizes)) == max(kept_share(aspect, size) for size in sizes)


def test_of_equally_near_sizes_the_first_is_taken() -> None:
    assert nearest_size(1.0, [LYING, UPRIGHT]) == LYING
    assert nearest_size(1.0, [UPRIGHT, LYING]) == UPRIGHT


def config_of(folder: Path, *more_sizes: Size) -> DataConfig:
    return DataConfig(source="folder", path=folder, height=32, width=48, more_sizes=more_sizes, shard_size=4)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[48, 30]], "48x30: expected sides of 8 to 16384 pixels, divisible by the codec's spatial factor 8"),
        ([[48, 0]], "48x0: expected sides of 8 to 16384 pixels"),
        ([[64, 96]], "64x96: of the same shape as 32x48, which videos would take"),
        ([[48, 32], [96, 64]], "96x64: of the same shape as 48x32"),
    ],
)
def test_sizes_that_no_clip_could_have_are_refused(sizes: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({"source": "folder", "path": "v", "height": 32, "width": 48, "more_sizes": sizes})


def test_training_windows_take_the_nearest_size_and_judged_ones_the_main_one() -> None:
    config = config_of(Path("videos"), UPRIGHT)
    videos = [VideoFile(f"{number}.mp4", "x") for number in range(40)]
    probed = [Probed(40, str(number), Stamp(0, 0), 0.6 if number % 2 else 1.5) for number in range(40)]
    clips = cut_windows(videos, probed, config).clips
    for clip in clips:
        upright = clip.split == "train" and int(clip.source.removesuffix(".mp4")) % 2
        assert clip.size(config) == (UPRIGHT if upright else LYING)
        assert Clip.from_dict(json.loads(json.dumps(clip.to_dict()))) == clip
    assert {clip.split for clip in clips} == {"train", "validation", "heldout"}
    assert all(len({clip.size(config) for clip in chunk}) == 1 for chunk in make_chunks(clips, config))


def make_videos(folder: Path) -> Path:
    """Lying and upright videos by turns, each of a shape on a ground of its own."""
    folder.mkdir()
    for number in range(2 * NUM_EACH):
        ground = ((number / 40, 0.2, 0.1),) * 4
        shape = ShapeClip("circle", "red", 6.0, 5.0 * number, 10.0, number % 8, 1.0, True, ground)
        size = UPRIGHT if number % 2 else LYING
        write_video(folder / f"{number:02d}.mp4", render_clip(shape, 17, 2 * size.height, 2 * size.width), fps=8)
        (folder / f"{number:02d}.txt").write_text("a red circle moves")
    return folder


@pytest.mark.slow
def test_a_corpus_of_two_sizes_is_made_kept_and_read(here: Here, tmp_path: Path) -> None:
    config, log = config_of(make_videos(tmp_path / "videos"), UPRIGHT), MemoryLog()
    whole = run(config, tmp_path / "whole", log)
    here.chunks_left = 7
    with pytest.raises(Killed):
        run(config, tmp_path / "killed")
    here.chunks_left = 10**9
    here.clear()
    resumed = run(config, tmp_path / "killed")
    assert contents(resumed) == contents(whole)
    assert len(here.encoded) < sum(load_info(whole).num_clips.values())

    train, heldout = ClipDataset.open(whole, "train"), ClipDataset.open(whole, "heldout")
    assert load_info(whole).more_sizes_found == (UPRIGHT,)
    assert tuple(heldout.pixels.shape[2:4]) == LYING
    assert heldout.by_size.keys() == {LYING}
    for size, rows in train.by_size.items():
        upright = {int(train.sources[row].removesuffix(".mp4")) % 2 for row in rows.tolist()}
        assert upright == ({1} if size == UPRIGHT else {0})
        assert tuple(train.first_frame[rows].shape[1:3]) == size
        assert train.latents[rows].shape[-2:] == train.anchor[rows].shape[-2:] == (size.height // 8, size.width // 8)
        assert log.figures[f"num_train_clips_{size}"] == len(rows)
        assert log.images[f"training_clips_{size}"].ndim == 3
    assert sorted(torch.cat(list(train.by_size.values())).tolist()) == list(range(len(train)))


def test_a_clip_that_cannot_be_read_is_left_out_of_its_own_size(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(make_videos(tmp_path / "videos"), UPRIGHT)
    whole = ClipDataset.open(run(config, tmp_path / "whole"), "train")
    upright = next(row for row in range(len(whole)) if tuple(whole.first_frame[row].shape[:2]) == UPRIGHT)
    break_clip(monkeypatch, whole.sources[upright], 0, DAMAGED)
    train = ClipDataset.open(run(config, tmp_path / "broken"), "train")
    assert len(train) == len(whole) - 1
    assert set(whole.ids) - set(train.ids) == {whole.ids[upright]}


@pytest.mark.slow
def test_a_new_size_costs_the_clips_that_take_it(here: Here, tmp_path: Path) -> None:
    """But for a codec that is fitted on the corpus: it is the same, for it is fitted in the main size."""
    videos = make_videos(tmp_path / "videos")
    one = prepared(config_of(videos), tmp_path / "one")
    here.clear()
    log = MemoryLog()
    prepared(config_of(videos, UPRIGHT, SQUARE), tmp_path / "two", one, log=log)
    assert {clip.more_size for clip in here.encoded} == {UPRIGHT}
    assert not here.probed
    assert "no training video has a shape near to 40x40: the model is not trained on that size" in log.notes


@pytest.mark.slow
def test_pixels_are_those_of_the_video_in_its_own_shape(here: Here, tmp_path: Path) -> None:
    out = run(config_of(make_videos(tmp_path / "videos"), UPRIGHT), tmp_path / "out")
    train = ClipDataset.open(out, "train")
    row = next(row for row, name in enumerate(train.sources) if int(name.removesuffix(".mp4")) % 2)
    number = int(train.sources[row].removesuffix(".mp4"))
    shape = ShapeClip("circle", "red", 6.0, 5.0 * number, 10.0, number % 8, 1.0, True, ((number / 40, 0.2, 0.1),) * 4)
    rendered = render_clip(shape, 1, 96, 64)[0]
    expected = rendered.reshape(48, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(train.first_frame[row].numpy().astype(float) - expected).mean() < 4


def test_the_world_of_shapes_has_one_size() -> None:
    with pytest.raises(ValueError, match="the shapes world has clips of one size"):
        DataConfig(more_sizes=(UPRIGHT,))


def test_a_main_size_without_training_clips_is_refused_before_anything_is_encoded(here: Here, tmp_path: Path) -> None:
    """The model would be judged on what it is not trained on."""
    videos = make_videos(tmp_path / "videos")
    for path in videos.iterdir():
        if int(path.stem) % 2 == 0:
            path.unlink()
    message = (
        r"data\.height x data\.width = 32x48: no training clip has this size.*\(there are \d+ of 48x32\); expected"
    )
    with pytest.raises(UserError, match=message):
        run(config_of(videos, UPRIGHT), tmp_path / "out")
    assert not here.encoded
