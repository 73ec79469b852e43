"""Generates the long videos of the evaluation and measures their cost window by window."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from magic141.accelerator import finish_gpu_work
from magic141.data.videos.sheets import contact_sheet
from magic141.diffusion.long_video import fresh_latent_frames
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation.media import read_image, save_image, save_video
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
    """Generates long videos of all long clips into `out`, batch by batch; returns cost and memory per window.

    Their pixels are kept for exact scores, where there are any, and of some as videos.
    """
    parts, costs = [], []
    for number, batch in enumerate(clip_conditions(work.heldout, work.long_rows).batches(work.config.batch_size)):
        seed = long_video_seed(work.seed, number)
        latents, taken = long_latents(work.config, generator, batch.to(work.device), seed, advance)
        parts.append(latents.cpu())
        costs.append(taken)
    made, scored = torch.cat(parts), work.info.has_ground_truth
    frames = work.decode(made if scored else made[:NUM_LONG_VIDEOS_SHOWN])
    folder = out / "long"
    folder.mkdir()
    if scored:
        save_file({"frames": frames}, folder / f"{variant.name}.safetensors")
    shown = frames[:NUM_LONG_VIDEOS_SHOWN].numpy()
    for number, clip in enumerate(shown):
        save_video(folder / variant.name / f"{number:02d}.mp4", clip, work.info.fps)
    save_image(folder / f"{variant.name}.png", contact_sheet(shown, max_columns=16))
    if variant.model == "student":
        save_video(folder / "long.mp4", shown[0], work.info.fps)
    return mean_costs(costs, [len(part) for part in parts])


def mean_costs(batches: Sequence[list[dict[str, float]]], sizes: Sequence[int]) -> list[dict[str, float]]:
    """Cost per clip and memory of every window, averaged over batches of `sizes` clips."""
    windows = zip(*batches, strict=True)
    return [{name: float(np.average([b[name] for b in w], weights=sizes)) for name in w[0]} for w in windows]


def show_long(variant: Variant, folder: Path, log: StageLog) -> None:
    """Logs the videos that `run_long` has written below `folder`."""
    if variant.model == "student":
        log.file(folder / "long" / "long.mp4", "long")
    log.image(f"long/{variant.name}", read_image(folder / "long" / f"{variant.name}.png"))


def long_evaluations(work: Workload, variant: Variant) -> int:
    """Network evaluations of `run_long`, counted per clip."""
    return variant.num_evaluations * work.config.long_video_windows * len(work.long_rows)


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
