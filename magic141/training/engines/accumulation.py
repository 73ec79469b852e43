"""Gradient accumulation: a worker's clips of an update go through its networks in several passes to save memory.

All random numbers are drawn for the whole batch and then cut, so that the number of passes changes only the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from magic141.diffusion.samplers import PredictVelocity
from magic141.training.config import TrainConfig
from magic141.training.engines.engine import Engine

LossOfPart = Callable[[slice], tuple[Tensor, Mapping[str, Tensor]]]
"""(rows of the batch) -> the loss to minimise, and metrics; all of them scalars, means over these rows."""


class HasParts(Protocol):
    """Anything with one entry per clip that a network is conditioned on."""

    def part(self, rows: slice) -> Self:
        """The entries `rows`."""
        ...


@dataclass(frozen=True)
class Parts:
    """How a worker's batch is cut into equal parts, one for each pass; the same on all workers.

    Attributes:
        size: clips per pass.
        num: passes per update.
    """

    size: int
    num: int

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """Parts of `placement.clips_per_pass` clips, or a single part if that is not set."""
        return cls(config.clips_per_pass, config.clips_per_worker // config.clips_per_pass)

    @property
    def num_clips(self) -> int:
        """Clips of a worker in an update."""
        return self.size * self.num

    def slices(self, num_clips: int) -> list[slice]:
        """The parts of `num_clips` clips; the last may be smaller."""
        return [slice(start, min(start + self.size, num_clips)) for start in range(0, num_clips, self.size)]

    def accumulate(self, engine: Engine, *terms: LossOfPart) -> dict[str, Tensor]:
        """Runs all forward and backward passes of an update.

        Their gradients add up to the gradient of the mean loss over the whole batch.

        Args:
            engine: the network in training.
            terms: the summands of the loss. Each has a backward pass of its own, so that only one graph is in memory.

        Returns:
            The metrics' means over the whole batch, without a graph; those that several terms have are added up.
        """
        means: dict[str, Tensor] = {}
        passes = [(rows, loss_of) for rows in self.slices(self.num_clips) for loss_of in terms]
        for num_done, (rows, loss_of) in enumerate(passes, 1):
            loss, metrics = loss_of(rows)
            engine.backward(loss / self.num, last=num_done == len(passes))
            for name, value in metrics.items():
                share = value.detach() / self.num
                means[name] = means[name] + share if name in means else share
        return means

    def over(self, evaluate: Callable[..., Tensor], *conditions: HasParts, everywhere: bool = False) -> PredictVelocity:
        """Evaluates a network, without a gradient, on at most `size` clips at once: more may not fit.

        Args:
            evaluate: (x_t [B, ...], sigma [B], *conditions) -> velocity [B, ...].
            conditions: those of the whole batch.
            everywhere: evaluate `num` times even if there are fewer clips. A network that is split over workers with
                different numbers of clips needs this: all of them must call it equally often.
        """

        def predict(x_t: Tensor, sigma: Tensor) -> Tensor:
            parts = self.slices(len(x_t))
            spare = parts[:1] * (self.num - len(parts)) if everywhere else []
            made = [evaluate(x_t[rows], sigma[rows], *(one.part(rows) for one in conditions)) for rows in parts + spare]
            return torch.cat(made)[: len(x_t)]

        return predict
