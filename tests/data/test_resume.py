"""What was finished before a kill is not made again, and nothing shows in the result that there was one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError
from safetensors.torch import load_file

from magic141.artifacts.digests import digest_folder
from magic141.artifacts.fingerprint import CodeStamp
from magic141.data import fitted, prepare, workers
from magic141.data.config import DataConfig
from magic141.data.dataset import ClipDataset
from magic141.data.info import load_info
from magic141.data.kept import ProbeRecords, read_record, write_record
from magic141.data.prepare import MAX_LOSSES, prepare_dataset
from magic141.data.sources.chunks import Chunk
from magic141.data.sources.clips import Clip, render_chunk
from magic141.data.sources.listing import VideoFile
from magic141.data.videos.decoding import BadVideo, StorageError
from magic141.data.videos.video import write_video
from magic141.data.workers import Encode, Probe, Render
from magic141.errors import UserError
from magic141.models.encoders import Encoders
from magic141.models.text_embedding import TextEmbedding
from magic141.models.vae import VideoCodec
from tests.data.test_prepare import MemoryLog

CODE = CodeStamp(())
CONFIG = DataConfig.model_validate(
    {"shapes": {"num_train": 23, "num_validation": 3, "num_heldout": 5}, "shard_size": 4, "codec": {"num_channels": 8}}
)


class Killed(BaseException):
    """As Ctrl-C."""


class Here:
    """Probes and encodes in this process as Ray's workers do, and is killed after some chunks."""

    def __init__(self) -> None:
        self.chunks_left = 10**9
        self.killer: type[BaseException] = Killed
        self.encoded: list[Clip] = []
        self.probed: list[str] = []

    def encode(self, chunks: Sequence[Chunk], config: DataConfig, models: Path) -> Iterator[dict[str, Any]]:
        encode = Encode(models, use_gpu=False, code=CODE)
        for chunk in chunks:
            if not self.chunks_left:
                raise self.killer
            self.chunks_left -= 1
            self.encoded += chunk.clips
            yield encode(Render(config, CODE)({"number": chunk.place.number, "clips": chunk.json}))

    def probe(self, folder: Path, videos: Sequence[VideoFile], config: DataConfig) -> Iterator[dict[str, Any]]:
        for video in videos:
            self.probed.append(video.file)
            yield Probe(folder, config, CODE)(video._asdict())


def without_ray(patch: pytest.MonkeyPatch) -> Here:
    """Work in this process, on chunks of three clips, so that shards of four end inside of them."""
    here = Here()
    torch.set_num_threads(1)  # as `Encode` does, after the first attempt has fitted the codec with other kernels
    patch.setattr(prepare, "_start_ray", lambda config: None)
    patch.setattr(prepare, "_encoded_chunks", here.encode)
    patch.setattr(prepare, "_probe_results", here.probe)
    patch.setattr("magic141.data.sources.clips.MAX_CHUNK_CLIPS", 3)
    return here


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return without_ray(monkeypatch)


def run(config: DataConfig, folder: Path, log: MemoryLog | None = None) -> Path:
    """One attempt, with an empty `out` and the run_dir of those before."""
    out = folder / f"out{len(list(folder.glob('out*')))}"
    out.mkdir(parents=True)
    prepare_dataset(config, out, log or MemoryLog(), 3, folder / "run")
    return out


def raising(error: BaseException) -> Callable[..., None]:
    def function(*args: object) -> None:
        raise error

    return function


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        out = run(CONFIG, tmp_path_factory.mktemp("undisturbed"))
    assert [len(load_file(path)["latents"]) for path in sorted((out / "shards").glob("train-*"))] == [4] * 5 + [3]
    names = {"codec", "dataset.json", "encoders", "manifest.jsonl", "null_text.safetensors", "shards"}
    assert {path.name for path in out.iterdir()} == names
    return digest_folder(out)


@pytest.mark.parametrize("num_chunks", [1, 4, 8, 10])
def test_a_killed_stage_encodes_only_what_is_missing_and_ends_with_the_same_bytes(
    here: Here, tmp_path: Path, undisturbed: str, num_chunks: int
) -> None:
    here.chunks_left = num_chunks  # of eleven
    with pytest.raises(Killed):
        run(CONFIG, tmp_path)
    kept = [len(load_file(path)["latents"]) for path in (tmp_path / "run" / "shards").glob("*.safetensors")]
    here.chunks_left = 10**9
    here.encoded.clear()
    log = MemoryLog()
    assert digest_folder(run(CONFIG, tmp_path, log)) == undisturbed
    again = len(here.encoded) - (31 - sum(kept))
    assert 0 <= again <= 2 * len({clip.split for clip in here.encoded}), "but for the chunk in which a shard ends"
    assert any("encoded by an earlier attempt" in note for note in log.notes) == (num_chunks > 1)


def test_an_error_after_the_encoding_costs_no_clip(
    here: Here, tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "describe", raising(Killed()))
        with pytest.raises(Killed):
            run(CONFIG, tmp_path)
    here.encoded.clear()
    monkeypatch.setattr(fitted, "_save", lambda *args: pytest.fail("the models are there"))
    assert digest_folder(run(CONFIG, tmp_path)) == undisturbed
    assert here.encoded == []


