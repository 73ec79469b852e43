"""Generates a variant's short videos, continued held-out clips and the prompt suite, and measures their cost."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from magic141.data.videos.sheets import contact_sheet
from magic141.evaluation.generation.media import read_image, save_image, save_video
from magic141.evaluation.generation.performance import Usage, measure, weight_megabytes
from magic141.evaluation.generation.suite import Conditions, clip_conditions, clip_seed
from magic141.evaluation.generation.tensor_memory import TensorMemory
from magic141.evaluation.generation.workload import NUM_KNOWN, Advance, Workload
from magic141.evaluation.variants import Variant
from magic141.models.device import cpu_threads
from magic141.models.frames import num_pixel_frames
from magic141.models.generator import VideoGenerator
from magic141.stage_log import StageLog

LATENCY_BUDGET_S = 2.0
MAX_LATENCY_CLIPS = 9


def run_short(
    work: Workload, variant: Variant, generator: VideoGenerator, out: Path, advance: Advance
) -> dict[str, Any]:
    """Generates a variant's short videos into `out`; returns its entry of variants.json."""
    conditions = clip_conditions(work.heldout, work.rows)
    latency_s = _latency_s(work, generator, conditions)
    latents, usage = _sample(work, generator, conditions, work.seed, advance)
    weight_mb, added_mb = weight_megabytes(generator.model), usage.added_memory_mb
    if added_mb is None:
        added_mb = _tensors_mb(work, generator, conditions)
    _write_clips(work, variant, latents, out)
    _run_suite(work, variant, generator, out, advance)
    if work.has_continuation:
        _run_continuation(work, variant, generator, out, advance)
    return {
        **asdict(variant),
        "nfe": generator.settings.num_evaluations,
        "num_clips": len(conditions),
        "cpu_ms_per_clip": 1000 * usage.cpu_s / len(conditions),
        "wall_ms_per_clip": 1000 * usage.wall_s / len(conditions),
        "latency_ms": 1000 * latency_s,
        "peak_memory_mb": weight_mb + added_mb,
        "weight_mb": weight_mb,
        "device": torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "cpu",
        "precision": str(next(generator.model.parameters()).dtype).removeprefix("torch."),
    }


def show_short(work: Workload, variant: Variant, folder: Path, log: StageLog) -> None:
    """Logs the showcase videos that `run_short` has written below `folder`."""
    for file in sorted((folder / "showcase" / variant.name).iterdir()):
        log.file(file, f"showcase/{variant.name}")
    log.image(f"samples/{variant.name}", read_image(sheet_file(folder, variant)))


def short_evaluations(work: Workload, variant: Variant) -> int:
    """Network evaluations of `run_short`, counted per clip."""
    clips = len(work.rows) + len(work.prompts) * work.config.num_seeds
    if work.has_continuation:
        clips += len(work.rows[: work.config.num_continuation_clips])
    return variant.num_evaluations * clips


def sheet_file(folder: Path, variant: Variant) -> Path:
    """The contact sheet of a variant's showcase."""
    return folder / "showcase" / f"{variant.name}.png"


def _write_clips(work: Workload, variant: Variant, latents: Tensor, out: Path) -> None:
    """Writes the continued held-out clips, some of them as videos; of the others pixels only for exact scores."""
    num_shown, scored = work.config.num_showcase_clips, work.info.has_ground_truth
    frames = work.decode(latents if scored else latents[:num_shown])
    pixels = {"frames": frames} if scored else {}
    (out / "exact").mkdir()
    save_file({"latents": latents, **pixels}, out / "exact" / f"{variant.name}.safetensors")
    shown = frames[:num_shown].numpy()
    for number, clip in enumerate(shown):
        save_video(out / "showcase" / variant.name / f"{number:02d}.mp4", clip, work.info.fps)
    save_image(sheet_file(out, variant), contact_sheet(shown))


def _run_suite(work: Workload, variant: Variant, generator: VideoGenerator, out: Path, advance: Advance) -> None:
    """Generates a video for every prompt and seed, from the prompt's retrieved image."""
    for offset in range(work.config.num_seeds):
        latents, _ = _sample(work, generator, work.suite, work.seed + offset, advance)
        for number, clip in enumerate(work.decoded(latents)):
            save_video(out / "suite" / variant.name / f"{number:02d}-s{offset}.mp4", clip.numpy(), work.info.fps)


def _run_continuation(work: Workload, variant: Variant, generator: VideoGenerator, out: Path, advance: Advance) -> None:
    """Continues clips from their first latent frames, which show the velocity and so determine the future."""
    rows = work.rows[: work.config.num_continuation_clips]
    conditions = clip_conditions(work.heldout, rows, num_known=NUM_KNOWN)
    latents, _ = _sample(work, generator, conditions, work.seed, advance)
    frames = work.decode(latents)
    known = num_pixel_frames(NUM_KNOWN, work.info.temporal_factor)
    truth = work.heldout.pixels[rows, : frames.shape[1]]
    tensors = {"frames": frames[:, known:].contiguous(), "truth": truth[:, known:].contiguous()}
    save_file(tensors, out / "exact" / f"continuation-{variant.name}.safetensors")


def _sample(
    work: Workload, generator: VideoGenerator, conditions: Conditions, seed: int, advance: Advance
) -> tuple[Tensor, Usage]:
    """Latents [N, C, T, h, w] on the CPU, and the cost of sampling them; every batch has its own noise.

    On a CPU every thread samples a batch of its own: networks this small cannot keep several threads busy on one.
    """

    def sample(batch: Conditions, number: int) -> Tensor:
        here = batch.to(work.device)
        return generator.sample(here.text, here.image_tokens, here.prefix, clip_seed(seed, number)).cpu()

    parts: list[Tensor] = []
    threads = work.config.num_threads
    num_parallel = threads if work.device.type == "cpu" else 1
    with measure() as usage, cpu_threads(threads // num_parallel), ThreadPoolExecutor(num_parallel) as pool:
        for latents in pool.map(sample, conditions.batches(work.config.batch_size), count()):
            parts.append(latents)
            advance(generator.settings.num_evaluations * len(latents))
    return torch.cat(parts), usage


def _tensors_mb(work: Workload, generator: VideoGenerator, conditions: Conditions) -> float:
    """MiB of the tensors that sampling a batch makes, counted in one that is not timed."""
    batch = conditions.part(slice(work.config.batch_size)).to(work.device)
    repeated = generator.in_steps(min(generator.settings.num_steps, 2))  # later steps hold what the second does
    memory = TensorMemory()
    with memory:
        repeated.sample(batch.text, batch.image_tokens, batch.prefix, work.seed)
    return memory.peak_mb


def _latency_s(work: Workload, generator: VideoGenerator, conditions: Conditions) -> float:
    """Seconds for one clip alone, after a warm-up of one step; the median of several where they are short."""
    one = conditions.part(slice(1)).to(work.device)
    generator.in_steps(1).sample(one.text, one.image_tokens, one.prefix, work.seed)
    taken: list[float] = []
    while not taken or (sum(taken) < LATENCY_BUDGET_S and len(taken) < MAX_LATENCY_CLIPS):
        with measure() as usage:
            generator.sample(one.text, one.image_tokens, one.prefix, work.seed)
        taken.append(usage.wall_s)
    return statistics.median(taken)
