"""Generates everything that variants are judged by: continued held-out clips, a prompt suite, long videos."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from magic141.artifacts import StageLog
from magic141.data.sheets import contact_sheet
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.media import save_video
from magic141.evaluation.performance import (
    Usage,
    give_back_freed_memory,
    measure,
    resident_megabytes,
    weight_megabytes,
)
from magic141.evaluation.suite import Conditions, clip_conditions
from magic141.evaluation.variants import ModelFolders, Variant, list_variants, long_video_variants
from magic141.evaluation.workload import NUM_KNOWN, Workload, prepare_workload, write_conditions
from magic141.models.config import TransformerConfig
from magic141.models.generator import VideoGenerator
from magic141.training.config import Dmd2Config

NUM_LONG_VIDEOS_SHOWN = 3
Advance = Callable[[int], None]


def generate_suite(
    config: GenerateConfig,
    dmd2: Dmd2Config,
    model: TransformerConfig,
    data: Path,
    clip: Path,
    index: Path,
    teacher: Path,
    cfg_student: Path,
    student: Path,
    int8: Path,
    out: Path,
    log: StageLog,
    seed: int,
) -> None:
    """Runs every variant; writes stage `generate`: variants.json, exact/, suite/, showcase/, long/."""
    variants, long_variants = list_variants(config, dmd2), long_video_variants(config, dmd2)
    folders = ModelFolders(teacher, cfg_student, student, int8)
    with _threads(config.num_threads), torch.no_grad():
        work = prepare_workload(config, dmd2, model, data, clip, index, log, seed)
        write_conditions(work, out)
        records: list[dict[str, Any]] = []
        windows: dict[str, list[dict[str, float]]] = {}
        with log.progress(_num_evaluations(work, variants, long_variants), "evaluation") as advance:
            for name in dict.fromkeys(variant.model for variant in variants):
                network = folders.load(name, work.device)  # one at a time: four of the real size do not fit
                for variant in (v for v in variants if v.model == name):
                    generator = variant.generator(network, work.null_text, work.latent_frames)
                    records.append(_run_variant(work, variant, generator, out, log, advance))
                for variant in (v for v in long_variants if v.model == name):
                    generator = variant.generator(network, work.null_text, work.latent_frames)
                    windows[variant.name] = _run_long(work, variant, generator, out, log, advance)
                del network
    (out / "variants.json").write_text(json.dumps(records, indent=1))
    _write_windows(work, windows, out)
    log.summary({f"{record['name']}/cpu_ms_per_clip": record["cpu_ms_per_clip"] for record in records})


def frame_spans(num_windows: int, latent_frames: int, carried: int, temporal_factor: int) -> list[tuple[int, int]]:
    """First and one-past-last pixel frame of each chained window, its carried frames included, without the anchor."""
    fresh = latent_frames - 1 - carried
    spans = [(0, 1 + (latent_frames - 1) * temporal_factor)]
    for window in range(1, num_windows):
        stop = latent_frames + window * fresh
        spans.append((1 + (stop - fresh - carried - 1) * temporal_factor, 1 + (stop - 1) * temporal_factor))
    return spans


def _run_variant(
    work: Workload, variant: Variant, generator: VideoGenerator, out: Path, log: StageLog, advance: Advance
) -> dict[str, Any]:
    """Everything that one variant generates; returns its entry of variants.json."""
    conditions = clip_conditions(work.heldout, work.rows)
    give_back_freed_memory()
    latency = _latency(work, generator, conditions)
    latents, usage = _sample(work, generator, conditions, work.seed, advance)
    frames = _decode(work, latents)
    folder = out / "exact"
    save_file({"frames": frames, "latents": latents}, folder / f"{variant.name}.safetensors")
    shown = frames[: work.config.num_showcase_clips].numpy()
    for number, clip in enumerate(shown):
        file = out / "showcase" / variant.name / f"{number:02d}.mp4"
        save_video(file, clip, work.info.fps)
        log.file(file, f"showcase/{variant.name}")
    log.image(f"samples/{variant.name}", contact_sheet(shown))
    if variant.name in work.featured:
        _run_suite(work, variant, generator, out, advance)
        if work.has_continuation:
            _run_continuation(work, variant, generator, out, advance)
    return {
        **asdict(variant),
        "nfe": generator.num_evaluations,
        "num_clips": len(conditions),
        "cpu_ms_per_clip": 1000 * usage.cpu_s / len(conditions),
        "wall_ms_per_clip": 1000 * usage.wall_s / len(conditions),
        "latency_ms": 1000 * latency.wall_s,
        "peak_memory_mb": usage.peak_memory_mb,
        "weight_mb": weight_megabytes(generator.model),
    }


def _run_suite(work: Workload, variant: Variant, generator: VideoGenerator, out: Path, advance: Advance) -> None:
    """Prompts x seeds, each from its retrieved image."""
    for offset in range(work.config.num_seeds):
        latents, _ = _sample(work, generator, work.suite, work.seed + offset, advance)
        for number, clip in enumerate(_decode(work, latents).numpy()):
            save_video(out / "suite" / variant.name / f"{number:02d}-s{offset}.mp4", clip, work.info.fps)


def _run_continuation(work: Workload, variant: Variant, generator: VideoGenerator, out: Path, advance: Advance) -> None:
    """Continues clips from their first latent frames, which show the velocity and so fix the future."""
    rows = work.rows[: work.config.num_continuation_clips]
    conditions = clip_conditions(work.heldout, rows, num_known=NUM_KNOWN)
    latents, _ = _sample(work, generator, conditions, work.seed, advance)
    frames = _decode(work, latents)
    known = 1 + (NUM_KNOWN - 1) * work.info.temporal_factor
    truth = _true_continuation(work, rows, frames.shape[1])
    tensors = {"frames": frames[:, known:].contiguous(), "truth": truth[:, known:].contiguous()}
    save_file(tensors, out / "exact" / f"continuation-{variant.name}.safetensors")


def _true_continuation(work: Workload, rows: list[int], num_frames: int) -> Tensor:
    """The clips' own frames, or their reconstruction where those were not stored."""
    if work.heldout.frames is not None:
        return work.heldout.frames[rows, :num_frames]
    return _decode(work, work.heldout.latents[rows, :, : work.latent_frames])


