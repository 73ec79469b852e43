"""Generates the videos that variants are judged by: continued held-out clips, a prompt suite, long videos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from magic141.accelerator import give_back_freed_memory
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation.costs import Costs, variant_record
from magic141.evaluation.generation.long_videos import mean_costs, show_long, write_windows
from magic141.evaluation.generation.model_folders import ModelFolders
from magic141.evaluation.generation.parts import CLIPS, LONG
from magic141.evaluation.generation.pieces import Piece, deliver, list_pieces, make_pieces
from magic141.evaluation.generation.ray_launch import make_on_ray
from magic141.evaluation.generation.short_videos import show_short
from magic141.evaluation.generation.workload import Workload, prepare_workload, write_conditions
from magic141.evaluation.measurement import SAMPLED_ON
from magic141.evaluation.variants import Variant, list_variants, long_video_variants
from magic141.models.config import TransformerConfig
from magic141.models.device import cpu_threads, sampling_device
from magic141.stage_log import StageLog
from magic141.training.dmd2.config import Dmd2Config


def generate_suite(
    config: GenerateConfig,
    dmd2: Dmd2Config,
    model: TransformerConfig,
    data: Path,
    clip: Path,
    index: Path,
    models: ModelFolders,
    out: Path,
    log: StageLog,
    seed: int,
    run_dir: Path,
) -> None:
    """Runs every variant; writes stage `generate`: variants.json, exact/, suite/, showcase/, long/.

    Finished pieces are kept in `run_dir`; a later call with the same settings reuses them.

    Raises:
        UserError: if a network is too large for a CPU and there is no GPU.
    """
    folders = models.resolved()
    if config.num_workers == 1:  # otherwise workers check, maybe on another machine
        folders.refuse_days_on_cpu(config, sampling_device())
    with cpu_threads(config.num_threads), torch.no_grad():
        work = prepare_workload(config, model, data, clip, index, log, seed)
        write_conditions(work, out)
    if config.num_workers > 1:
        work = work.for_workers()
        give_back_freed_memory()  # the codec's, on a GPU that a worker may use
    variants, long_variants = list_variants(config, dmd2), long_video_variants(config, dmd2)
    pieces = list_pieces(work, variants, long_variants, run_dir.resolve())
    _make_missing(work, folders, pieces, log)
    deliver(pieces, out)
    _show(variants, long_variants, out, log)
    records = [variant_record(v, [Costs(**costs) for costs in _costs(pieces, v, CLIPS)]) for v in variants]
    (out / "variants.json").write_text(json.dumps(records, indent=1))
    windows = {v.name: mean_costs([batch for made in _costs(pieces, v, LONG) for batch in made]) for v in long_variants}
    write_windows(work, windows, out)
    log.summary({f"{record['name']}/cpu_ms_per_clip": record["cpu_ms_per_clip"] for record in records})
    log.summary({SAMPLED_ON: " + ".join(sorted({record["device"] for record in records}))})


def _make_missing(work: Workload, folders: ModelFolders, pieces: Sequence[Piece], log: StageLog) -> None:
    """Makes the pieces that no earlier call has finished, here or on workers."""
    missing = [piece for piece in pieces if not piece.is_finished]
    if len(missing) < len(pieces):
        log.note(f"{len(pieces) - len(missing)} of {len(pieces)} pieces were finished by an earlier attempt")
    make = make_pieces if work.config.num_workers == 1 else make_on_ray
    with log.progress(sum(piece.num_evaluations for piece in missing), "evaluation") as advance:
        make(work, folders, missing, advance)


def _show(variants: Sequence[Variant], long_variants: Sequence[Variant], out: Path, log: StageLog) -> None:
    """Logs what was made, whichever attempt made it."""
    for variant in variants:
        show_short(variant, out, log)
    for variant in long_variants:
        show_long(variant, out, log)


def _costs(pieces: Sequence[Piece], variant: Variant, part: str) -> list[Any]:
    """What the shares of a variant's part cost, in the order of its batches."""
    return [costs for piece in pieces for costs in piece.costs(variant, part)]
