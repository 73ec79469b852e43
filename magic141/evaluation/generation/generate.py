"""Generates the videos that variants are judged by: continued held-out clips, a prompt suite, long videos."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from magic141.accelerator import give_back_freed_memory
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation.long_videos import write_windows
from magic141.evaluation.generation.model_folders import ModelFolders
from magic141.evaluation.generation.pieces import Piece, list_pieces, make_pieces
from magic141.evaluation.generation.ray_launch import make_on_ray
from magic141.evaluation.generation.workload import Workload, prepare_workload, write_conditions
from magic141.evaluation.variants import list_variants, long_video_variants
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

    Finished parts are kept in `run_dir`; a later call with the same settings reuses them.

    Raises:
        UserError: if a network is too large for a CPU and there is no GPU.
    """
    folders = models.resolved()
    pieces = list_pieces(list_variants(config, dmd2), long_video_variants(config, dmd2), run_dir.resolve())
    if config.num_workers == 1:  # otherwise workers check, maybe on another machine
        folders.refuse_days_on_cpu(config, sampling_device())
    with cpu_threads(config.num_threads), torch.no_grad():
        work = prepare_workload(config, model, data, clip, index, log, seed)
        write_conditions(work, out)
    if config.num_workers > 1:
        work = work.for_workers()
        give_back_freed_memory()  # the codec's, on a GPU that a worker may use
    _make_missing(work, folders, pieces, log)
    for piece in pieces:
        piece.deliver(work, out, log)
    records = [piece.record for piece in pieces if not piece.is_long]
    (out / "variants.json").write_text(json.dumps(records, indent=1))
    write_windows(work, {piece.variant.name: piece.record for piece in pieces if piece.is_long}, out)
    log.summary({f"{record['name']}/cpu_ms_per_clip": record["cpu_ms_per_clip"] for record in records})


def _make_missing(work: Workload, folders: ModelFolders, pieces: list[Piece], log: StageLog) -> None:
    """Makes the pieces that no earlier call has finished, here or on workers."""
    missing = [piece for piece in pieces if not piece.is_finished]
    if len(missing) < len(pieces):
        log.note(f"{len(pieces) - len(missing)} of {len(pieces)} parts were finished by an earlier attempt")
    make = make_pieces if work.config.num_workers == 1 else make_on_ray
    with log.progress(sum(piece.num_evaluations(work) for piece in missing), "evaluation") as advance:
        make(work, folders, missing, advance)
