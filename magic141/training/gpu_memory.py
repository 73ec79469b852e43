"""What to say when a training does not fit a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from magic141.errors import UserError, first_line
from magic141.training.config import TrainConfig
from magic141.training.dmd2.config import Dmd2Config

AGAINST_FRAGMENTATION = (
    "set PYTORCH_ALLOC_CONF=expandable_segments:True on the workers' machines, against fragmentation"
)

_OTHER_SPLITTING = "delete this training's checkpoints first"


@contextmanager
def explaining_full_gpu(config: TrainConfig) -> Iterator[None]:
    """Turns the error of a full GPU into a user's, which names the settings that would take less of it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedies = "; ".join([*_smaller(config), AGAINST_FRAGMENTATION])
        raise UserError(f"{first_line(str(error))} To use less memory: {remedies}") from error


def _smaller(config: TrainConfig) -> Iterator[str]:
    """Settings that take less memory than those of `config`, the cheapest in time first."""
    placement = config.placement
    if config.precision == "fp32":
        yield "precision = bf16 (starts the stage over)"
    if config.clips_per_pass > 1:
        yield f"placement.clips_per_pass below {config.clips_per_pass}"
    if not placement.gradient_checkpointing:
        yield "placement.gradient_checkpointing = true"
    splits = placement.engine == "deepspeed"
    if config.clips_per_pass == 1 and placement.sequence_parallel_size < placement.num_workers:
        cost = f" ({_OTHER_SPLITTING})" if splits else ""
        yield f"placement.sequence_parallel_size above {placement.sequence_parallel_size}{cost}"
    if placement.num_workers > 1 and not (splits and placement.zero_stage == _highest_stage(config)):
        yield _splitting(config)
    if splits and placement.zero_stage and not placement.offload_optimizer:
        yield "placement.offload_optimizer = true"


def _splitting(config: TrainConfig) -> str:
    """DeepSpeed, with what it needs: it splits no matrices of Muon's, and reads no checkpoint that it split otherwise.

    Placement is not in the stage's key, an optimizer is: with another one there is no checkpoint yet.
    """
    muon = [f"{name}.kind = adamw" for name, optimizer in config.optimizers.items() if optimizer.kind == "muon"]
    settings = " and ".join([f"zero_stage = {_highest_stage(config)}", *muon])
    cost = "starts the stage over" if muon else _OTHER_SPLITTING
    return f"placement.engine = deepspeed with {settings} ({cost})"


def _highest_stage(config: TrainConfig) -> int:
    """ZeRO 3 allows no adversarial term."""
    return 2 if isinstance(config, Dmd2Config) and config.is_adversarial else 3
