"""Puts networks on a worker's device, trained ones in the engine that the worker's placement names."""

from __future__ import annotations

from typing import Any

from torch import nn

from magic141.models.sequence_parallel import split_sequence
from magic141.training.config import OptimizerConfig
from magic141.training.context import TrainContext
from magic141.training.engines.engine import Engine, Precision
from magic141.training.engines.plain_engine import DdpEngine, PlainEngine


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
    if context.placement.gradient_checkpointing:
        recompute: Any = model.enable_gradient_checkpointing
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
        model: the network, the same on every worker; where weights are split, rank 0's are used.
        precision: autocast dtype.
        context: the worker.
    """
    _place(model.eval().requires_grad_(False), precision, context)
    if context.splits_weights:
        from magic141.training.engines.deepspeed_engine import gathering

        return gathering(model, precision, context)
    return model


def _place(model: nn.Module, precision: Precision, context: TrainContext) -> None:
    if context.sequence_group is not None:
        split_sequence(model, context.sequence_group)
    if context.splits_weights:
        from magic141.training.engines.deepspeed_engine import split_weights

        split_weights(model, precision, context)
    else:
        model.to(context.device)
