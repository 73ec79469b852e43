"""What was finished before a kill is not made again, and nothing shows in the result that there was one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from safetensors.torch import load_file

from magic141.artifacts.digests import digest_folder
from magic141.artifacts.fingerprint import CodeStamp
from magic141.data import fitted, prepare, ray_launch
from magic141.data.config import DataConfig
from magic141.data.info import load_info
from magic141.data.kept import ProbeRecords, read_record, write_record
from magic141.data.ray_launch import MAX_LOSSES
from magic141.data.sources.chunks import Chunk
from magic141.data.videos.decoding import StorageError
from magic141.data.workers import Encode, Probe
from magic141.errors import UserError
from magic141.models.encoders import Encoders
from magic141.models.text_embedding import TextEmbedding
from tests.data.attempts import Here, Killed, make_folder, run, without_ray
from tests.data.test_prepare import MemoryLog

CONFIG = DataConfig.model_validate(
    {"shapes": {"num_train": 23, "num_validation": 3, "num_heldout": 5}, "shard_size": 4, "codec": {"num_channels": 8}}
)


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
    names = {"codec", "dataset.json", "encoders", "manifest.jsonl", "null_text.safetensors", "origins.json", "shards"}
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


def test_shards_are_of_one_fit_of_the_models(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.chunks_left = 6
    with pytest.raises(Killed):
        run(CONFIG, tmp_path)
    shutil.rmtree(tmp_path / "run" / "models")
    save = fitted._save
    monkeypatch.setattr(fitted, "_save", lambda clips, config, folder, seed: save(clips, config, folder, seed + 1))
    here.chunks_left = 10**9
    here.encoded.clear()
    run(CONFIG, tmp_path)
    assert len(here.encoded) == 31, "the second fit is not quite the first"


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

    monkeypatch.setattr(ray_launch, "encoded_chunks", encode)
    here.killer, log = ActorDiedError, MemoryLog()
    assert digest_folder(run(CONFIG, tmp_path, log)) == undisturbed
    assert len(here.encoded) == 31
    assert log.notes == ["an encoding worker was lost (ActorDiedError): continuing with new ones"] * 5


def test_a_chunk_that_kills_all_workers_ends_the_stage(here: Here, tmp_path: Path) -> None:
    here.killer, here.chunks_left, log = ActorDiedError, 4, MemoryLog()
    with pytest.raises(UserError, match=r"workers that encode shapes died 3 times in a row \(ActorDiedError\): give"):
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


class DyingProbe(Probe):
    """Takes its process along at one video, every time."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["file"] == "2.mp4":
            os._exit(1)
        return super().__call__(row)


@pytest.mark.slow
def test_a_video_that_kills_its_decoder_is_named_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data would run its task again without end and without a word."""
    config = make_folder(tmp_path / "videos", 4)
    monkeypatch.setattr(ray_launch, "Probe", DyingProbe)
    with pytest.raises(UserError, match=r"processes that read [012]\.mp4, or one of the next 16, died .*: remove it"):
        run(config, tmp_path)
    monkeypatch.setattr(ray_launch, "Probe", Probe)
    (tmp_path / "videos" / "2.mp4").unlink()
    (tmp_path / "videos" / "2.txt").unlink()
    assert load_info(run(config, tmp_path)).num_clips["train"] > 0


@pytest.mark.slow
def test_a_worker_that_dies_on_ray_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_launch, "Encode", Dying)
    log = MemoryLog()
    out = run(CONFIG, tmp_path, log)
    assert (tmp_path / "run" / "died").exists()
    assert load_info(out).num_clips == {"train": 23, "validation": 3, "heldout": 5}
    assert log.notes == ["an encoding worker was lost (ActorDiedError): continuing with new ones"]


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


def test_what_was_probed_is_kept_when_probing_fails_or_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = ProbeRecords(tmp_path)
    with suppress(StorageError), records.flushed_at_the_end():
        records.add("a.mp4", [1])
        raise StorageError("the disk is gone")
    assert list(ProbeRecords(tmp_path).found) == ["a.mp4"]
    monkeypatch.setattr("magic141.data.kept.SECONDS_A_PIECE", 0.0)
    ProbeRecords(tmp_path).add("b.mp4", [2])
    assert list(ProbeRecords(tmp_path).found) == ["a.mp4", "b.mp4"]


def test_a_torn_piece_of_what_was_probed_is_probed_again(tmp_path: Path) -> None:
    for file in ("a.mp4", "b.mp4"):
        records = ProbeRecords(tmp_path)
        with records.flushed_at_the_end():
            records.add(file, [1])
    (tmp_path / "00000.json").write_text("{")
    assert list(ProbeRecords(tmp_path).found) == ["b.mp4"]
    ProbeRecords(tmp_path).settle()
    records = ProbeRecords(tmp_path)
    with records.flushed_at_the_end():
        records.add("a.mp4", [1])
    assert list(ProbeRecords(tmp_path).found) == ["b.mp4", "a.mp4"]


def test_a_record_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "records" / "a.json"
    assert read_record(path) is None
    write_record(path, {"b": 1, "a": ["é"]})
    assert list(read_record(path)) == ["b", "a"], "in order"
    content = path.read_text()
    for altered in (content[:-1], content.replace("1", "2"), "[]", "{}", ""):
        path.write_text(altered)
        assert read_record(path) is None
