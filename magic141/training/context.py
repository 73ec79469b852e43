"""One worker's place in a training run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from magic141.training.config import PlacementConfig

T = TypeVar("T")
# How long a worker waits for the others, as until the first one has the 13B's checkpoint of 260 GB on the disk: at 125
# MB/s, as of a cloud's plain volume, that takes 35 minutes, and Ray's default is 30. Lost workers are noticed at once.
COLLECTIVE_TIMEOUT_S = 3600


@dataclass(frozen=True)
class TrainContext:
    """One worker's place in a training run.

    Attributes:
        rank: this worker's number, 0 to world_size - 1.
        world_size: number of workers.
        device: where this worker's models are.
        run_dir: the run's folder, shared by all workers and kept between attempts.
        seed: the stage's seed, the same on every worker. The loop has already seeded torch, numpy and random with
            (seed, share) when `ObjectiveSpec.build` is called; engines broadcast rank 0's weights.
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

    @property
    def splits_weights(self) -> bool:
        """Whether the weights of all networks are split over the workers."""
        return self.placement.engine == "deepspeed" and self.placement.zero_stage == 3

    @property
    def needs_no_weights(self) -> bool:
        """Whether this worker need not read a network's weights: it gets its part of rank 0's when they are split.

        At 13B a network is 26 or 52 GB, which 64 workers would read from the same disk at once.
        """
        return self.splits_weights and not self.is_main

    @property
    def share(self) -> int:
        """Which of the shares of every batch this worker takes; workers that split their clips' tokens take the same.

        They also draw the same random numbers, and so compute the same from whole clips.
        """
        return self.rank // self.placement.sequence_parallel_size

    @property
    def num_shares(self) -> int:
        """Shares into which a batch is divided."""
        return self.world_size // self.placement.sequence_parallel_size

    @property
    def leads_share(self) -> bool:
        """Whether this worker writes what the workers of its share have alike."""
        return self.rank % self.placement.sequence_parallel_size == 0

    @cached_property
    def sequence_group(self) -> dist.ProcessGroup | None:
        """The workers of this worker's share, if they split tokens; made at its first use, by all workers together."""
        size = self.placement.sequence_parallel_size
        if size == 1:
            return None
        group: dist.ProcessGroup
        group, _ = dist.new_subgroups(size, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
        return group


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


def sum_over_shares(values: torch.Tensor, context: TrainContext) -> torch.Tensor:
    """The sum over all shares, on all workers, of `values` that the workers of a share have alike."""
    return sum_over_workers(values, context) / context.placement.sequence_parallel_size
