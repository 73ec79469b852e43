from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from magic141.artifacts.digests import digest_folder
from magic141.artifacts.fingerprint import CodeStamp
from magic141.cluster import session
from magic141.data import fitted, prepare, ray_launch
from magic141.data.config import DataConfig
from magic141.data.dataset import ClipDataset, load_null_text
from magic141.data.encoding import clip_id
from magic141.data.info import load_info
from magic141.data.prepare import prepare_dataset
from magic141.data.shapes import ShapeClip, render_clip
from magic141.data.sources.chunks import Chunk, Group, Place
from magic141.data.sources.clips import Clip, Probed, render_chunk, sample_shapes
from magic141.data.sources.listing import list_videos
from magic141.data.videos.decoding import StorageError
from magic141.data.videos.video import write_video
from magic141.data.workers import Probe, Render, digest_pixels
from magic141.errors import UserError
from magic141.models.encoders import Encoders
from magic141.models.vae import load_codec
from magic141.stage_log import NullLog

SHAPES = {"shapes": {"num_train": 300, "num_validation": 8, "num_heldout": 12}, "shard_size": 100}


class MemoryLog(NullLog):
    """Remembers what a stage says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.images: dict[str, np.ndarray] = {}
        self.figures: dict[str, float | int | str] = {}
        self.advanced: dict[str, int] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def image(self, key: str, image: np.ndarray, step: int = 0) -> None:
        self.images[key] = image

    def summary(self, values: Mapping[str, float | int | str]) -> None:
        self.figures.update(values)

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        self.advanced[unit] = 0

        def advance(count: int) -> None:
            self.advanced[unit] += count

        yield advance
        assert self.advanced[unit] == total


def make_videos(folder: Path, num_good: int) -> None:
    """Good videos of moving shapes, and one of every bad kind."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(num_good):
        clip = ShapeClip("circle", "red", 6.0, 5.0 * number, 10.0, number % 8, 1.0, True, ((0.1, 0.1, 0.1),) * 4)
        write_video(folder / f"good{number}.mp4", render_clip(clip, 60, 64, 96), fps=8)
        (folder / f"good{number}.txt").write_text("a ball rolls over the floor")
    write_video(folder / "short.mp4", rng.integers(0, 255, (5, 32, 32, 3), np.uint8), fps=8)
    (folder / "short.txt").write_text("a short one")
    (folder / "broken.mp4").write_bytes(b"\1" * 5000)
    (folder / "broken.txt").write_text("a broken one")
    (folder / "mute.mp4").write_bytes((folder / "short.mp4").read_bytes())
    (folder / "empty.mp4").write_bytes((folder / "short.mp4").read_bytes())
    (folder / "empty.txt").write_text("")


def test_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=tmp_path / "none")
    with pytest.raises(UserError, match=r"data\.path = .*none: no such folder"):
        prepare_dataset(config, tmp_path, NullLog(), seed=0, run_dir=tmp_path / "run")


@pytest.mark.parametrize(("on_bad_file", "message"), [("skip", "0 usable clips"), ("fail", "on_bad_file=skip")])
def test_nothing_usable_is_an_error_before_any_work(tmp_path: Path, on_bad_file: str, message: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    config = DataConfig.model_validate({"source": "folder", "path": tmp_path / "videos", "on_bad_file": on_bad_file})
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        prepare_dataset(config, tmp_path / "out", NullLog(), seed=0, run_dir=tmp_path / "run")
    assert "a.mp4: no caption" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MemoryLog]:
    out, log = tmp_path_factory.mktemp("shapes"), MemoryLog()
    prepare_dataset(DataConfig.model_validate(SHAPES), out, log, seed=3, run_dir=tmp_path_factory.mktemp("run"))
    return out, log


@pytest.mark.slow
def test_shapes_corpus_is_complete(shapes: tuple[Path, MemoryLog]) -> None:
    out, log = shapes
    info = load_info(out)
    assert info.num_clips == {"train": 300, "validation": 8, "heldout": 12}
    assert info.has_ground_truth
    assert info.heldout is None
    assert info.codec_psnr_db > 33
    assert log.figures["codec_psnr_db"] == info.codec_psnr_db
    assert log.images["clips"].ndim == 3
    assert log.images["reconstruction"].dtype == np.uint8
    train = ClipDataset.open(out, "train")
    assert tuple(train.latents.shape[1:]) == info.latent_shape
    assert 0.9 < train.latents[:].std() < 1.1
    assert train.text_tokens.shape[::2] == train.image_tokens.shape[::2] == (300, info.text_width)
    assert train.pooled.shape == (300, info.pooled_width)
    assert load_null_text(out).tokens.shape == (1, *train.text_tokens.shape[1:])
    assert len(list((out / "shards").glob("train-*"))) == 3


