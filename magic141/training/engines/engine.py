"""A trained network with its optimizer behind one interface: plain, data-parallel or DeepSpeed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magic141.training.config import OptimizerConfig
from magic141.training.engines.optimizers import learning_rate_factor, make_optimizer

if TYPE_CHECKING:
    from magic141.training.objective import TrainContext

Precision = Literal["fp32", "bf16"]


class Engine(Protocol):
    """A network in training. Every method must be called on all workers, in the same order."""

    @property
    def module(self) -> nn.Module:
        """The network itself: for forward passes without gradient, LoRA strengths, export."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether `module`'s parameters are split over the workers (ZeRO-3)."""
        ...

    @property
    def num_updates(self) -> int:
        """Optimizer steps taken so far."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass whose gradients `backward` and `step` use."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed-precision context for forward and loss."""
        ...

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate gradients of `loss`.

        Args:
            loss: the mean over this worker's clips, or a summand of it if the clips are taken in several passes.
            last: whether this is the last pass before `step`.
        """
        ...

    def step(self) -> float:
        """Average gradients over workers, clip, update, zero; returns the gradient norm before clipping."""
        ...

    def full_state_dict(self) -> dict[str, Tensor]:
        """All weights, unsharded, on rank 0 and none elsewhere; copies in host memory (collective under ZeRO-3)."""
        ...

    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer and counters into `folder` (made if missing)."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...


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
        factor = learning_rate_factor(self.num_updates, self._num_steps, self._config)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * factor
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
        state = torch.load(folder / "engine.pt", map_location=self._context.device, weights_only=True)
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


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The mixed-precision context of `precision` on `device`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def make_engine(
    model: nn.Module, optimizer_config: OptimizerConfig, num_steps: int, precision: Precision, context: TrainContext
) -> Engine:
    """Put `model` on the worker's device and wrap it in the engine of `context.placement`.

    Only parameters with requires_grad enter the optimizer. A process may hold several engines (DMD2's fake score).

    Args:
        model: the network; its weights may differ between workers, as rank 0's are used.
        optimizer_config: optimizer, schedule, clipping.
        num_steps: all the optimizer steps that THIS engine will take: the length of its schedule.
        precision: autocast dtype.
        context: the worker.
    """
    recompute = getattr(model, "enable_gradient_checkpointing", None)
    if context.placement.gradient_checkpointing and callable(recompute):
        recompute()
    _place(model, precision, context)
    if context.placement.engine == "deepspeed":
        from magic141.training.engines.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(model, optimizer_config, num_steps, precision, context)
    kind = DdpEngine if context.placement.engine == "ddp" else PlainEngine
    return kind(model, optimizer_config, num_steps, precision, context)


def make_frozen(model: nn.Module, precision: Precision, context: TrainContext) -> nn.Module:
    """Put a network that is only evaluated on the worker's device; ZeRO-3 splits it like the trained ones.

    Args:
        model: the network, the same on every worker.
        precision: autocast dtype.
        context: the worker.
    """
    _place(model.eval().requires_grad_(False), precision, context)
    if _is_split(context):
        from magic141.training.engines.deepspeed_engine import gathering

        return gathering(model, precision, context)
    return model


def _is_split(context: TrainContext) -> bool:
    return context.placement.engine == "deepspeed" and context.placement.zero_stage == 3


def _place(model: nn.Module, precision: Precision, context: TrainContext) -> None:
    if _is_split(context):
        from magic141.training.engines.deepspeed_engine import split_weights

        split_weights(model, precision, context)
    else:
        model.to(context.device)


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
