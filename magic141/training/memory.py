"""What weights, gradients and optimizer states need on each worker, before anything is built.

Activations and buffers come on top: they depend on kernels and checkpointing and are known only from a run.
"""

from __future__ import annotations

from magic141.training.config import CfgDistillationConfig, OptimizerConfig, PlacementConfig, TrainConfig
from magic141.training.dmd2_config import Dmd2Config

FP32, BF16 = 4, 2
STATES = {"adamw": 2, "muon": 1}  # fp32 numbers per weight


def state_bytes(config: TrainConfig, num_parameters: int) -> int:
    """Bytes on one worker for a training stage of networks with `num_parameters` weights each.

    A trained network counts weights, gradients, optimizer states and the average; a frozen one its weights; adapters
    are too small to count. ZeRO stage 1 splits the optimizer states (and DeepSpeed's copy of the weights that they
    update), 2 also the gradients, 3 also the average and all weights, trained or frozen. Offloaded states are in host
    memory, and not counted.
    """
    placement = config.placement
    total = trained_bytes(num_parameters, config.optimizer, placement)
    frozen = num_parameters // (placement.num_workers if _zero(placement) == 3 else 1)
    if isinstance(config, Dmd2Config):
        full = config.fake_score == "full"
        return total + frozen * FP32 + (trained_bytes(num_parameters, config.fake_optimizer, placement) if full else 0)
    if isinstance(config, CfgDistillationConfig):
        return total + frozen * (BF16 if config.precision == "bf16" else FP32)
    return total


def trained_bytes(num_parameters: int, optimizer: OptimizerConfig, placement: PlacementConfig) -> int:
    """A network whose every weight is trained."""
    zero = _zero(placement)
    whole, share = num_parameters * FP32, num_parameters * FP32 // placement.num_workers
    states = STATES[optimizer.kind] * whole if zero == 0 else (STATES[optimizer.kind] + 1) * share
    if zero >= 1 and placement.offload_optimizer:
        states = 0
    gradients = share if zero >= 2 else whole
    return states + gradients + 2 * (share if zero == 3 else whole)  # the weights and their average


def _zero(placement: PlacementConfig) -> int:
    return placement.zero_stage if placement.engine == "deepspeed" else 0