@pytest.mark.parametrize(
    ("file", "cut", "num_kept"),
    [
        ("shards/train-00001.safetensors", 0, 3),
        ("records/train-00001.json", 0, 3),
        ("records/train-00001.json", 9, 3),
        ("models/codec/config.json", 0, 15),  # fitted again, and the same
    ],
)
def test_altered_leftovers_are_made_again(
    here: Here, tmp_path: Path, undisturbed: str, file: str, cut: int, num_kept: int
) -> None:
    here.chunks_left = 6
    with pytest.raises(Killed):
        run(CONFIG, tmp_path)
    here.chunks_left = 10**9
    here.encoded.clear()
    path = tmp_path / "run" / file
    content = path.read_bytes()
    path.write_bytes(content[:-cut] if cut else content.replace(b"0", b"1", 1))
    assert digest_folder(run(CONFIG, tmp_path)) == undisturbed
    assert len(here.encoded) == 31 - num_kept


def test_encoders_that_do_not_run_are_found_before_any_clip_is_encoded(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoders, "encode_text", raising(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        run(CONFIG, tmp_path)
    assert here.encoded == []


def test_encoders_that_overflow_are_found_before_any_clip_is_encoded(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Encoders.encode_text

    def overflowing(encoders: Encoders, prompts: Sequence[str]) -> TextEmbedding:
        text = encode(encoders, prompts)
        return replace(text, pooled=text.pooled / 0) if prompts == [""] else text

    monkeypatch.setattr(Encoders, "encode_text", overflowing)
    with pytest.raises(
        UserError, match=r"data\.encoder\.path = None: encodes the empty prompt to numbers that are not"
    ):
        run(CONFIG, tmp_path)
    assert here.encoded == []


def test_lost_workers_are_replaced(
    here: Here, tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(chunks: Sequence[Chunk], config: DataConfig, models: Path) -> Iterator[dict[str, Any]]:
        here.chunks_left = 2
        return here.encode(chunks, config, models)

    monkeypatch.setattr(prepare, "_encoded_chunks", encode)
    here.killer, log = ActorDiedError, MemoryLog()
    assert digest_folder(run(CONFIG, tmp_path, log)) == undisturbed
    assert len(here.encoded) == 31
    assert log.notes == ["an encoding worker was lost (ActorDiedError): goes on with new ones"] * 5


def test_a_chunk_that_kills_all_workers_ends_the_stage(here: Here, tmp_path: Path) -> None:
    here.killer, here.chunks_left, log = ActorDiedError, 4, MemoryLog()
    with pytest.raises(ActorDiedError):
        run(CONFIG, tmp_path, log)
    assert len(log.notes) == MAX_LOSSES - 1
    assert len(list((tmp_path / "run" / "shards").iterdir())) == 3


class Dying(Encode):
    """Takes its process along at the first call; a later one finds the mark."""

    def __init__(self, folder: Path, use_gpu: bool, code: CodeStamp) -> None:
        super().__init__(folder, use_gpu, code)
        self._mark = folder.parent / "died"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if not self._mark.exists():
            self._mark.touch()
            os._exit(1)
        return super().__call__(row)


@pytest.mark.slow
def test_a_worker_that_dies_on_ray_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "Encode", Dying)
    log = MemoryLog()
    out = run(CONFIG, tmp_path, log)
    assert (tmp_path / "run" / "died").exists()
    assert load_info(out).num_clips == {"train": 23, "validation": 3, "heldout": 5}
    assert log.notes == ["an encoding worker was lost (ActorDiedError): goes on with new ones"]


def make_folder(folder: Path, num: int) -> DataConfig:
    """Videos of different noise; none is bad."""
    folder.mkdir()
    for number in range(num):
        frames = np.random.default_rng(number).integers(0, 255, (45, 32, 32, 3), np.uint8)
        write_video(folder / f"{number}.mp4", frames, fps=8)
        (folder / f"{number}.txt").write_text("noise")
    return DataConfig.model_validate(
        {"source": "folder", "path": folder, "shard_size": 4, "stride_frames": 4, "codec": {"num_channels": 8}}
    )


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
        is_lost = [workers.content_id(clip.numpy(), "noise") in lost for clip in pixels]
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


def test_no_video_is_probed_twice(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magic141.data.kept.PROBES_A_PIECE", 2)
    config = make_folder(tmp_path / "videos", 4)
    (tmp_path / "videos" / "5.mp4").write_bytes(b"\1" * 5000)
    (tmp_path / "videos" / "5.txt").write_text("broken")
    here.chunks_left = 0
    with pytest.raises(Killed):
        run(config, tmp_path)
    assert here.probed == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "5.mp4"]
    here.chunks_left = 10**9
    out = run(config, tmp_path)
    assert len(here.probed) == 5
    assert [bad.file for bad in load_info(out).bad_files] == ["5.mp4"]


def test_a_file_is_bad_for_good_once_clips_were_cut_without_it(tmp_path: Path) -> None:
    records = ProbeRecords(tmp_path)
    for number in range(300):
        records.add(f"{number}.mp4", [number] if number else "cannot be decoded")
    assert list(ProbeRecords(tmp_path).found) == [f"{number}.mp4" for number in range(1, 257)]
    records.settle()
    assert ProbeRecords(tmp_path).found == records.found
    ProbeRecords(tmp_path).settle()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_record_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "records" / "a.json"
    assert read_record(path) is None
    write_record(path, {"b": 1, "a": ["é"]})
    assert list(read_record(path)) == ["b", "a"], "in order"
    content = path.read_text()
    for altered in (content[:-1], content.replace("1", "2"), "[]", "{}", ""):
        path.write_text(altered)
        assert read_record(path) is None
