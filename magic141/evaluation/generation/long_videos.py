"""Generates the long videos of the evaluation and measures their cost window by window."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from magic141.accelerator import finish_gpu_work
from magic141.data.videos.sheets import contact_sheet
from magic141.diffusion.long_video import fresh_latent_frames
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation.media import read_image, save_rows, save_video
from magic141.evaluation.generation.performance import peak_megabytes
from magic141.evaluation.generation.suite import Conditions, clip_conditions, long_video_seed
from magic141.evaluation.generation.workload import Advance, Workload
from magic141.evaluation.variants import Variant
from magic141.models.frames import num_pixel_frames
from magic141.models.generator import VideoGenerator
from magic141.stage_log import StageLog

NUM_LONG_VIDEOS_SHOWN = 3


def make_long(
    work: Workload, variant: Variant, generator: VideoGenerator, batches: range, out: Path, advance: Advance
) -> list[dict[str, Any]]:
    """Generates long videos batch by batch; returns each batch's number of clips, and cost and memory per window.

    Their pixels are kept for exact scores, where there are any, and of the first ones as videos.
    """
    parts, costs = [], []
    conditions = clip_conditions(work.heldout, work.rows_of(work.long_rows, batches))
    for number, batch in zip(batches, conditions.batches(work.config.batch_size), strict=True):
        seed = long_video_seed(work.seed, number)
        latents, windows = long_latents(work.config, generator, batch.to(work.device), seed, advance)
        parts.append(latents.cpu())
        costs.append({"num_clips": len(latents), "windows": windows})
    first = batches.start * work.config.batch_size
    _write(work, variant, torch.cat(parts), first, out / "long")
    return costs


def _write(work: Workload, variant: Variant, latents: Tensor, first: int, folder: Path) -> None:
    """Writes the long videos [N, C, T, h, w] from number `first` on."""
    num_shown, scored = max(NUM_LONG_VIDEOS_SHOWN - first, 0), work.info.has_ground_truth
    frames = work.decode(latents if scored else latents[:num_shown])
    folder.mkdir(exist_ok=True)
    if scored:
        save_file({"frames": frames}, folder / f"{variant.name}.safetensors")
    shown = frames[:num_shown].numpy()
    for number, clip in enumerate(shown, first):
        save_video(folder / variant.name / f"{number:02d}.mp4", clip, work.info.fps)
    if len(shown):
        save_rows(folder / f"{variant.name}.png", contact_sheet(shown, max_columns=16))
    if variant.model == "student" and first == 0:
        save_video(folder / "long.mp4", shown[0], work.info.fps)


def mean_costs(batches: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Cost per clip and memory of every window, averaged over the clips of batches as `make_long` returns them."""
    sizes = [batch["num_clips"] for batch in batches]
    windows = zip(*(batch["windows"] for batch in batches), strict=True)
    return [{name: float(np.average([b[name] for b in w], weights=sizes)) for name in w[0]} for w in windows]


def show_long(variant: Variant, folder: Path, log: StageLog) -> None:
    """Logs a variant's long videos below `folder`."""
    if variant.model == "student":
        log.file(folder / "long" / "long.mp4", "long")
    log.image(f"long/{variant.name}", read_image(folder / "long" / f"{variant.name}.png"))


class Mark(NamedTuple):
    """A moment between two windows.

    Attributes:
        wall_s: seconds by the clock.
        cpu_s: seconds of the CPU.
        memory_mb: `peak_megabytes`, in MiB.
    """

    wall_s: float
    cpu_s: float
    memory_mb: float

    @classmethod
    def now(cls, device: torch.device) -> Mark:
        """This moment, once all GPU work begun is finished."""
        finish_gpu_work()
        return cls(time.perf_counter(), time.process_time(), peak_megabytes(device))


def long_latents(
    config: GenerateConfig, generator: VideoGenerator, conditions: Conditions, seed: int, advance: Advance
) -> tuple[Tensor, list[dict[str, float]]]:
    """Latents of the long videos, and cost and memory per window.

    Fused windows are made together: each has an equal share of the time, and the peak memory of all.
    """
    device, num_evaluations = conditions.prefix.device, generator.settings.num_evaluations * len(conditions)
    marks = [Mark.now(device)]

    def on_window() -> None:
        marks.append(Mark.now(device))
        advance(num_evaluations)

    given = (conditions.text, conditions.image_tokens, conditions.prefix)
    windows = (config.long_video_windows, config.long_video_carried)
    if config.long_video_scheme == "chained":
        latents = generator.chain(*given, *windows, seed, on_window)
    else:
        latents = generator.fuse(*given, *windows, seed)
        advance(num_evaluations * config.long_video_windows)
        marks = _spread(marks[0], Mark.now(device), config.long_video_windows)
    return latents, _window_costs(marks, len(conditions), "gpu_mb" if device.type == "cuda" else "rss_mb")


def _spread(begin: Mark, end: Mark, num_windows: int) -> list[Mark]:
    """Marks as if the windows had been made one after the other; the peak is that of all, as no window ran alone."""
    times = np.linspace(begin[:2], end[:2], num_windows + 1).tolist()
    return [Mark(wall_s, cpu_s, end.memory_mb) for wall_s, cpu_s in times]


def _window_costs(marks: Sequence[Mark], num_clips: int, memory: str) -> list[dict[str, float]]:
    """Cost per clip between every two marks, with the memory named `memory`."""
    return [
        {
            "wall_ms_per_clip": 1000 * (after.wall_s - before.wall_s) / num_clips,
            "cpu_ms_per_clip": 1000 * (after.cpu_s - before.cpu_s) / num_clips,
            memory: after.memory_mb,
        }
        for before, after in pairwise(marks)
    ]


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
    fresh = fresh_latent_frames(latent_frames, carried)
    spans = [(0, num_pixel_frames(latent_frames, temporal_factor))]
    for window in range(1, num_windows):
        stop = latent_frames + window * fresh
        start, end = (num_pixel_frames(latent, temporal_factor) for latent in (stop - fresh - carried, stop))
        spans.append((start, end))
    return spans
