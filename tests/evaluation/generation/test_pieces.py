"""Stage `generate` in pieces: killed and taken up again, on workers, and not for days on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from magic141.config import load_config
from magic141.errors import UserError
from magic141.evaluation.generation.parts import Share
from magic141.evaluation.generation.pieces import list_pieces
from magic141.evaluation.generation.workload import Workload
from magic141.evaluation.variants import list_variants, long_video_variants
from magic141.models.transformer import build_transformer
from tests.evaluation.artifacts import DMD2, GENERATE, RecordingLog, generate
from tests.models.tiny import INFO

SMALL = GENERATE.model_copy(
    update={"many_steps": 2, "few_steps": (1,), "num_exact_clips": 3, "num_seeds": 1, "long_video_windows": 2}
)
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="here a GPU would sample it")
CONFIGS = Path(__file__).parents[3] / "configs"
HUNYUAN = load_config(CONFIGS / "hunyuan_13b.yaml").model
INPUTS = {
    "data": "prepare_data",
    "clip": "train_clip",
    "index": "build_index",
    "teacher": "pretrain_i2v",
    "cfg_student": "distill_cfg",
    "student": "distill_dmd2",
    "int8": "quantize",
}


class Killed(BaseException):
    """The end of the process."""


@dataclass
class KillingLog(RecordingLog):
    """Ends the stage after a share of its evaluations."""

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        def advance(done: int) -> None:
            self.advanced += done
            if self.advanced > 0.6 * total:
                raise Killed

        self.total = total
        yield advance


@pytest.fixture(scope="module")
def inputs(generated: tuple[dict[str, Path], RecordingLog]) -> dict[str, Path]:
    return {name: generated[0][stage] for name, stage in INPUTS.items()}


def run(inputs: dict[str, Path], folder: Path, log: RecordingLog | None = None, **options: Any) -> Path:
    """An attempt: its own empty `out`, what earlier ones have finished in `work`."""
    folder.mkdir(exist_ok=True)
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    generate(inputs, out, folder / "work", log, SMALL.model_copy(update=options))
    return out


@pytest.fixture(scope="module")
def undisturbed(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(inputs, tmp_path_factory.mktemp("undisturbed"))


def contents(out: Path) -> dict[str, bytes]:
    """Everything but what was measured."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in ("variants.json", "windows.json")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def records(out: Path) -> dict[str, Any]:
    return {variant["name"]: variant for variant in json.loads((out / "variants.json").read_text())}


