"""Generates everything that variants are judged by: continued held-out clips, a prompt suite, long videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from magic141.artifacts import StageLog
from magic141.data.sheets import contact_sheet
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.long_videos import run_long, write_windows
from magic141.evaluation.media import save_video
from magic141.evaluation.performance import (
    Usage,
    give_back_freed_memory,
    measure,
    weight_megabytes,
)
from magic141.evaluation.suite import Conditions, clip_conditions
from magic141.evaluation.variants import ModelFolders, Variant, list_variants, long_video_variants
from magic141.evaluation.workload import NUM_KNOWN, Workload, prepare_workload, write_conditions
from magic141.models.config import TransformerConfig
from magic141.models.generator import VideoGenerator
from magic141.training.dmd2_config import Dmd2Config

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
                    windows[variant.name] = run_long(work, variant, generator, out, log, advance)
                del network
    (out / "variants.json").write_text(json.dumps(records, indent=1))
    write_windows(work, windows, out)
    log.summary({f"{record['name']}/cpu_ms_per_clip": record["cpu_ms_per_clip"] for record in records})


def _run_variant(
    work: Workload, variant: Variant, generator: VideoGenerator, out: Path, log: StageLog, advance: Advance
) -> dict[str, Any]:
    """Everything that one variant generates; returns its entry of variants.json."""
    conditions = clip_conditions(work.heldout, work.rows)
    give_back_freed_memory()
    latency = _latency(work, generator, conditions)
    latents, usage = _sample(work, generator, conditions, work.seed, advance)
    frames = work.decode(latents)
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
        for number, clip in enumerate(work.decode(latents).numpy()):
            save_video(out / "suite" / variant.name / f"{number:02d}-s{offset}.mp4", clip, work.info.fps)


def _run_continuation(work: Workload, variant: Variant, generator: VideoGenerator, out: Path, advance: Advance) -> None:
    """Continues clips from their first latent frames, which show the velocity and so fix the future."""
    rows = work.rows[: work.config.num_continuation_clips]
    conditions = clip_conditions(work.heldout, rows, num_known=NUM_KNOWN)
    latents, _ = _sample(work, generator, conditions, work.seed, advance)
    frames = work.decode(latents)
    known = 1 + (NUM_KNOWN - 1) * work.info.temporal_factor
    truth = _true_continuation(work, rows, frames.shape[1])
    tensors = {"frames": frames[:, known:].contiguous(), "truth": truth[:, known:].contiguous()}
    save_file(tensors, out / "exact" / f"continuation-{variant.name}.safetensors")


def _true_continuation(work: Workload, rows: list[int], num_frames: int) -> Tensor:
    """The clips' own frames, or their reconstruction where those were not stored."""
    if work.heldout.frames is not None:
        return work.heldout.frames[rows, :num_frames]
    return work.decode(work.heldout.latents[rows, :, : work.latent_frames])


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


def _num_evaluations(work: Workload, variants: list[Variant], long_variants: list[Variant]) -> int:
    """Network evaluations of the whole stage, times clips: the length of the progress bar."""
    config = work.config
    featured = len(work.prompts) * config.num_seeds
    if work.has_continuation:
        featured += len(work.rows[: config.num_continuation_clips])
    short = sum(v.nfe * (len(work.rows) + (featured if v.name in work.featured else 0)) for v in variants)
    return short + sum(v.nfe * config.long_video_windows * len(work.long_rows) for v in long_variants)


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """Runs the block with `num` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
