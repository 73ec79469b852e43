"""Interface between a training stage and the loop: an objective, and the picklable spec that builds it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from magic141.training.context import TrainContext
from magic141.training.engines.engine import Engine


class Objective(Protocol):
    """A stage's loss with its networks and state. The loop calls it on all workers in step."""

    @property
    def first_step(self) -> int:
        """The first step: 0, or negative if preparatory steps come first; those do not count in `num_steps`."""
        ...

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The engine of every trained network, by name; the loop saves and loads them (collective, on all workers)."""
        ...

    def step(self, step: int) -> Mapping[str, torch.Tensor | float]:
        """One optimizer step (0-based `step`): batch by step, forward, backward, `engine.step()`; returns scalars.

        Tensors may carry a graph and live on any device: the loop detaches them and averages them over workers, but for
        those of steps before 0. A `grad_norm` that is not finite, of an update that was skipped, leaves the step's
        figures out of the means, on every worker alike.
        """
        ...

    def validate(self) -> Mapping[str, float]:
        """Cheap validation metrics; called on every worker.

        It must not change what the next step computes (the loop puts the global random state back afterwards).
        """
        ...

    def begin(self) -> Mapping[str, float]:
        """Called on every worker before step 0, if that is still to come; metrics of the start, logged as step 0."""
        ...

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Called after a validation; `values` are its metrics and those of training since the last one.

        They are means over workers, those of training over steps, too.

        The objective may remember its best state.
        """
        ...

    def require_sound(self) -> None:
        """Raises `UserError`, on every worker alike, to stop a run that more steps cannot repair.

        Called after `judge` once the step's checkpoint is written, and by a run that goes on from one.
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