def test_a_killed_stage_goes_on_from_the_pieces_that_were_finished(
    inputs: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    killed, log = KillingLog(), RecordingLog()
    with pytest.raises(Killed):
        run(inputs, tmp_path, killed)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert "teacher_2-exact-0-to-teacher_2-long-0" in finished
    assert not any(name.startswith("student") for name in finished)

    out = run(inputs, tmp_path, log)
    assert contents(out) == contents(undisturbed)
    assert list(records(out)) == list(records(undisturbed))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert kept.items() >= finished.items(), "what was finished was made again"
    assert 0 < log.advanced == log.total < 0.5 * killed.total
    # an attempt that is reported shows all of it
    assert {"samples/teacher_2", "samples/student_4", "long/teacher_2"} <= log.images.keys()
    assert any(f"{len(finished)} of " in note for note in log.notes)


def test_a_stage_in_many_pieces_makes_what_one_piece_makes(
    inputs: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    """Each batch alone: tensors and contact sheets have rows of several pieces."""
    whole = run(inputs, tmp_path / "whole", batch_size=1)
    out = run(inputs, tmp_path / "cut", batch_size=1, evaluations_per_piece=1)
    num_pieces = {folder: len(list((tmp_path / folder / "work").iterdir())) for folder in ("whole", "cut")}
    assert num_pieces["whole"] == 4 < 50 < num_pieces["cut"]
    assert contents(out) == contents(whole)
    for name, record in records(out).items():
        assert record.keys() == records(whole)[name].keys()
        assert record["num_clips"] == SMALL.num_exact_clips
        assert record["peak_memory_mb"] == records(whole)[name]["peak_memory_mb"]


@pytest.mark.parametrize(("limit", "num_threads"), [(1, 1), (1, 2), (40, 1), (40, 3), (10_000, 2)])
def test_pieces_hold_every_batch_once_and_are_about_as_long_as_asked(
    limit: int, num_threads: int, tmp_path: Path
) -> None:
    update = {"batch_size": 1, "evaluations_per_piece": limit, "num_threads": num_threads}
    config, nothing = SMALL.model_copy(update=update), cast(Any, None)
    info = INFO.model_copy(update={"has_ground_truth": True})
    work = Workload(config, info, tmp_path, [4, 2, 7], 5, ["a", "b"], [], nothing, [4, 2], 0, num_gpus=0)
    variants, long_variants = list_variants(config, DMD2), long_video_variants(config, DMD2)
    pieces = list_pieces(work, variants, long_variants, tmp_path)
    batches = [
        (share.variant.name, share.part, number)
        for piece in pieces
        for share in piece.shares
        for number in share.batches
    ]
    expected = {(v.name, part, n) for v in variants for part, num in (("exact", 3), ("suite", 2)) for n in range(num)}
    expected |= {(v.name, "continuation", n) for v in variants for n in range(3)}
    expected |= {(v.name, "long", n) for v in long_variants for n in range(2)}
    assert len(batches) == len(set(batches))
    assert set(batches) == expected
    assert len({piece.folder for piece in pieces}) == len(pieces)
    longest = max(Share(v, part, range(num_threads)).num_evaluations(work) for v in variants for part in ("exact",))
    longest = max(longest, *(Share(v, "long", range(num_threads)).num_evaluations(work) for v in long_variants))
    assert all(piece.num_evaluations <= limit + longest for piece in pieces)
    assert all({share.variant.model for share in piece.shares} == {piece.model} for piece in pieces)


def test_a_driver_without_a_gpu_cuts_pieces_for_workers_with_one(tmp_path: Path) -> None:
    """No piece of the paper's size is longer than a long video, which cannot be cut."""
    config, nothing = load_config(CONFIGS / "hunyuan_13b.yaml"), cast(Any, None)
    given, dmd2 = config.generate, config.distill_dmd2
    rows, prompts = list(range(given.num_exact_clips)), ["a"] * given.num_prompts
    work = Workload(given, INFO, tmp_path, rows, 33, prompts, [], nothing, rows[: given.long_video_clips], 0)
    work = work.for_workers()
    long_variants = long_video_variants(given, dmd2)
    pieces = list_pieces(work, list_variants(given, dmd2), long_variants, tmp_path)
    longest = max(Share(variant, "long", range(1)).num_evaluations(work) for variant in long_variants)
    assert max(piece.num_evaluations for piece in pieces) == longest == 672
    assert len(pieces) > 2 * given.num_workers


def test_a_finished_stage_samples_nothing_when_only_its_artifact_was_lost(
    inputs: dict[str, Path], undisturbed: Path
) -> None:
    log = RecordingLog()
    again = run(inputs, undisturbed.parent, log)
    assert log.total == 0
    assert contents(again) == contents(undisturbed)
    assert records(again) == records(undisturbed)


@pytest.mark.slow
def test_workers_make_what_one_process_makes(inputs: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    log = RecordingLog()
    out = run(inputs, tmp_path, log, num_workers=2)
    assert log.advanced == log.total > 0
    assert contents(out).keys() == contents(undisturbed).keys()
    for file in undisturbed.glob("exact/*.safetensors"):
        expected, made = load_file(file), load_file(out / "exact" / file.name)
        assert all(torch.equal(made[name], expected[name]) for name in expected), file.name
    assert all(record["peak_memory_mb"] > 0 for record in records(out).values())


@NO_GPU
@pytest.mark.slow
def test_workers_with_gpus_are_refused_where_there_are_none(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generate\.num_workers = 2: with gpus_per_worker = 1 they take 2 GPUs"):
        run(inputs, tmp_path, num_workers=2, gpus_per_worker=1)


@NO_GPU
@pytest.mark.slow
def test_a_users_mistake_that_a_worker_meets_is_one_line(inputs: dict[str, Path], tmp_path: Path) -> None:
    large = large_transformer(tmp_path / "large")
    with pytest.raises(UserError, match=r"generate\.allow_cpu") as raised:
        run(inputs | {"student": large}, tmp_path, num_workers=2)
    assert "\n" not in str(raised.value)


def large_transformer(folder: Path) -> Path:
    """HunyuanVideo's config, without its weights."""
    with torch.device("meta"):
        network = build_transformer(HUNYUAN, 16, 4096, 768, image_condition=True, guidance_embeds=True)
    network.save_config(folder / "transformer")
    return folder


@NO_GPU
def test_a_network_that_would_take_days_on_a_cpu_is_refused_before_anything_is_read(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    large = large_transformer(tmp_path / "large")
    log = RecordingLog()
    with pytest.raises(UserError, match=r"12\.8e9 parameters.*generate\.allow_cpu") as raised:
        run(inputs | {"student": large, "data": tmp_path / "nowhere"}, tmp_path, log)
    assert str(large / "transformer") in str(raised.value)


def test_allow_cpu_leads_on_to_the_loader(inputs: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    large = large_transformer(tmp_path / "large")
    with pytest.raises(OSError, match="large"):
        run(inputs | {"teacher": large}, tmp_path, allow_cpu=True)
