"""A corpus that has grown costs what is new in it, and has the bytes of one made from nothing in the same chunks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from magic141.artifacts.digests import digest_file, digest_folder
from magic141.artifacts.publication import publish_by_content
from magic141.data import prepare
from magic141.data.config import DataConfig
from magic141.data.dataset import MANIFEST_FILE
from magic141.data.earlier import Earlier, known_videos, probe_records
from magic141.data.fitted import Fitted, fit_models
from magic141.data.info import ORIGINS_FILE, load_info
from magic141.data.kept import read_record, write_record
from magic141.data.origins import probing_key
from magic141.data.sources.clips import Probed
from magic141.data.sources.listing import VideoFile, stamp_file
from magic141.data.videos.video import write_video
from magic141.models.config import HUNYUAN_SIZES
from magic141.models.encoders import Encoders
from magic141.models.text_embedding import TextEmbedding
from magic141.text_files import read_json_lines
from tests.data.attempts import Here, Killed, run
from tests.data.made import encode
from tests.data.test_prepare import MemoryLog
from tests.files_read import files_read
from tests.models.tiny import tiny_checkpoint, tiny_vae

NUM_VIDEOS = 24  # whole ones are held out
CODE = "code"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("hunyuan"), ["noise of number"])
    tiny_vae(HUNYUAN_SIZES.channels).save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def config(tmp_path: Path, checkpoint: Path) -> DataConfig:
    """Videos of two windows each, encoded by models that no corpus changes."""
    for number in range(NUM_VIDEOS):
        add_video(tmp_path / "videos", number)
    models = {"kind": "hunyuan", "path": str(checkpoint)}
    values = {"source": "folder", "path": tmp_path / "videos", "num_frames": 9, "shard_size": 5, "cut_score": None}
    return DataConfig.model_validate({**values, "codec": models, "encoder": models})


def add_video(folder: Path, number: int, caption: str = "noise") -> None:
    frames = np.random.default_rng(number).integers(0, 255, (13, 32, 32, 3), np.uint8)
    folder.mkdir(exist_ok=True)
    encode(folder / f"{number}.mp4", frames, 8, codec="png", pix_fmt="rgb24")  # by its bytes it is held out or not
    (folder / f"{number}.txt").write_text(caption)


def prepared(config: DataConfig, folder: Path, *earlier: Path, code: str = CODE, log: MemoryLog | None = None) -> Path:
    """The published artifact of one preparation."""
    out = run(config, folder, log, Earlier(earlier, code))
    return publish_by_content(out, folder / "artifact", {ORIGINS_FILE}).path


def contents(folder: Path) -> str:
    return digest_folder(folder, {ORIGINS_FILE})


def latents_of(folder: Path) -> dict[str, torch.Tensor]:
    shards = {file: load_file(file) for file in (folder / "shards").iterdir()}
    rows = read_json_lines(folder / MANIFEST_FILE)
    return {row["id"]: shards[folder / row["shard"]]["latents"][row["row"]] for row in rows}


def held_out(folder: Path) -> set[str]:
    return {row["source"] for row in read_json_lines(folder / MANIFEST_FILE) if row["split"] == "heldout"}


def test_only_new_videos_are_decoded_and_encoded(here: Here, tmp_path: Path, config: DataConfig) -> None:
    before = prepared(config, tmp_path / "before")
    assert len(here.probed) == NUM_VIDEOS
    add_video(tmp_path / "videos", 100)
    for suffix in (".mp4", ".txt"):
        (tmp_path / "videos" / f"4{suffix}").rename(tmp_path / "videos" / f"renamed{suffix}")
    from_nothing = prepared(config, tmp_path / "nothing")
    here.clear()
    log = MemoryLog()
    grown = prepared(config, tmp_path / "grown", before, log=log)
    assert here.probed == ["100.mp4"]
    assert {clip.source for clip in here.encoded} == {"100.mp4"}
    assert contents(grown) == contents(from_nothing)
    assert {row["source"] for row in read_json_lines(grown / MANIFEST_FILE)} >= {"renamed.mp4", "100.mp4"}
    copied = (
        f"{2 * NUM_VIDEOS} of {2 * NUM_VIDEOS + 2} clips are copied from an earlier corpus, which encoded them alike"
    )
    assert copied in log.notes


@pytest.mark.parametrize("is_large", [False, True])
def test_of_a_large_corpus_only_files_are_read_that_may_have_changed(
    here: Here, tmp_path: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    before = prepared(config, tmp_path / "before")
    (tmp_path / "videos" / "5.mp4").touch()
    (tmp_path / "videos" / "7.mp4").write_bytes(b"broken")
    read = files_read(monkeypatch, "magic141.data.earlier")
    monkeypatch.setattr("magic141.data.earlier.ALWAYS_READ_BYTES", 0 if is_large else 2**30)
    here.clear()
    after = prepared(config, tmp_path / "after", before)
    assert len(read) == (1 if is_large else NUM_VIDEOS - 1), "nothing of the size of the broken one was prepared"
    assert "5.mp4" in read
    assert (here.probed, here.encoded) == (["7.mp4"], [])
    assert [bad.file for bad in load_info(after).bad_files] == ["7.mp4"]


def test_of_new_captions_only_the_text_is_encoded(here: Here, tmp_path: Path, config: DataConfig) -> None:
    before = prepared(config, tmp_path / "before")
    for number in (3, 5):
        (tmp_path / "videos" / f"{number}.txt").write_text("number of noise")
    from_nothing = prepared(config, tmp_path / "nothing")
    here.clear()
    log = MemoryLog()
    after = prepared(config, tmp_path / "after", before, log=log)
    assert (here.probed, {clip.source for clip in here.encoded}) == ([], set())
    assert {clip.source for clip in here.captioned} == {"3.mp4", "5.mp4"}
    assert contents(after) == contents(from_nothing) != contents(before)
    assert log.notes[-1].endswith("encoded them alike, 4 of them with new captions")


def test_the_newest_record_of_a_file_counts_and_that_of_another_folder_does_not(
    here: Here, tmp_path: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magic141.data.earlier.ALWAYS_READ_BYTES", 0)
    before = prepared(config, tmp_path / "before")
    for video in (tmp_path / "videos").glob("*.mp4"):
        video.touch()
    newer = prepared(config, tmp_path / "newer", before)
    moved = config.model_copy(update={"path": shutil.copytree(tmp_path / "videos", tmp_path / "moved")})
    here.clear()
    read = files_read(monkeypatch, "magic141.data.earlier")
    prepared(moved, tmp_path / "same", newer, before)
    assert len(read) == NUM_VIDEOS
    assert (here.probed, here.encoded) == ([], []), "read once more, and known by its content"
    monkeypatch.setattr("magic141.data.earlier.digest_file", lambda path: pytest.fail(f"{path} was read"))
    prepared(config, tmp_path / "again", newer, before)


def test_a_caption_that_is_put_back_and_a_video_held_out_again_are_found_in_older_corpora(
    here: Here, tmp_path: Path, config: DataConfig
) -> None:
    wider = config.model_copy(update={"heldout_fraction": 0.3})
    oldest = prepared(wider, tmp_path / "oldest")
    for number in range(NUM_VIDEOS):
        (tmp_path / "videos" / f"{number}.txt").write_text("number")
    newer = prepared(config, tmp_path / "newer", oldest)
    for number in range(NUM_VIDEOS):
        (tmp_path / "videos" / f"{number}.txt").write_text("noise")
    here.clear()
    assert contents(prepared(wider, tmp_path / "again", newer, oldest)) == contents(oldest)
    assert (here.encoded, here.captioned) == ([], [])


def test_a_video_that_was_replaced_while_it_was_encoded_is_not_copied_later(
    here: Here, tmp_path: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "videos" / "3.mp4"
    original = video.read_bytes()

    def replacing(*args: Any) -> Fitted:
        write_video(video, np.random.default_rng(99).integers(0, 255, (13, 32, 32, 3), np.uint8), fps=8)
        return fit_models(*args)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "fit_models", replacing)
        before = prepared(config, tmp_path / "before")
    video.write_bytes(original)
    from_nothing = prepared(config, tmp_path / "nothing")
    here.clear()
    assert contents(prepared(config, tmp_path / "after", before)) == contents(from_nothing)
    assert {clip.source for clip in here.encoded} == {"3.mp4"}


@pytest.mark.parametrize(
    "change",
    [
        lambda origins: {**origins, "clips": {}},
        lambda origins: {**origins, "clips": 3},
        lambda origins: [origins],
    ],
)
def test_records_of_another_version_do_no_harm(
    here: Here, tmp_path: Path, config: DataConfig, change: Callable[[Any], Any]
) -> None:
    before = prepared(config, tmp_path / "before")
    write_record(before / ORIGINS_FILE, change(read_record(before / ORIGINS_FILE)))
    unfinished = tmp_path / "before" / "run"
    write_record(next((unfinished / "records").iterdir()), {"rows": []})
    assert contents(prepared(config, tmp_path / "after", before, unfinished)) == contents(before)


def test_a_new_caption_that_overflows_leaves_its_clip_out(
    here: Here, tmp_path: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared(config, tmp_path / "before")
    (tmp_path / "videos" / "3.txt").write_text("number")
    encode = Encoders.encode_text

    def overflowing(encoders: Encoders, prompts: Sequence[str]) -> TextEmbedding:
        text = encode(encoders, prompts)
        return replace(text, pooled=text.pooled / 0) if prompts[0] == "number" else text

    monkeypatch.setattr(Encoders, "encode_text", overflowing)
    after = prepared(config, tmp_path / "after", before)
    assert load_info(after).bad_files[0].file == "3.mp4"
    ids = {row["id"] for row in read_json_lines(before / MANIFEST_FILE) if row["source"] != "3.mp4"}
    assert {row["id"] for row in read_json_lines(after / MANIFEST_FILE)} == ids
    tensors = {id_: clip for id_, clip in latents_of(before).items() if id_ in ids}
    assert all(torch.equal(clip, tensors[id_]) for id_, clip in latents_of(after).items())


def test_only_videos_that_are_held_out_now_are_encoded_again_for_their_pixels(
    here: Here, tmp_path: Path, config: DataConfig
) -> None:
    before = prepared(config, tmp_path / "before")
    wider = config.model_copy(update={"heldout_fraction": 0.3})
    from_nothing = prepared(wider, tmp_path / "nothing")
    was_held_out, is_held_out = (held_out(folder) for folder in (before, from_nothing))
    assert was_held_out < is_held_out
    here.clear()
    assert contents(prepared(wider, tmp_path / "after", before)) == contents(from_nothing)
    assert {clip.source for clip in here.encoded} == is_held_out - was_held_out
    assert contents(prepared(config, tmp_path / "back", from_nothing)) == contents(before)


@pytest.mark.parametrize("change", ["code", "height", "fps", "models"])
def test_what_was_made_in_another_way_is_made_again(
    here: Here, tmp_path: Path, config: DataConfig, checkpoint: Path, change: str
) -> None:
    before = prepared(config, tmp_path / "before", code="older" if change == "code" else CODE)
    num_probed, num_encoded = len(here.probed), len(here.encoded)
    if change == "models":
        other = shutil.copytree(checkpoint, tmp_path / "other")
        weights = other / "vae" / "config.json"
        weights.write_text(weights.read_text().replace("0.476986", "0.5"))
        config = config.model_copy(update={"codec": config.codec.model_copy(update={"path": str(other)})})
    changes: dict[str, dict[str, float]] = {"height": {"height": 40}, "fps": {"fps": 9.0}}
    config = config.model_copy(update=changes.get(change, {}))
    prepared(config, tmp_path / "after", before)
    assert len(here.encoded) > num_encoded + NUM_VIDEOS, "all"
    probed_again = {"code": NUM_VIDEOS, "fps": NUM_VIDEOS, "height": 0, "models": 0}
    assert len(here.probed) == num_probed + probed_again[change]


def test_videos_that_are_too_short_now_are_judged_by_their_frames(
    here: Here, tmp_path: Path, config: DataConfig
) -> None:
    before = prepared(config, tmp_path / "before")
    add_video(tmp_path / "videos", 100)
    write_video(tmp_path / "videos" / "100.mp4", np.zeros((40, 32, 32, 3), np.uint8), fps=8)
    log = MemoryLog()
    prepared(config.model_copy(update={"num_frames": 17}), tmp_path / "after", before, log=log)
    assert sum("too short: 13 frames" in note for note in log.notes) == NUM_VIDEOS


def test_an_altered_artifact_gives_nothing(here: Here, tmp_path: Path, config: DataConfig) -> None:
    before = prepared(config, tmp_path / "before")
    shard = next((before / "shards").glob("train-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()  # a link, of the run_dir too
    shard.write_bytes(content)
    here.clear()
    again = prepared(config, tmp_path / "again", before)
    assert len(here.encoded) == 2 * NUM_VIDEOS
    assert contents(again) != contents(before)


def test_finished_shards_of_an_interrupted_preparation_count_though_the_folder_changed(
    here: Here, tmp_path: Path, config: DataConfig
) -> None:
    here.chunks_left = 12
    with pytest.raises(Killed):
        prepared(config, tmp_path / "before")
    shards = list((tmp_path / "before" / "run" / "shards").iterdir())
    assert len(shards) >= 2
    shards[0].write_bytes(b"torn")
    here.chunks_left = 10**9
    add_video(tmp_path / "videos", 100)
    from_nothing = prepared(config, tmp_path / "nothing")
    here.clear()
    grown = prepared(config, tmp_path / "grown", tmp_path / "before" / "run", tmp_path / "gone")
    assert here.probed == ["100.mp4"]
    num_kept = 5 * (len(shards) - 1)
    assert 0 <= len(here.encoded) - (2 * (NUM_VIDEOS + 1) - num_kept) <= len(shards), "a chunk may end behind a shard"
    assert contents(grown) == contents(from_nothing)


def test_bad_videos_of_an_interrupted_preparation_and_those_that_cannot_be_read_now_are_left_to_probing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run_dir = DataConfig(source="folder", path=tmp_path), tmp_path / "run"
    files = ("good.mp4", "lost.mp4", "bad.mp4")
    records = probe_records(run_dir, probing_key(config, CODE))
    for file in files:
        path = tmp_path / file
        path.write_text(file)
        known = list(Probed(config.num_frames, digest_file(path), stamp_file(path), 1.0))
        records.add(file, known if file != "bad.mp4" else "damaged")
    records.settle()

    def digest(path: Path) -> str:
        if path.name == "lost.mp4":
            raise OSError
        return digest_file(path)

    monkeypatch.setattr("magic141.data.earlier.digest_file", digest)
    videos = [VideoFile(file, "") for file in files]
    found = known_videos(Earlier((run_dir,), CODE), tmp_path, videos, config)
    assert [video.file for video, _ in found] == ["good.mp4"]
    for code, fps in (("newer", config.fps), (CODE, config.fps + 1)):
        other = config.model_copy(update={"fps": fps})
        assert not list(known_videos(Earlier((run_dir,), code), tmp_path, videos, other)), "probed in another way"


def test_where_encoders_are_fitted_to_the_corpus_everything_is_encoded_anew(
    here: Here, tmp_path: Path, config: DataConfig
) -> None:
    fitted = DataConfig.model_validate(
        {**config.model_dump(exclude={"codec", "encoder"}), "codec": {"num_channels": 8}}
    )
    before = prepared(fitted, tmp_path / "before")
    add_video(tmp_path / "videos", 105)  # which trains
    here.clear()
    prepared(fitted, tmp_path / "grown", before)
    assert len(here.encoded) == 2 * (NUM_VIDEOS + 1)
