"""Generates batches of a variant's short videos: continued held-out clips, the prompt suite, determined futures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from magic141.data.videos.sheets import contact_sheet
from magic141.evaluation.generation.costs import costs_of
from magic141.evaluation.generation.media import read_image, save_rows, save_video
from magic141.evaluation.generation.performance import Usage, measure
from magic141.evaluation.generation.suite import Conditions, clip_conditions, clip_seed
from magic141.evaluation.generation.workload import NUM_KNOWN, Advance, Workload
from magic141.evaluation.variants import Variant
from magic141.models.device import cpu_threads
from magic141.models.frames import num_pixel_frames
from magic141.models.generator import VideoGenerator
from magic141.stage_log import StageLog


class SeededBatch(NamedTuple):
    """Conditions of a batch of clips, and the seed of their noise."""

    conditions: Conditions
    seed: int


def make_clips(
    work: Workload, variant: Variant, generator: VideoGenerator, batches: range, out: Path, advance: Advance
) -> dict[str, Any]:
    """Continues held-out clips; returns what that cost, as `costs_of` says.

    The first ones are written as videos, too; of the others pixels are kept only for exact scores.
    """
    rows = work.rows_of(work.rows, batches)
    seeded = _clip_batches(work, rows, batches)
    latents, usage = sample_batches(work, generator, seeded, advance)
    first = batches.start * work.config.batch_size
    num_shown, scored = max(work.config.num_showcase_clips - first, 0), work.info.has_ground_truth
    frames = work.decode(latents if scored else latents[:num_shown])
    (out / "exact").mkdir(exist_ok=True)
    save_file(
        {"latents": latents, **({"frames": frames} if scored else {})}, out / "exact" / f"{variant.name}.safetensors"
    )
    shown = frames[:num_shown].numpy()
    for number, clip in enumerate(shown, first):
        save_video(out / "showcase" / variant.name / f"{number:02d}.mp4", clip, work.info.fps)
    if len(shown):
        save_rows(sheet_file(out, variant), contact_sheet(shown))
    return asdict(costs_of(generator, usage, seeded[0].conditions.to(work.device), len(rows), is_first=first == 0))


def make_suite(
    work: Workload, variant: Variant, generator: VideoGenerator, batches: range, out: Path, advance: Advance
) -> None:
    """Generates videos for the prompts, seed after seed, from each prompt's retrieved image."""
    prompts = list(work.suite.batches(work.config.batch_size))
    places = [divmod(number, len(prompts)) for number in batches]  # seed and batch of prompts
    seeded = [SeededBatch(prompts[batch], clip_seed(work.seed + offset, batch)) for offset, batch in places]
    latents, _ = sample_batches(work, generator, seeded, advance)
    numbers = [
        (batch * work.config.batch_size + place, offset)
        for offset, batch in places
        for place in range(len(prompts[batch]))
    ]
    for (number, offset), clip in zip(numbers, work.decoded(latents), strict=True):
        save_video(out / "suite" / variant.name / f"{number:02d}-s{offset}.mp4", clip.numpy(), work.info.fps)


def make_continuations(
    work: Workload, variant: Variant, generator: VideoGenerator, batches: range, out: Path, advance: Advance
) -> None:
    """Continues clips from their first latent frames, which show the velocity and so determine the future."""
    rows = work.rows_of(work.continued_rows, batches)
    latents, _ = sample_batches(work, generator, _clip_batches(work, rows, batches, NUM_KNOWN), advance)
    frames = work.decode(latents)
    known = num_pixel_frames(NUM_KNOWN, work.info.temporal_factor)
    truth = work.heldout.pixels[rows, : frames.shape[1]]
    tensors = {"frames": frames[:, known:].contiguous(), "truth": truth[:, known:].contiguous()}
    (out / "exact").mkdir(exist_ok=True)
    save_file(tensors, out / "exact" / f"continuation-{variant.name}.safetensors")


def _clip_batches(work: Workload, rows: Sequence[int], batches: range, num_known: int = 1) -> list[SeededBatch]:
    """The held-out clips `rows` in `batches`; a batch's noise depends on its number alone."""
    parts = clip_conditions(work.heldout, rows, num_known).batches(work.config.batch_size)
    return [SeededBatch(part, clip_seed(work.seed, number)) for number, part in zip(batches, parts, strict=True)]


def show_short(variant: Variant, folder: Path, log: StageLog) -> None:
    """Logs a variant's showcase below `folder`."""
    for file in sorted((folder / "showcase" / variant.name).iterdir()):
        log.file(file, f"showcase/{variant.name}")
    log.image(f"samples/{variant.name}", read_image(sheet_file(folder, variant)))


def sheet_file(folder: Path, variant: Variant) -> Path:
    """The contact sheet of a variant's showcase."""
    return folder / "showcase" / f"{variant.name}.png"


def sample_batches(
    work: Workload, generator: VideoGenerator, batches: Sequence[SeededBatch], advance: Advance
) -> tuple[Tensor, Usage]:
    """Latents [N, C, T, h, w] on the CPU, and the cost of sampling them."""

    def sample(batch: SeededBatch) -> Tensor:
        here = batch.conditions.to(work.device)
        return generator.sample(here.text, here.image_tokens, here.prefix, batch.seed).cpu()

    parts: list[Tensor] = []
    at_once = work.batches_at_once
    with measure() as usage, cpu_threads(work.config.num_threads // at_once), ThreadPoolExecutor(at_once) as pool:
        for latents in pool.map(sample, batches):
            parts.append(latents)
            advance(generator.settings.num_evaluations * len(latents))
    return torch.cat(parts), usage
