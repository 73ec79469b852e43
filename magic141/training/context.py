"""One worker's place in a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from magic141.training.config import PlacementConfig

T = TypeVar("T")


@dataclass(frozen=True)
class TrainContext:
    """One worker's place in a training run.

    Attributes:
        rank: this worker's number, 0 to world_size - 1.
        world_size: number of data-parallel workers.
        device: where this worker's models are.
        run_dir: the run's folder, shared by all workers and kept between attempts.
        seed: the stage's seed, the same on every worker. The loop has already seeded torch, numpy and random with
            (seed, rank) when `ObjectiveSpec.build` is called; engines broadcast rank 0's weights.
        placement: engine, workers, resources.
    """

    rank: int
    world_size: int
    device: torch.device
    run_dir: Path
    seed: int
    placement: PlacementConfig

    @property
    def is_main(self) -> bool:
        """Whether this worker is the one that logs and exports."""
        return self.rank == 0


def barrier(context: TrainContext) -> None:
    """Waits for all workers."""
    if context.world_size > 1:
        dist.barrier()


def gathered(mine: T, context: TrainContext) -> list[T]:
    """What all workers have, by rank."""
    values = [mine] * context.world_size
    if context.world_size > 1:
        dist.all_gather_object(values, mine)
    return values


def sum_over_workers(values: torch.Tensor, context: TrainContext) -> torch.Tensor:
    """The sum of `values` over all workers, on all workers."""
    if context.world_size > 1:
        values = values.to(context.device)
        dist.all_reduce(values)
    return values.cpu()
