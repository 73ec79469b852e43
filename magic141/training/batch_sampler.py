"""Chooses the clips of every worker's batch, as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from magic141.data.dataset import ClipDataset
from magic141.training.config import TrainConfig
from magic141.training.context import TrainContext


@dataclass(frozen=True)
class BatchSampler:
    """Shuffled passes over the clips, without replacement within a pass, divided into shares.

    The union of all shares at a step does not depend on how many shares there are. It is of clips of one size, so that
    no share takes longer than the others; sizes come in turns, each as often as its clips are many.

    Attributes:
        groups: rows of the clips of each size in the data set.
        batch_size_per_worker: clips that one worker takes per step.
        share: this worker's share, from 0.
        num_shares: number of shares.
        seed: seed of the shuffles.
    """

    groups: Sequence[Tensor]
    batch_size_per_worker: int
    share: int = 0
    num_shares: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        num_clips = sum(map(len, self.groups))
        assert self.batch_size <= num_clips, (self.batch_size, num_clips)  # `train` has checked it

    @classmethod
    def of(cls, dataset: ClipDataset, config: TrainConfig, context: TrainContext) -> Self:
        """That of a worker."""
        return cls(
            groups=list(dataset.by_size.values()),
            batch_size_per_worker=config.clips_per_worker,
            share=context.share,
            num_shares=context.num_shares,
            seed=context.seed,
        )

    @property
    def batch_size(self) -> int:
        """Clips per step over all workers."""
        return self.batch_size_per_worker * self.num_shares

    def indices(self, step: int) -> Tensor:
        """Indices of this worker's clips at 0-based `step`, int64 [batch_size_per_worker].

        A batch at a boundary between passes takes the end of one pass and the start of the next.
        """
        size, taken = self._turn(step)
        rows = self.groups[size]
        start = taken[size] * self.batch_size + self.share * self.batch_size_per_worker
        positions = range(start, start + self.batch_size_per_worker)
        passes = [divmod(position, len(rows)) for position in positions]
        return rows[torch.stack([_order(len(rows), self.seed, epoch)[place] for epoch, place in passes])]

    def batches_before(self, step: int) -> list[int]:
        """How many batches were taken of each size before a step."""
        return self._turn(step)[1]

    def _turn(self, step: int) -> tuple[int, list[int]]:
        """The size whose turn it is, and how many batches were taken of each before.

        In a pass over the data set every size has as many batches as are full by its end, in a random order.
        """
        num_clips = sum(map(len, self.groups))
        epoch = step * self.batch_size // num_clips  # or a later one: incomplete batches are left to the next pass
        while sum(self._num_batches(epoch + 1)) <= step:
            epoch += 1
        before, after = torch.tensor(self._num_batches(epoch)), torch.tensor(self._num_batches(epoch + 1))
        turns = torch.repeat_interleave(after - before)
        turns = turns[_order(len(turns), self.seed, epoch)]
        place = step - int(before.sum())
        taken = before + torch.bincount(turns[:place], minlength=len(self.groups))
        return int(turns[place]), taken.tolist()

    def _num_batches(self, epoch: int) -> list[int]:
        """Batches of each size that are full before a pass."""
        return [epoch * len(rows) // self.batch_size for rows in self.groups]


@lru_cache(maxsize=8)
def _order(num: int, seed: int, epoch: int) -> Tensor:
    """The order of the clips, or of the batches, in one pass, int64 [num]."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num, generator=generator)


def own_share(dataset: ClipDataset, num_clips: int, context: TrainContext) -> Tensor:
    """This worker's rows of about `num_clips` validation clips, spread over as many videos as possible.

    As many on every worker (sharded networks need that), different ones where there are enough.
    """
    order = torch.tensor(dataset.in_turns(range(len(dataset))))
    num = max(1, num_clips // context.num_shares)
    return order[(torch.arange(num) + context.share * num) % len(order)]
