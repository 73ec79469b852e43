"""What to say when a training does not fit a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from magic141.errors import UserError, first_line
from magic141.training.config import TrainConfig

SEGMENTS = "PYTORCH_ALLOC_CONF=expandable_segments:True in the environment of the workers' machines, against fragments"


@contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Turns the error of a full GPU into a user's, which names the settings that would take less of it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedies = "; ".join([*_smaller(config), SEGMENTS])
        raise UserError(f"{first_line(str(error))} What takes less: {remedies}") from error


def _smaller(config: TrainConfig) -> Iterator[str]:
    """Settings that take less memory than those of `config`, the cheapest in time first."""
    placement = config.placement
    if config.precision == "fp32":
        yield "precision = bf16 (trains anew)"
    if config.clips_per_pass > 1:
        yield f"placement.clips_per_pass below {config.clips_per_pass}"
    if not placement.gradient_checkpointing:
        yield "placement.gradient_checkpointing = true"
    splits = placement.engine == "deepspeed"
    if placement.num_workers > 1 and not (splits and placement.zero_stage == _highest_stage(config)):
        yield f"placement.engine = deepspeed with zero_stage = {_highest_stage(config)}{_needs_adamw(config)}"
    if splits and placement.zero_stage and not placement.offload_optimizer:
        yield "placement.offload_optimizer = true"


def _highest_stage(config: TrainConfig) -> int:
    """ZeRO 3 allows no adversarial term."""
    return 2 if getattr(config, "adversarial_weight", 0) > 0 else 3


def _needs_adamw(config: TrainConfig) -> str:
    return " and optimizer.kind = adamw (trains anew)" if config.optimizer.kind == "muon" else " (trains anew)"
