"""Configs of the training stages: objective, optimizer, length, and where they run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from magic141.frozen import MOST_STEPS, FrozenConfig, placement, source_path

METRICS_FILE = "metrics.jsonl"  # in the artifact of every training: its curves
RECORD_FILE = "training.json"  # in the artifact of every training: its size, times and memory
WATCH_FILE = "watch.json"  # in the artifact of a stage that judges its own validations


class PlacementConfig(FrozenConfig):
    """Where a training stage runs: Ray workers, engine, resources. Never part of the stage's key."""

    engine: Literal["plain", "ddp", "deepspeed"] = Field("ddp", description="how workers share gradients and states")
    launcher: Literal["ray", "local"] = Field("ray", description="ray: Ray Train workers; local: in this process")
    num_workers: int = Field(2, ge=1, description="workers among which the clips of an update are divided")
    sequence_parallel_size: int = Field(
        1, ge=1, description="workers that share a clip, each with a part of its tokens; a divisor of num_workers"
    )
    threads_per_worker: int = Field(1, ge=1, description="CPU threads of a worker")
    gpus_per_worker: float = Field(0, ge=0, le=1, description="GPUs of a worker, which computes on one at most")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for a worker")
    zero_stage: int = Field(1, ge=0, le=3, description="DeepSpeed ZeRO stage")
    offload_optimizer: bool = Field(False, description="DeepSpeed: keep optimizer states in host memory")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    clips_per_pass: int | None = Field(
        None,
        ge=1,
        description="clips that a worker takes at once; null: all of its clips of an update, or one if shared",
    )
    max_failures: int = Field(1, ge=0, description="worker restarts before the stage fails")
    log_every_steps: int = Field(10, ge=1, description="steps between two logged points")

    @property
    def splitting(self) -> str:
        """Everything here that decides a worker's memory beside the number of its clips, in words."""
        zero = [f"ZeRO {self.zero_stage}"] if self.engine == "deepspeed" else []
        more = {"offloaded": self.offload_optimizer, "checkpointing": self.gradient_checkpointing}
        tokens = [f"tokens over {self.sequence_parallel_size}"] if self.sequence_parallel_size > 1 else []
        return ", ".join([self.engine, *zero, *(word for word, is_on in more.items() if is_on), *tokens])

    @property
    def num_shares(self) -> int:
        """Shares into which the clips of an update are divided: one of each worker, or of workers that split tokens."""
        return self.num_workers // self.sequence_parallel_size

    @model_validator(mode="after")
    def _plain_is_single(self) -> PlacementConfig:
        if self.num_workers > 1 and (self.engine == "plain" or self.launcher == "local"):
            raise ValueError(
                f"num_workers = {self.num_workers}: engine 'plain' and launcher 'local' run one worker; "
                "use engine ddp or deepspeed with launcher ray, or num_workers = 1"
            )
        return self

    @model_validator(mode="after")
    def _shares_are_whole(self) -> PlacementConfig:
        if self.num_workers % self.sequence_parallel_size:
            fitting = math.gcd(self.num_workers, self.sequence_parallel_size)
            raise ValueError(
                f"sequence_parallel_size = {self.sequence_parallel_size}: expected a divisor of num_workers = "
                f"{self.num_workers}; use {fitting}"
            )
        return self

    @model_validator(mode="after")
    def _workers_share_no_gpu(self) -> PlacementConfig:
        if self.num_workers > 1 and 0 < self.gpus_per_worker < 1:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker}: NCCL, which connects the {self.num_workers} workers, needs "
                "a GPU per process; use gpus_per_worker = 1, or num_workers = 1"
            )
        return self

    @model_validator(mode="after")
    def _offloads_what_is_split(self) -> PlacementConfig:
        if self.offload_optimizer and (self.engine != "deepspeed" or self.zero_stage == 0):
            raise ValueError(
                f"offload_optimizer = true: only DeepSpeed's ZeRO stages 1 to 3 offload, not engine = {self.engine} "
                f"with zero_stage = {self.zero_stage}; use those, or offload_optimizer = false"
            )
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]  # an average that decays: beyond 1 it grows, at 1 AdamW divides by zero


class OptimizerConfig(FrozenConfig):
    """Optimizer, schedule and clipping."""

    kind: Literal["muon", "adamw"] = Field("muon", description="muon: on the blocks' matrices, with AdamW on the rest")
    learning_rate: float = Field(2e-3, gt=0, description="peak rate")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW's betas")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up from zero")
    constant_fraction: float = Field(0.4, ge=0, le=1, description="share of the steps before the decay begins")
    final_fraction: float = Field(0.03, ge=0, le=1, description="rate at the last step, relative to the peak")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this global norm")


