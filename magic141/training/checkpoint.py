"""Checkpoints of a training run: the complete training state.

A folder holds `engines/NAME` (weights, optimizer, counters, as the engine writes them), `objective.pt` (what an
objective has alike on all workers, such as the EMA), and of every worker `objective-RANK.pt` (what it has of its own,
such as replayed batches, and its meters) and `random-RANK.pt`. `info.json` says how far training was, and how placed.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from magic141.errors import UserError
from magic141.training.context import TrainContext
from magic141.training.meter import Meter
from magic141.training.objective import Objective
from magic141.training.random_numbers import random_state, set_random_state

_METERS = "loop.meters"  # beside the objective's own entries


@dataclass(frozen=True)
class CheckpointInfo:
    """Metadata of a checkpoint.

    Attributes:
        step: optimizer steps done.
        engine: the engine that wrote it.
        world_size: the number of workers that wrote it.
        sequence_parallel_size: how many of them split the tokens of the same clips.
        zero_stage: the ZeRO stage of its placement, which DeepSpeed alone heeds.
        seconds: wall time of training up to here, over all attempts.
        cpu_seconds: CPU time of all workers up to here, over all attempts.
        peak_memory_mb: as in `LoopResult`, up to here.
        num_skipped: steps up to here with an update that was skipped for a non-finite gradient.
    """

    step: int
    engine: str
    world_size: int
    sequence_parallel_size: int
    zero_stage: int
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    num_skipped: int

    @property
    def num_shares(self) -> int:
        """Shares into which batches were divided."""
        return self.world_size // self.sequence_parallel_size

    def writer(self, context: TrainContext) -> int:
        """The rank of the worker whose own state a worker of today takes: its own, or among others one of its share."""
        if (self.world_size, self.num_shares) == (context.world_size, context.num_shares):
            return context.rank
        return context.share % self.num_shares * self.sequence_parallel_size


def step_name(step: int) -> str:
    """A checkpoint's name; steps before 0 have one, too."""
    return f"step-{step:06d}"


def step_of(name: str) -> int:
    """The inverse of `step_name`."""
    return int(name.removeprefix("step-"))


def write_checkpoint(
    folder: Path, objective: Objective, meters: Sequence[Meter], context: TrainContext, info: CheckpointInfo
) -> None:
    """Writes this worker's part of a checkpoint (collective: the engines may gather)."""
    for name, engine in objective.engines.items():
        engine.save(folder / "engines" / name)
    own = objective.state_dict()
    common = {name: own.pop(name) for name in objective.replicated}
    torch.save(own | {_METERS: [meter.state_dict() for meter in meters]}, folder / f"objective-{context.rank}.pt")
    torch.save(random_state(), folder / f"random-{context.rank}.pt")
    if context.is_main:
        torch.save(common, folder / "objective.pt")
        (folder / "info.json").write_text(json.dumps(asdict(info)))


def read_checkpoint(
    folder: Path, objective: Objective, meters: Sequence[Meter], context: TrainContext
) -> CheckpointInfo:
    """Put a checkpoint back into `objective`, the loop's meters, and the random generators.

    Plain and DDP checkpoints are interchangeable, and with another number of workers training continues correctly,
    though not bit for bit. DeepSpeed's are split over the workers and need the same placement again.
    """
    info = read_info(folder)
    require_compatible(info, context)
    for name, engine in objective.engines.items():
        engine.load(folder / "engines" / name)
    rank = info.writer(context)
    files = (folder / "objective.pt", folder / f"objective-{rank}.pt")
    common, own = map(_load, files)
    for meter, state in zip(meters, own.pop(_METERS), strict=True):
        meter.load_state_dict(state)
    objective.load_state_dict(common | own)
    if context.share < info.num_shares:
        set_random_state(_load(folder / f"random-{rank}.pt"))
    return info


def is_whole(folder: Path) -> bool:
    """Whether no file that a checkpoint needs is missing or was cut short, as by a machine that lost its power.

    Files of workers that it does not have do not matter.
    """
    try:
        ranks = range(read_info(folder).world_size)
    except (OSError, ValueError, TypeError):
        return False
    own = [folder / f"{kind}-{rank}.pt" for kind in ("objective", "random") for rank in ranks]
    return all(map(zipfile.is_zipfile, [folder / "objective.pt", *own, *(folder / "engines").rglob("*.pt")]))


def read_info(folder: Path) -> CheckpointInfo:
    """Reads a checkpoint's metadata."""
    return CheckpointInfo(**json.loads((folder / "info.json").read_text()))


def require_compatible(info: CheckpointInfo, context: TrainContext) -> None:
    """Raises UserError if DeepSpeed is involved and split the checkpoint differently from these workers."""
    placement = context.placement
    if "deepspeed" not in (info.engine, placement.engine):
        return
    then = _splitting(info.engine, info.world_size, info.sequence_parallel_size, info.zero_stage)
    now = _splitting(placement.engine, context.world_size, placement.sequence_parallel_size, placement.zero_stage)
    if now != then:
        raise UserError(
            f"placement.{now}: {context.run_dir} holds a checkpoint of step {info.step}, written with {then}; use "
            "these settings again, or delete that folder"
        )


def _splitting(engine: str, num_workers: int, sequence_parallel_size: int, zero_stage: int) -> str:
    return (
        f"engine = {engine}, num_workers = {num_workers}, sequence_parallel_size = {sequence_parallel_size}, "
        f"zero_stage = {zero_stage}"
    )


def _load(file: Path) -> Any:
    """Loads a file of ours into host memory: on a GPU, a second copy of all states may not fit beside the first.

    Not with weights_only, because objectives store instances of their own classes.
    """
    return torch.load(file, map_location="cpu", weights_only=False)