def _run_long(
    work: Workload, variant: Variant, generator: VideoGenerator, out: Path, log: StageLog, advance: Advance
) -> list[dict[str, float]]:
    """Chains windows for all long clips at once; returns cost and memory of every window."""
    conditions = clip_conditions(work.heldout, work.long_rows).part(0, len(work.long_rows)).to(work.device)
    marks = [(time.perf_counter(), time.process_time(), resident_megabytes())]

    def on_window(_: int) -> None:
        marks.append((time.perf_counter(), time.process_time(), resident_megabytes()))
        advance(generator.num_evaluations * len(conditions))

    latents = generator.chain(
        conditions.text,
        conditions.image_tokens,
        conditions.prefix,
        work.config.long_video_windows,
        work.config.long_video_carried,
        work.seed,
        on_window,
    ).cpu()
    frames = _decode(work, latents)
    folder = out / "long"
    save_file({"frames": frames}, folder / f"{variant.name}.safetensors")
    for number, clip in enumerate(frames[:NUM_LONG_VIDEOS_SHOWN].numpy()):
        save_video(folder / variant.name / f"{number:02d}.mp4", clip, work.info.fps)
    if variant.model == "student":
        save_video(folder / "long.mp4", frames[0].numpy(), work.info.fps)
        log.file(folder / "long.mp4", "long")
    log.image(f"long/{variant.name}", contact_sheet(frames[:NUM_LONG_VIDEOS_SHOWN].numpy(), max_columns=16))
    return [
        {
            "window": number,
            "wall_ms_per_clip": 1000 * (after[0] - before[0]) / len(conditions),
            "cpu_ms_per_clip": 1000 * (after[1] - before[1]) / len(conditions),
            "rss_mb": after[2],
        }
        for number, (before, after) in enumerate(pairwise(marks))
    ]


def _sample(
    work: Workload, generator: VideoGenerator, conditions: Conditions, seed: int, advance: Advance
) -> tuple[Tensor, Usage]:
    """Latents [N, C, T, h, w] on the CPU, and what sampling them took; every batch has its own noise.

    On CPUs each thread samples a batch of its own: networks this small leave several threads at one batch idle.
    """

    def sample(batch: Conditions, number: int) -> Tensor:
        here = batch.to(work.device)
        return generator.sample(here.text, here.image_tokens, here.prefix, seed * 1009 + number).cpu()

    parts: list[Tensor] = []
    threads = work.config.num_threads
    num_parallel = threads if work.device.type == "cpu" else 1
    with measure() as usage, _threads(threads // num_parallel), ThreadPoolExecutor(num_parallel) as pool:
        for latents in pool.map(sample, conditions.batches(work.config.batch_size), count()):
            parts.append(latents)
            advance(generator.num_evaluations * len(latents))
    return torch.cat(parts), usage


def _latency(work: Workload, generator: VideoGenerator, conditions: Conditions) -> Usage:
    """One clip alone, after a warm-up with one step's worth of network calls."""
    one = conditions.part(0, 1).to(work.device)
    generator.sample(one.text, one.image_tokens, one.prefix, work.seed)
    with measure() as usage:
        generator.sample(one.text, one.image_tokens, one.prefix, work.seed)
    return usage


def _decode(work: Workload, latents: Tensor) -> Tensor:
    """uint8 [N, F, H, W, 3] on the CPU, a batch at a time."""
    return torch.cat([work.codec.decode_video(batch).cpu() for batch in torch.split(latents, work.config.batch_size)])


def _num_evaluations(work: Workload, variants: list[Variant], long_variants: list[Variant]) -> int:
    """Network evaluations of the whole stage, times clips: the length of the progress bar."""
    config = work.config
    featured = len(work.prompts) * config.num_seeds
    if work.has_continuation:
        featured += len(work.rows[: config.num_continuation_clips])
    short = sum(v.nfe * (len(work.rows) + (featured if v.name in work.featured else 0)) for v in variants)
    return short + sum(v.nfe * config.long_video_windows * len(work.long_rows) for v in long_variants)


def _write_windows(work: Workload, windows: dict[str, list[dict[str, float]]], out: Path) -> None:
    config = work.config
    spans = frame_spans(
        config.long_video_windows, work.latent_frames, config.long_video_carried, work.info.temporal_factor
    )
    clips = [{"id": work.heldout.ids[r], "caption": work.heldout.captions[r]} for r in work.long_rows]
    record = {"variants": windows, "frames": spans, "clips": clips, "fps": work.info.fps}
    (out / "long" / "windows.json").write_text(json.dumps(record, indent=1))


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """Runs the block with `num` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
