"""Generates the long videos of the evaluation and measures their cost window by window."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from magic141.accelerator import finish_gpu_work
from magic141.data.videos.sheets import contact_sheet
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation.media import first_clips, save_video
from magic141.evaluation.generation.performance import peak_megabytes
from magic141.evaluation.generation.suite import Conditions, clip_conditions, long_video_seed
from magic141.evaluation.generation.workload import Advance, Workload
from magic141.evaluation.variants import Variant
from magic141.models.frames import num_pixel_frames
from magic141.models.generator import VideoGenerator
from magic141.stage_log import StageLog

NUM_LONG_VIDEOS_SHOWN = 3


def run_long(
    work: Workload, variant: Variant, generator: VideoGenerator, out: Path, advance: Advance
) -> list[dict[str, float]]:
    """Generates long videos of all long clips into `out`, batch by batch; returns cost and memory per window."""
    parts, costs = [], []
    for number, batch in enumerate(clip_conditions(work.heldout, work.long_rows).batches(work.config.batch_size)):
        seed = long_video_seed(work.seed, number)
        latents, taken = long_latents(work.config, generator, batch.to(work.device), seed, advance)
        parts.append(latents.cpu())
        costs.append(taken)
    frames = work.decode(torch.cat(parts))
    folder = out / "long"
    folder.mkdir()
    save_file({"frames": frames}, folder / f"{variant.name}.safetensors")
    for number, clip in enumerate(frames[:NUM_LONG_VIDEOS_SHOWN].numpy()):
        save_video(folder / variant.name / f"{number:02d}.mp4", clip, work.info.fps)
    if variant.model == "student":
        save_video(folder / "long.mp4", frames[0].numpy(), work.info.fps)
    return mean_costs(costs, [len(part) for part in parts])


def mean_costs(batches: Sequence[list[dict[str, float]]], sizes: Sequence[int]) -> list[dict[str, float]]:
    """Cost per clip and memory of every window, averaged over batches of `sizes` clips."""
    windows = zip(*batches, strict=True)
    return [{name: float(np.average([b[name] for b in w], weights=sizes)) for name in w[0]} for w in windows]


def show_long(variant: Variant, folder: Path, log: StageLog) -> None:
    """Logs the videos that `run_long` has written below `folder`."""
    if variant.model == "student":
        log.file(folder / "long" / "long.mp4", "long")
    clips = first_clips(folder / "long" / f"{variant.name}.safetensors", NUM_LONG_VIDEOS_SHOWN)
    log.image(f"long/{variant.name}", contact_sheet(clips, max_columns=16))


def long_evaluations(work: Workload, variant: Variant) -> int:
    """Network evaluations of `run_long`, counted per clip."""
    return variant.num_evaluations * work.config.long_video_windows * len(work.long_rows)


def long_latents(
    config: GenerateConfig, generator: VideoGenerator, conditions: Conditions, seed: int, advance: Advance
) -> tuple[Tensor, list[dict[str, float]]]:
    """Latents of the long videos, and cost and memory per window (fused: the total, divided by the windows)."""
    device = conditions.prefix.device
    memory = "gpu_mb" if device.type == "cuda" else "rss_mb"
    marks = [_mark(device)]

    def on_window(_: int) -> None:
        marks.append(_mark(device))
        advance(generator.settings.num_evaluations * len(conditions))

    given = (conditions.text, conditions.image_tokens, conditions.prefix)
    windows = (config.long_video_windows, config.long_video_carried)
    if config.long_video_scheme == "chained":
        latents = generator.chain(*given, *windows, seed, on_window)
    else:
        latents = generator.fuse(*given, *windows, seed)
        advance(generator.settings.num_evaluations * len(conditions) * config.long_video_windows)
        marks = np.linspace(marks[0], _mark(device), config.long_video_windows + 1).tolist()
    costs = [
        {
            "window": number,
            "wall_ms_per_clip": 1000 * (after[0] - before[0]) / len(conditions),
            "cpu_ms_per_clip": 1000 * (after[1] - before[1]) / len(conditions),
            memory: after[2],
        }
        for number, (before, after) in enumerate(pairwise(marks))
    ]
    return latents, costs


def _mark(device: torch.device) -> tuple[float, float, float]:
    """Seconds by the clock and of the CPU, and `peak_megabytes`, once all GPU work begun is finished."""
    finish_gpu_work()
    return time.perf_counter(), time.process_time(), peak_megabytes(device)


def write_windows(work: Workload, windows: dict[str, list[dict[str, float]]], out: Path) -> None:
    """Writes windows.json: cost per window, and frames, clips and frame rate of the long videos."""
    config = work.config
    spans = frame_spans(
        config.long_video_windows, work.latent_frames, config.long_video_carried, work.info.temporal_factor
    )
    clips = [{"id": work.heldout.ids[r], "caption": work.heldout.captions[r]} for r in work.long_rows]
    record = {"variants": windows, "frames": spans, "clips": clips, "fps": work.info.fps}
    (out / "long" / "windows.json").write_text(json.dumps(record, indent=1))


def frame_spans(num_windows: int, latent_frames: int, carried: int, temporal_factor: int) -> list[tuple[int, int]]:
    """First and one-past-last pixel frame of each window, including its carried frames but not the anchor."""
    fresh = latent_frames - 1 - carried
    spans = [(0, num_pixel_frames(latent_frames, temporal_factor))]
    for window in range(1, num_windows):
        stop = latent_frames + window * fresh
        start, end = (num_pixel_frames(latent, temporal_factor) for latent in (stop - fresh - carried, stop))
        spans.append((start, end))
    return spans