class TrainConfig(FrozenConfig):
    """Settings that all training stages share."""

    num_steps: int = Field(..., ge=1, le=MOST_STEPS, description="optimizer steps")
    batch_size: int = Field(16, ge=1, description="clips per optimizer step, over all workers")
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float = Field(0.995, ge=0, lt=1, description="decay of the weights' average, which is exported")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="autocast dtype of forward and backward pass")
    max_skipped_steps: int = Field(
        3, ge=0, description="updates that may be skipped in a row for a non-finite gradient; more count as divergence"
    )
    checkpoint_every_steps: int = placement(200, ge=1, description="steps between two checkpoints")
    validate_every_steps: int = placement(500, ge=1, description="steps between two validations")
    placement: PlacementConfig = placement(PlacementConfig(), description="workers, engine, resources")

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        shares = self.placement.num_shares
        if self.batch_size % shares:
            raise ValueError(
                f"batch_size = {self.batch_size}: not divisible by {self._words_for_shares} = {shares}; "
                f"use a multiple of {shares}"
            )
        return self

    @model_validator(mode="after")
    def _muon_has_whole_matrices(self) -> TrainConfig:
        stage = self.placement.zero_stage if self.placement.engine == "deepspeed" else 0
        for name, optimizer in self.optimizers.items():
            if optimizer.kind == "muon" and stage > 0:
                raise ValueError(
                    f"{name}.kind = muon: ZeRO stage {stage} flattens the matrices that Muon needs; "
                    f"use {name}.kind = adamw, or placement.zero_stage = 0"
                )
        return self

    @model_validator(mode="after")
    def _passes_divide(self) -> TrainConfig:
        clips, size = self.clips_per_worker, self.clips_per_pass
        if clips % size:
            fitting = max(n for n in range(1, min(size, clips) + 1) if clips % n == 0)
            raise ValueError(
                f"placement.clips_per_pass = {size}: expected a divisor of {clips}, a worker's clips of an update "
                f"(batch_size / {self._words_for_shares}); use {fitting}"
            )
        return self

    @property
    def clips_per_worker(self) -> int:
        """Clips of a worker in an optimizer step; those of workers that split tokens are the same."""
        return self.batch_size // self.placement.num_shares

    @property
    def clips_per_pass(self) -> int:
        """Clips that a worker takes through its networks in one pass; one, unless set, if workers share clips."""
        whole = self.clips_per_worker if self.placement.sequence_parallel_size == 1 else 1
        return self.placement.clips_per_pass or whole

    @property
    def _words_for_shares(self) -> str:
        split = self.placement.sequence_parallel_size > 1
        return "placement.num_workers / sequence_parallel_size" if split else "placement.num_workers"

    @property
    def optimizers(self) -> Mapping[str, OptimizerConfig]:
        """The optimizer of every trained network, by the name of its field."""
        return {"optimizer": self.optimizer}


class SingleNetworkConfig(TrainConfig):
    """Settings of the stages that train one network."""

    lora_rank: int = Field(
        0,
        ge=0,
        description="rank of a LoRA that is trained, and merged at export; 0 trains all weights",
    )


class FlowMatchingConfig(SingleNetworkConfig):
    """Flow-matching pretraining (paper, section 3)."""

    base: str | None = source_path(description="diffusers transformer folder to start from; null: from scratch")
    base_guidance_scale: float = Field(
        1.0, ge=0, description="w at which a guidance-distilled base (with w as an input) is fixed; else unused"
    )
    num_steps: int = Field(
        1000, ge=0, le=MOST_STEPS, description="optimizer steps; 0 uses `base` as it is, or leaves out an unneeded T2V"
    )
    shift: float = Field(8.0, gt=0, description="sigma = s*x/(1+(s-1)*x), x uniform")
    text_dropout: float = Field(0.1, ge=0, le=1, description="share of samples trained without text")
    image_dropout: float = Field(0.0, ge=0, le=1, description="share without image tokens and first frame")
    continued_fraction: float = Field(
        0.25, ge=0, le=1, description="I2V: share of samples that continue a video from anywhere in the clip"
    )
    anchored_from: float = Field(
        0.7, ge=0, le=1, description="I2V: share of the steps after which their anchor may lie far back in the video"
    )


class CfgDistillationConfig(SingleNetworkConfig):
    """CFG distillation: one evaluation with w as an input replaces two (paper, section 3.1)."""

    num_steps: int = Field(400, ge=1, le=MOST_STEPS, description="optimizer steps")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-4)
    ema_decay: float = Field(0.99, ge=0, lt=1, description="decay of the weights' exponential average")
    shift: float = Field(8.0, gt=0, description="shift of the training times, as in pretraining")
    min_guidance_scale: float = Field(1.0, ge=0, description="smallest w that is trained; 1 is no guidance")
    max_guidance_scale: float = Field(3.0, ge=0, description="largest w that is trained")
    distillation_weight: float = Field(1.0, ge=0, le=1, description="lambda: 1 is pure distillation, 0 flow matching")
    continued_fraction: float = Field(0.25, ge=0, le=1, description="as in pretrain_i2v")

    @model_validator(mode="after")
    def _guidance_scales_in_order(self) -> CfgDistillationConfig:
        if self.min_guidance_scale > self.max_guidance_scale:
            raise ValueError(
                f"min_guidance_scale = {self.min_guidance_scale} is above max_guidance_scale = "
                f"{self.max_guidance_scale}; swap them"
            )
        return self