@pytest.mark.slow
def test_stored_tensors_match_what_the_saved_models_say(shapes: tuple[Path, MemoryLog]) -> None:
    out, _ = shapes
    heldout = ClipDataset.open(out, "heldout")
    assert heldout.frames is not None
    codec, encoders = load_codec(out / "codec"), Encoders.load(out / "encoders", torch.device("cpu"))
    torch.testing.assert_close(codec.encode_video(heldout.frames[:]), heldout.latents[:], atol=1e-4, rtol=1e-4)
    text = encoders.encode_text(heldout.captions)
    torch.testing.assert_close(text.pooled, heldout.pooled[:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(text.tokens, heldout.text_tokens[:])
    torch.testing.assert_close(
        encoders.encode_image(heldout.first_frame[:]), heldout.image_tokens[:], atol=1e-3, rtol=1e-3
    )
    assert torch.equal(heldout.frames[:, 0], heldout.first_frame[:])
    for index, truth in enumerate(heldout.truths):
        clip = ShapeClip.from_dict(truth or {})
        frames = render_clip(clip, 13, 32, 32)
        np.testing.assert_array_equal(frames, heldout.frames[index].numpy())
        assert clip.caption == heldout.captions[index]
        assert clip_id(digest_pixels(frames), clip.caption) == heldout.ids[index]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_artifact(shapes: tuple[Path, MemoryLog], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare_dataset(DataConfig.model_validate(SHAPES), tmp_path / "out", NullLog(), seed=3, run_dir=tmp_path / "run")
    assert digest_folder(tmp_path / "out") == digest_folder(shapes[0])


@pytest.mark.slow
def test_folder_with_bad_files(tmp_path: Path) -> None:
    make_videos(tmp_path / "videos", num_good=3)
    (tmp_path / "videos" / "link.mp4").symlink_to("good1.mp4")
    (tmp_path / "videos" / "link.txt").write_text("the same")
    config = DataConfig(source="folder", path=tmp_path / "videos")
    out, log = tmp_path / "out", MemoryLog()
    out.mkdir()
    prepare_dataset(config, out, log, seed=0, run_dir=tmp_path / "run")
    info = load_info(out)
    assert {bad.file for bad in info.bad_files} == {"short.mp4", "broken.mp4", "mute.mp4", "empty.mp4"}
    for bad in info.bad_files:
        assert f"skipped {bad.file}: {bad.reason}" in log.notes
    assert not info.has_ground_truth
    assert min(info.num_clips.values()) >= 1
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    used = {(row["source"], row["start_frame"] + offset): row["split"] for row in rows for offset in range(13)}
    for row in rows:  # no frame is in two splits
        assert all(used[row["source"], row["start_frame"] + offset] == row["split"] for offset in range(13))
    assert info.heldout == log.figures["heldout"] == "tails"
    assert any(note.startswith("held-out clips are later parts of videos that were trained on") for note in log.notes)
    assert "link.mp4: copies of other videos" in " ".join(log.notes)
    assert {row["split"] for row in rows if row["source"] == "link.mp4"} == {"train"}, "one of the two is judged"
    failing = config.model_copy(update={"on_bad_file": "fail"})
    with pytest.raises(UserError, match=r"data\.path = .*\(and 3 more\); repair or remove it"):
        prepare_dataset(failing, tmp_path / "out2", NullLog(), seed=0, run_dir=tmp_path / "run2")


@pytest.mark.slow
def test_a_video_that_the_probe_took_and_nothing_can_read_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_videos(tmp_path / "videos", num_good=3)
    config = DataConfig(source="folder", path=tmp_path / "videos", num_frames=5, cut_score=None)
    real = prepare._probe
    monkeypatch.setattr(
        prepare,
        "_probe",
        lambda *given: [
            found._replace(num_frames=60) if isinstance(found, Probed) and found.num_frames == 5 else found
            for found in real(*given)
        ],
    )
    (tmp_path / "out").mkdir()
    log = MemoryLog()
    prepare_dataset(config, tmp_path / "out", log, seed=0, run_dir=tmp_path / "run")
    notes = [note for note in log.notes if "short.mp4" in note]
    assert len(notes) == 1
    assert notes[0].endswith("of its clips left out: ended early at frame 5: it changed while it was read")
    assert "short.mp4" in {bad.file for bad in load_info(tmp_path / "out").bad_files}
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [row["start_frame"] for row in rows if row["source"] == "short.mp4"] == [0], "what can be read stays"


@pytest.mark.slow
def test_a_video_that_the_storage_does_not_deliver_ends_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_videos(tmp_path / "videos", num_good=1)
    listing = list_videos(tmp_path / "videos")
    monkeypatch.setattr(prepare, "list_videos", lambda _: listing)
    (tmp_path / "videos" / "good0.mp4").unlink()
    config = DataConfig(source="folder", path=tmp_path / "videos")
    with pytest.raises(StorageError, match=r"^video \S+good0\.mp4: machine \S+ cannot read it [^\n]*$"):
        prepare_dataset(config, tmp_path / "out", NullLog(), seed=0, run_dir=tmp_path / "run")


def test_workers_say_what_they_cannot_decode_and_refuse_to_work_without_the_folder(tmp_path: Path) -> None:
    make_videos(tmp_path / "videos", num_good=1)
    config = DataConfig(source="folder", path=tmp_path / "videos", num_frames=5)
    stamp = ray_launch._workers_code()
    row = Chunk(Place(0, Group("train"), 0), [Clip("train", "broken.mp4", 0, "x")]).row
    (reason,) = json.loads(Render(config, stamp)(row)["reasons"])
    assert reason.startswith("cannot be decoded")
    (tmp_path / "videos").rename(tmp_path / "elsewhere")
    lost = {"file": "good0.mp4", "caption": "x"}
    works: tuple[Callable[[], object], ...] = (
        lambda: Render(config, stamp)(row),
        lambda: Probe(tmp_path / "videos", config, stamp)(lost),
    )
    for work in works:
        with pytest.raises(StorageError, match=r"data\.path = \S+videos: machine \S+ cannot read it \(No such file"):
            work()


@pytest.mark.slow
def test_workers_with_other_code_than_the_drivers_prepare_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = CodeStamp((("magic141.data.workers", "0"),))
    monkeypatch.setattr(ray_launch, "_workers_code", lambda: newer)
    with pytest.raises(UserError, match=r"^machine \S+: magic141\.data\.workers differ from the driver's, [^\n]*$"):
        prepare_dataset(DataConfig.model_validate(SHAPES), tmp_path, NullLog(), seed=0, run_dir=tmp_path / "run")
    make_videos(tmp_path / "videos", num_good=1)
    config = DataConfig(source="folder", path=tmp_path / "videos")
    with pytest.raises(UserError, match="run it again"):
        prepare_dataset(config, tmp_path, NullLog(), seed=0, run_dir=tmp_path / "run2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.slow
def test_corpora_that_are_prepared_at_once_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their encoding workers together would take every CPU, and leave none to decode on.

    Two processes on one Ray, as two flows on a cluster: diffusers patches torch.nn while it loads a network, which
    threads that load at once leave patched.
    """
    config = DataConfig.model_validate({**SHAPES, "num_workers": 64})
    outs = [tmp_path / name for name in ("one", "two")]
    for out in outs:
        out.mkdir()
    ray_launch.start_ray(config)
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", session._TOKEN)
    works = [(config, out, NullLog(), 0, out.with_suffix(".run")) for out in outs]
    flows = [get_context("spawn").Process(target=prepare_dataset, args=work, daemon=True) for work in works]
    for flow in flows:
        flow.start()
    for flow in flows:
        flow.join(600)
    assert [flow.exitcode for flow in flows] == [0, 0]
    assert [load_info(out).num_clips["train"] for out in outs] == [300, 300]


def test_encoders_on_gpus_are_refused_where_there_are_none(tmp_path: Path) -> None:
    config = DataConfig.model_validate({**SHAPES, "num_gpus_per_worker": 1})
    with pytest.raises(
        UserError, match=r"data\.num_workers = 1: with num_gpus_per_worker = 1 they take 1 GPUs, of which"
    ):
        prepare_dataset(config, tmp_path, NullLog(), seed=0, run_dir=tmp_path / "run")


def test_the_codec_is_fitted_on_training_clips_alone() -> None:
    config = DataConfig.model_validate({"shapes": {"num_train": 3, "num_validation": 4, "num_heldout": 4}})
    clips = sample_shapes(config, seed=0)
    found = fitted._sample_frames(clips, config, seed=0)
    own = render_chunk(clips[:3], config)
    assert sorted(frames.tobytes() for frames in found) == sorted(frames.tobytes() for frames in own)


def test_the_codec_is_fitted_on_fewer_clips_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig.model_validate({"shapes": {"num_train": 9, "num_validation": 4, "num_heldout": 4}})
    monkeypatch.setattr(fitted, "MAX_FIT_BYTES", 5 * config.clip_bytes(config.size))
    found = fitted._sample_frames(sample_shapes(config, seed=0), config, seed=0)
    assert found.shape[0] == 5
    assert found[0].nbytes == config.clip_bytes(config.size)
