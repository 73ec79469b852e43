"""What a training stage hands to the loop: an objective, and the picklable spec that builds it on a worker."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist

from magic141.training.config import PlacementConfig
from magic141.training.engine import Engine

WATCH_FILE = "watch.json"  # what an objective that watches itself leaves in its export


@dataclass(frozen=True)
class TrainContext:
    """Where one worker stands.

    Attributes:
        rank: this worker's number, 0 to world_size - 1.
        world_size: number of data-parallel workers.
        device: where the models of this worker live.
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


@runtime_checkable
class Objective(Protocol):
    """One stage's loss with everything it owns. The loop drives it on every worker in step."""

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Every trained network by name: saved and loaded by the loop (collectively, on all workers)."""
        ...

    def step(self, step: int) -> Mapping[str, torch.Tensor | float]:
        """One optimizer step (0-based `step`): batch by step, forward, backward, `engine.step()`; returns scalars.

        Tensors may carry a graph and live on any device: the loop detaches them and averages them over workers.
        """
        ...

    def validate(self) -> Mapping[str, float]:
        """Cheap validation figures; called on every worker.

        It must not change what the next step computes (the loop puts the global random state back afterwards).
        """
        ...

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """After a validation: `values`, averaged over workers, hold its figures and those of training.

        The objective may remember its best state. Raises `UserError`, on every worker alike, to stop a run that has
        gone wrong in a way that more steps do not cure.
        """
        ...

    @property
    def replicated(self) -> Collection[str]:
        """The entries of `state_dict` that are the same on every worker: rank 0 alone writes them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the engines do not hold (EMA, replay, counters).

        `torch.save` writes it, every worker for itself except for what is `replicated`.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned (called after the engines were loaded)."""
        ...

    def export(self, folder: Path) -> None:
        """Write the artifact's model folders into the empty `folder`.

        Called on EVERY worker, because gathering a ZeRO-3 model is collective; only rank 0 writes (`folder` exists
        there only), so gather first and then `if context.is_main: save`.
        """
        ...


@runtime_checkable
class ObjectiveSpec(Protocol):
    """A picklable frozen dataclass (paths, configs, numbers) that builds the objective on a worker."""

    def build(self, context: TrainContext) -> Objective:
        """Load data and models, make the engines."""
        ...


def sum_over_workers(values: torch.Tensor, context: TrainContext) -> torch.Tensor:
    """The sum of `values` over all workers, on all workers."""
    if context.world_size > 1:
        values = values.to(context.device)
        dist.all_reduce(values)
    return values.cpu()
