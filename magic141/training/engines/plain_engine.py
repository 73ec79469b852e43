"""Engines without DeepSpeed: one process, or several with the same weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magic141.training.config import OptimizerConfig
from magic141.training.context import TrainContext
from magic141.training.engines.engine import Precision, autocast
from magic141.training.engines.optimizers import make_optimizer, set_learning_rate


class PlainEngine:
    """Training in one process. Gradients are views into one flat buffer per dtype: one call each to clip or zero."""

    sharded = False

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, num_steps: int, precision: Precision, context: TrainContext
    ) -> None:
        self.module = module
        self.num_updates = 0
        self._config, self._num_steps, self._precision, self._context = config, num_steps, precision, context
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._gradients = _flat_gradients(list(self._trained.values()))
        self._optimizer = make_optimizer(self._trained, config, context.world_size)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass."""
        return self.module(*args, **kwargs)

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed-precision context."""
        return autocast(self._context.device, self._precision)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate gradients."""
        loss.backward()

    def step(self) -> float:
        """Average, clip, update, zero; a non-finite gradient updates nothing."""
        self._average()
        norm = torch.stack([flat.norm() for flat in self._gradients]).norm()
        if torch.isfinite(norm):
            self._update(norm)
        for flat in self._gradients:
            flat.zero_()
        self.num_updates += 1
        return float(norm)

    def _update(self, norm: Tensor) -> None:
        scale = torch.clamp(self._config.max_grad_norm / (norm + 1e-6), max=1.0)
        for flat in self._gradients:
            flat.mul_(scale)
        set_learning_rate(self._optimizer, self.num_updates, self._num_steps, self._config)
        self._optimizer.step()

    def full_state_dict(self) -> dict[str, Tensor]:
        """All weights on rank 0, as copies in host memory; none elsewhere."""
        state = self.module.state_dict() if self._context.rank == 0 else {}
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def save(self, folder: Path) -> None:
        """Writes the trained weights only: the frozen ones come from where the network was built from."""
        if self._context.rank != 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: p.detach() for name, p in self._trained.items()}
        state = {"weights": weights, "optimizer": self._optimizer.state_dict(), "num_updates": self.num_updates}
        torch.save(state, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        """The inverse of `save`."""
        state = torch.load(folder / "engine.pt", map_location="cpu", weights_only=True)  # copied to its place below
        if state["weights"].keys() != self._trained.keys():
            odd = sorted(state["weights"].keys() ^ self._trained.keys())[:3]
            raise ValueError(f"{folder}: checkpoint and network differ in {', '.join(odd)}; delete the run's folder")
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state["weights"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.num_updates = state["num_updates"]

    def _average(self) -> None:
        """Does nothing: one process has nothing to average."""


class DdpEngine(PlainEngine):
    """Data-parallel training: starts from rank 0's weights, with one all-reduce of the flat gradients per step.

    Not torch's DistributedDataParallel: a small network's backward pass is too short to hide the cost of its hooks, and
    a single call after the backward pass copes with unused and frozen parameters and several forward passes per step.
    """

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, num_steps: int, precision: Precision, context: TrainContext
    ) -> None:
        super().__init__(module, config, num_steps, precision, context)
        if context.world_size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def _average(self) -> None:
        if self._context.world_size > 1:
            for flat in self._gradients:
                dist.all_reduce(flat)
                flat.div_(self._context.world_size)


def _flat_gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """One zeroed buffer per dtype; every parameter's `.grad` becomes a view into it (autograd adds in place)."""
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    return [_flat_gradient(group) for group in by_dtype.values()]


def _flat_gradient(parameters: list[nn.Parameter]) -> Tensor:
    sizes = [parameter.numel() for parameter in parameters]
    flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
    for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat
