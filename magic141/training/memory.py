"""Estimates the memory per worker for weights, gradients, optimizer states and activations.

DeepSpeed's buffers, NCCL and fragmentation come on top: a few GB at 13B.
"""

from __future__ import annotations

from magic141.models.config import TransformerConfig
from magic141.models.size import num_lora_parameters
from magic141.training.config import (
    CfgDistillationConfig,
    OptimizerConfig,
    PlacementConfig,
    SingleNetworkConfig,
    TrainConfig,
)
from magic141.training.dmd2.config import Dmd2Config

FP32, BF16 = 4, 2
STATES = {"adamw": 2, "muon": 1}  # fp32 numbers per weight


def state_bytes(config: TrainConfig, model: TransformerConfig, num_parameters: int) -> int:
    """Bytes on one worker for a training stage whose networks have `num_parameters` weights each.

    A trained network or adapter counts weights, gradients, optimizer states and, unless it is a fake score, the
    average; a frozen network its weights. ZeRO stage 1 splits the optimizer states (and the copy of the weights that
    DeepSpeed updates with them), 2 also the gradients, 3 also the average and all weights, trained or frozen. Offloaded
    states, and from stage 2 on their gradients, are in host memory and not counted. Branches of the same network share
    its frozen weights, unless stage 3 splits them.
    """
    placement, size = config.placement, BF16 if config.precision == "bf16" else FP32
    frozen = num_parameters // (placement.num_workers if _zero(placement) == 3 else 1)
    if isinstance(config, Dmd2Config):
        rank, others = config.generator_lora_rank, _scores_bytes(config, model, num_parameters, frozen)
    else:
        rank = config.lora_rank if isinstance(config, SingleNetworkConfig) else 0
        others = frozen * size if isinstance(config, CfgDistillationConfig) else 0  # the teacher
    if rank == 0:
        return others + trained_bytes(num_parameters, config.optimizer, placement)
    own_base = 0 if _has_one_base(config) else frozen * size
    return others + own_base + trained_bytes(num_lora_parameters(model, rank), config.optimizer, placement)


def _has_one_base(config: TrainConfig) -> bool:
    """Whether what is trained is a branch of a network that is frozen beside it."""
    is_shared = config.has_one_base if isinstance(config, Dmd2Config) else isinstance(config, CfgDistillationConfig)
    return is_shared and _zero(config.placement) != 3


def _scores_bytes(config: Dmd2Config, model: TransformerConfig, num_parameters: int, frozen: int) -> int:
    """The frozen base, which is the real score, and what the fake score trains."""
    num_trained = num_parameters if config.fake_score == "full" else num_lora_parameters(model, config.lora_rank)
    size = BF16 if config.precision == "bf16" and config.fake_score == "lora" else FP32
    return frozen * size + trained_bytes(num_trained, config.fake_optimizer, config.placement, averaged=False)


def activation_bytes(config: TrainConfig, model: TransformerConfig, num_tokens: int) -> int:
    """Bytes of activations in one forward and backward pass on one worker; `num_tokens` are those of one clip.

    Workers that split tokens have their part of each.

    With gradient_checkpointing every block keeps its input, and one block at a time all that its backward pass needs.
    Without, every block keeps all of that: in bf16, at the paper's MLP ratio, about 40 times as much. The coefficients
    are fitted to the peaks of the real network's passes over tensors without data, for widths of 96 to 3072, 4 to 60
    blocks, MLP ratios of 2 to 8, fp32 and bf16 (where a GPU computes norms in fp32, so that the precision hardly
    matters inside a block). Low-rank branches add an output to every layer. At 13B the coefficients give 44.2 GiB for
    44.4, and are within a fifth elsewhere, unless the text is as long as the video. Attention is assumed to be a fused
    kernel, which does not store its matrix.
    """
    size = BF16 if config.precision == "bf16" else FP32
    blocks, ratio = model.num_layers + model.num_single_layers, model.mlp_ratio
    if config.placement.gradient_checkpointing:
        branches = 12 if _has_branch(config) else 0
        per_channel = blocks * size + 60 + 12 * ratio + branches
    else:
        per_channel = blocks * (50 + 8 * ratio) + 40
    num_tokens = -(-num_tokens // config.placement.sequence_parallel_size)
    return int(config.clips_per_pass * num_tokens * model.num_attention_heads * model.attention_head_dim * per_channel)


def _has_branch(config: TrainConfig) -> bool:
    """Whether the pass that takes most has low-rank branches."""
    if isinstance(config, Dmd2Config):
        return config.fake_score == "lora"
    return isinstance(config, SingleNetworkConfig) and config.lora_rank > 0


def trained_bytes(
    num_parameters: int, optimizer: OptimizerConfig, placement: PlacementConfig, averaged: bool = True
) -> int:
    """Weights that are trained, with their gradients, optimizer states and, if `averaged`, their moving average."""
    zero = _zero(placement)
    whole, share = num_parameters * FP32, num_parameters * FP32 // placement.num_workers
    states = STATES[optimizer.kind] * whole if zero == 0 else (STATES[optimizer.kind] + 1) * share
    gradients = share if zero >= 2 else whole
    if placement.offload_optimizer:
        states = 0 if zero >= 1 else states
        gradients = 0 if zero >= 2 else gradients
    return states + gradients + (2 if averaged else 1) * (share if zero == 3 else whole)


def _zero(placement: PlacementConfig) -> int:
    return placement.zero_stage if placement.engine == "deepspeed" else 0
