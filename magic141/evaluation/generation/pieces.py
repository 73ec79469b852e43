"""The pieces of stage `generate`, each complete or absent: some batches of the variants of one model.

A piece is what a worker makes at once, and what a crash may cost. Its files have the names that they have in the
artifact; a file that several pieces made rows of is put together there.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from magic141.artifacts.publication import link_or_copy, written_aside
from magic141.evaluation.generation.media import read_image, save_image
from magic141.evaluation.generation.model_folders import ModelFolders
from magic141.evaluation.generation.parts import LONG, PARTS, SHORT, Share
from magic141.evaluation.generation.workload import Advance, Workload
from magic141.evaluation.variants import ModelName, Variant
from magic141.models.device import cpu_threads

RECORD = "record.json"


@dataclass(frozen=True)
class Piece:
    """Some batches of the variants of one model.

    Attributes:
        model: the network that it takes.
        shares: the batches.
        folder: exists once the piece is finished; holds its files, and record.json.
        num_evaluations: network evaluations that it takes, counted per clip.
    """

    model: ModelName
    shares: tuple[Share, ...]
    folder: Path
    num_evaluations: int

    @property
    def is_finished(self) -> bool:
        """Whether this process or an earlier one has made it."""
        return self.folder.is_dir()

    def costs(self, variant: Variant, part: str) -> list[Any]:
        """What this piece's share of a variant's part cost, if it has one."""
        kept = json.loads((self.folder / RECORD).read_text())
        own = zip(self.shares, kept, strict=True)
        return [costs for share, costs in own if (share.variant, share.part) == (variant, part)]

    def make(self, work: Workload, network: Any, advance: Advance) -> None:
        """Samples it into a temporary folder, which becomes `folder` once complete."""
        with written_aside(self.folder) as aside:
            costs = []
            for variant, part, batches in self.shares:
                generator = variant.generator(network, work.null_text, work.latent_frames)
                costs.append(PARTS[part].make(work, variant, generator, batches, aside, advance))
            (aside / RECORD).write_text(json.dumps(costs))


def list_pieces(
    work: Workload, variants: Sequence[Variant], long_variants: Sequence[Variant], folder: Path
) -> list[Piece]:
    """All pieces below `folder`, in the order in which they are made."""
    wanted = [*((variant, SHORT) for variant in variants), *((variant, (LONG,)) for variant in long_variants)]
    pieces: list[Piece] = []
    for model in dict.fromkeys(variant.model for variant, _ in wanted):
        rounds = [
            share
            for variant, parts in wanted
            if variant.model == model
            for part in parts
            for share in _rounds(work, variant, part)
        ]
        pieces += _cut(work, model, rounds, folder)
    return pieces


def _rounds(work: Workload, variant: Variant, part: str) -> Iterator[Share]:
    """A variant's part in shares of as many batches as are sampled at once, which no cut separates."""
    num_batches, at_once = len(PARTS[part].batch_sizes(work)), work.batches_at_once
    for start in range(0, num_batches, at_once):
        yield Share(variant, part, range(start, min(start + at_once, num_batches)))


def _cut(work: Workload, model: ModelName, rounds: Sequence[Share], folder: Path) -> Iterator[Piece]:
    """Cuts what a model has to make into pieces of about as many evaluations as the config says, or fewer."""
    taken = np.array([share.num_evaluations(work) for share in rounds])
    num_pieces = math.ceil(taken.sum() / work.config.evaluations_per_piece)
    places = ((taken.cumsum() - taken / 2) * num_pieces / taken.sum()).astype(int)
    for place in np.unique(places):
        (own,) = (places == place).nonzero()
        shares = tuple(_joined(rounds[number] for number in own))
        first, last = shares[0], shares[-1]
        name = f"{first.variant.name}-{first.part}-{first.batches.start}"
        name += f"-to-{last.variant.name}-{last.part}-{last.batches.stop - 1}"
        yield Piece(model, shares, folder / name, int(taken[own].sum()))


def _joined(shares: Iterable[Share]) -> Iterator[Share]:
    """Shares of the same variant's part that follow each other as one."""
    for (variant, part), group in groupby(shares, key=lambda share: share[:2]):
        parts = [share.batches for share in group]
        yield Share(variant, part, range(parts[0].start, parts[-1].stop))


def make_pieces(work: Workload, folders: ModelFolders, pieces: Sequence[Piece], advance: Advance) -> None:
    """Makes pieces in this process, one network at a time: four of the real size do not fit."""
    with cpu_threads(work.config.num_threads), torch.no_grad():
        for model, own in groupby(pieces, key=lambda piece: piece.model):
            network = folders.load(model, work.device)
            for piece in own:
                piece.make(work, network, advance)
            del network


def deliver(pieces: Sequence[Piece], out: Path) -> None:
    """Puts the pieces' files into the artifact; the pieces stay as they are."""
    made: dict[Path, list[Path]] = defaultdict(list)
    for piece in pieces:
        for file in sorted(path for path in piece.folder.rglob("*") if path.is_file() and path.name != RECORD):
            made[file.relative_to(piece.folder)].append(file)
    for name, files in made.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        _put_together(files, out / name)


def _put_together(files: Sequence[Path], target: Path) -> None:
    """Writes the rows of all files, tensors or pictures, one below the other; anything else has one file."""
    if target.suffix == ".png":
        save_image(target, np.concatenate([read_image(file) for file in files]))
    elif len(files) > 1:
        tensors = [load_file(file) for file in files]
        save_file({name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}, target)
    else:
        link_or_copy(str(files[0]), str(target))
