"""Averages scalars over steps and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from magic141.training.context import TrainContext, sum_over_workers


@dataclass
class Meter:
    """Means of scalars since the last call of `mean`, without waiting for the device at every step."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Adds one step's scalars, the same names every time."""
        for name, value in values.items():
            number = torch.as_tensor(value).detach().double()
            self.sums[name] = self.sums[name] + number if name in self.sums else number
        self.count += 1

    def mean(self, context: TrainContext) -> dict[str, float]:
        """Means over steps and workers; then resets. Called on all workers."""
        names = sorted(self.sums)
        if not names:
            return {}
        stacked = torch.stack([self.sums[name].to(context.device) for name in names])
        means = sum_over_workers(stacked, context) / (self.count * context.world_size)
        self.sums, self.count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """This worker's sums."""
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.sums, self.count = dict(state["sums"]), state["count"]
