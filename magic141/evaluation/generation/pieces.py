"""The pieces of stage `generate`, each complete or absent: a variant's short clips, or its long videos."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from magic141.artifacts.publication import link_or_copy, written_aside
from magic141.evaluation.generation.long_videos import long_evaluations, run_long, show_long
from magic141.evaluation.generation.model_folders import ModelFolders
from magic141.evaluation.generation.short_videos import run_short, short_evaluations, show_short
from magic141.evaluation.generation.workload import Advance, Workload
from magic141.evaluation.variants import Variant
from magic141.models.device import cpu_threads
from magic141.stage_log import StageLog

RECORD = "record.json"


@dataclass(frozen=True)
class Piece:
    """A variant's short clips, or its long videos.

    Attributes:
        variant: model and sampling settings.
        is_long: whether these are the long videos.
        folder: exists once the piece is finished; holds its part of the artifact, and record.json.
    """

    variant: Variant
    is_long: bool
    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether this process or an earlier one has made it."""
        return self.folder.is_dir()

    @property
    def record(self) -> Any:
        """What `run_short` or `run_long` returned for it."""
        return json.loads((self.folder / RECORD).read_text())

    def num_evaluations(self, work: Workload) -> int:
        """Network evaluations that it takes, counted per clip."""
        return (long_evaluations if self.is_long else short_evaluations)(work, self.variant)

    def make(self, work: Workload, network: Any, advance: Advance) -> None:
        """Samples it into a temporary folder, which becomes `folder` once complete."""
        generator = self.variant.generator(network, work.null_text, work.latent_frames)
        with written_aside(self.folder) as aside:
            record = (run_long if self.is_long else run_short)(work, self.variant, generator, aside, advance)
            (aside / RECORD).write_text(json.dumps(record))

    def deliver(self, work: Workload, out: Path, log: StageLog) -> None:
        """Links or copies its part into the artifact and logs it; `folder` stays as it is."""
        ignored = shutil.ignore_patterns(RECORD)
        shutil.copytree(self.folder, out, copy_function=link_or_copy, ignore=ignored, dirs_exist_ok=True)
        if self.is_long:
            show_long(self.variant, out, log)
        else:
            show_short(work, self.variant, out, log)


def list_pieces(variants: Sequence[Variant], long_variants: Sequence[Variant], folder: Path) -> list[Piece]:
    """All pieces below `folder` in the order in which they are made, grouped by model."""
    pieces = [Piece(variant, False, folder / variant.name) for variant in variants]
    pieces += [Piece(variant, True, folder / f"long-{variant.name}") for variant in long_variants]
    models = list(dict.fromkeys(piece.variant.model for piece in pieces))
    return sorted(pieces, key=lambda piece: models.index(piece.variant.model))


def make_pieces(work: Workload, folders: ModelFolders, pieces: Sequence[Piece], advance: Advance) -> None:
    """Makes pieces in this process, one network at a time: four of the real size do not fit."""
    with cpu_threads(work.config.num_threads), torch.no_grad():
        for name in dict.fromkeys(piece.variant.model for piece in pieces):
            network = folders.load(name, work.device)
            for piece in (piece for piece in pieces if piece.variant.model == name):
                piece.make(work, network, advance)
            del network
