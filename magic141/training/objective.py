"""Interface between a training stage and the loop: an objective, and the picklable spec that builds it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from magic141.training.config import PlacementConfig
from magic141.training.engines.engine import Engine


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


class Objective(Protocol):
    """A stage's loss with its networks and state. The loop calls it on all workers in step."""

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The engine of every trained network, by name; the loop saves and loads them (collective, on all workers)."""
        ...

    def step(self, step: int) -> Mapping[str, torch.Tensor | float]:
        """One optimizer step (0-based `step`): batch by step, forward, backward, `engine.step()`; returns scalars.

        Tensors may carry a graph and live on any device: the loop detaches them and averages them over workers.
        """
        ...

    def validate(self) -> Mapping[str, float]:
        """Cheap validation metrics; called on every worker.

        It must not change what the next step computes (the loop puts the global random state back afterwards).
        """
        ...

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Called after a validation; `values` are its metrics and those of training since the last one.

        They are means over workers, those of training over steps, too.

        The objective may remember its best state. Raises `UserError`, on every worker alike, to stop a run that has
        gone wrong in a way that more steps cannot repair.
        """
        ...

    @property
    def replicated(self) -> Collection[str]:
        """The entries of `state_dict` that are the same on every worker, so that only rank 0 writes them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state that the engines do not hold (EMA, replay, counters).

        Every worker writes its own with `torch.save`, except for what is `replicated`.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned (called after the engines were loaded)."""
        ...

    def export(self, folder: Path) -> None:
        """Write the artifact's model folders into the empty `folder`.

        Called on EVERY worker, because gathering a ZeRO-3 model is collective; only rank 0 writes (`folder` exists
        there only), so gather first and then `if context.is_main: save`.
        """
        ...


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
