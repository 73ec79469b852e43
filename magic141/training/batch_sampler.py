"""Chooses the clips of every worker's batch, as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from magic141.data.dataset import ClipDataset
from magic141.training.context import TrainContext


@dataclass(frozen=True)
class BatchSampler:
    """Shuffled passes over the clips, without replacement within a pass, divided into shares.

    The union of all shares at a step does not depend on how many shares there are.

    Attributes:
        num_clips: clips in the data set.
        batch_size_per_worker: clips that one worker takes per step.
        share: this worker's share, from 0.
        num_shares: number of shares.
        seed: seed of the shuffles.
    """

    num_clips: int
    batch_size_per_worker: int
    share: int = 0
    num_shares: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.batch_size <= self.num_clips, (self.batch_size, self.num_clips)  # `train` has checked it

    @property
    def batch_size(self) -> int:
        """Clips per step over all workers."""
        return self.batch_size_per_worker * self.num_shares

    def indices(self, step: int) -> Tensor:
        """Indices of this worker's clips at 0-based `step`, int64 [batch_size_per_worker].

        A batch at a boundary between passes takes the end of one pass and the start of the next.
        """
        start = step * self.batch_size + self.share * self.batch_size_per_worker
        positions = range(start, start + self.batch_size_per_worker)
        passes = [divmod(position, self.num_clips) for position in positions]
        return torch.stack([_order(self.num_clips, self.seed, epoch)[place] for epoch, place in passes])


@lru_cache(maxsize=4)
def _order(num_clips: int, seed: int, epoch: int) -> Tensor:
    """The order of the clips in one pass, int64 [num_clips]."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_clips, generator=generator)


def own_share(dataset: ClipDataset, num_clips: int, context: TrainContext) -> Tensor:
    """This worker's rows of about `num_clips` validation clips, spread over as many videos as possible.

    As many on every worker (sharded networks need that), different ones where there are enough.
    """
    order = torch.tensor(dataset.in_turns(range(len(dataset))))
    num = max(1, num_clips // context.num_shares)
    return order[(torch.arange(num) + context.share * num) % len(order)]
