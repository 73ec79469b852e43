"""What each training stage minimises, for how long, and where it runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from magic141.frozen import FrozenConfig, placement


class PlacementConfig(FrozenConfig):
    """Where a training stage runs: Ray workers, engine, resources. Never part of the stage's key."""

    engine: Literal["plain", "ddp", "deepspeed"] = Field("ddp", description="how gradients and states are shared")
    launcher: Literal["ray", "local"] = Field("ray", description="ray: Ray Train workers; local: in this process")
    num_workers: int = Field(2, ge=1, description="data-parallel workers")
    threads_per_worker: int = Field(1, ge=1, description="CPU threads of a worker")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of a worker")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for a worker")
    zero_stage: int = Field(1, ge=0, le=3, description="DeepSpeed ZeRO stage")
    offload_optimizer: bool = Field(False, description="DeepSpeed: keep optimizer states in host memory")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    max_failures: int = Field(1, ge=0, description="worker restarts before the stage fails")
    log_every_steps: int = Field(10, ge=1, description="steps between two logged points")

    @model_validator(mode="after")
    def _plain_is_single(self) -> PlacementConfig:
        if self.num_workers > 1 and (self.engine == "plain" or self.launcher == "local"):
            raise ValueError(
                f"num_workers = {self.num_workers}: engine 'plain' and launcher 'local' run one worker; "
                "use engine ddp or deepspeed with launcher ray, or num_workers = 1"
            )
        return self


class OptimizerConfig(FrozenConfig):
    """Optimizer, schedule and clipping."""

    kind: Literal["muon", "adamw"] = Field("muon", description="muon: on the blocks' matrices, AdamW on the rest")
    learning_rate: float = Field(2e-3, gt=0, description="peak rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW")
    weight_decay: float = Field(0.0, ge=0, description="decoupled")
    warmup_steps: int = Field(100, ge=0, description="linear from zero")
    constant_fraction: float = Field(0.4, ge=0, le=1, description="share of the steps before the decay begins")
    final_fraction: float = Field(0.03, ge=0, le=1, description="rate at the last step, relative to the peak")
    max_grad_norm: float = Field(1.0, gt=0, description="global gradient clip")


class TrainConfig(FrozenConfig):
    """What every training stage shares."""

    num_steps: int = Field(..., ge=1, description="optimizer steps")
    batch_size: int = Field(16, ge=1, description="clips per optimizer step, over all workers")
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float = Field(0.995, ge=0, lt=1, description="exponential average of the weights; what is exported")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="autocast type of forward and backward")
    checkpoint_every_steps: int = placement(200, ge=1, description="steps between two checkpoints")
    validate_every_steps: int = placement(500, ge=1, description="steps between two validation losses")
    placement: PlacementConfig = placement(PlacementConfig(), description="workers, engine, resources")

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        if self.batch_size % self.placement.num_workers:
            workers = self.placement.num_workers
            raise ValueError(
                f"batch_size = {self.batch_size}: not divisible by placement.num_workers = {workers}; "
                f"use a multiple of {workers}"
            )
        if self.placement.engine == "deepspeed" and self.optimizer.kind == "muon" and self.placement.zero_stage > 0:
            raise ValueError(
                f"optimizer.kind = muon: ZeRO stage {self.placement.zero_stage} flattens the matrices that Muon needs; "
                "use optimizer.kind = adamw, or placement.zero_stage = 0"
            )
        return self


class FlowMatchingConfig(TrainConfig):
    """Flow-matching pretraining (sections 5 of the design; paper section 3)."""

    base: str | None = Field(None, description="diffusers transformer folder to start from; none: from scratch")
    num_steps: int = Field(1000, ge=0, description="optimizer steps; 0 takes `base` as it is")
    shift: float = Field(8.0, gt=0, description="sigma = s*x/(1+(s-1)*x), x uniform")
    text_dropout: float = Field(0.1, ge=0, le=1, description="share of samples trained without text")
    image_dropout: float = Field(0.0, ge=0, le=1, description="share trained without image tokens and first frame")
    continued_fraction: float = Field(
        0.25, ge=0, le=1, description="I2V: share of samples that continue from anywhere in the clip, for long videos"
    )
    anchored_from: float = Field(
        0.7, ge=0, le=1, description="I2V: share of the steps before their anchor may lie far back in the video"
    )

    @model_validator(mode="after")
    def _something_to_take(self) -> FlowMatchingConfig:
        if self.num_steps == 0 and self.base is None:
            raise ValueError("num_steps = 0 takes a base as it is, but base is not set; set base, or train")
        return self


class CfgDistillationConfig(TrainConfig):
    """CFG distillation: one evaluation with w as input replaces two."""

    num_steps: int = Field(400, ge=1, description="optimizer steps")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-4)
    ema_decay: float = Field(0.99, ge=0, lt=1, description="exponential average of the weights")
    shift: float = Field(8.0, gt=0, description="time law, as in pretraining")
    min_guidance_scale: float = Field(1.0, ge=0, description="w_min; w = 1 is no guidance")
    max_guidance_scale: float = Field(3.0, ge=0, description="w_max")
    distillation_weight: float = Field(1.0, ge=0, le=1, description="lambda: 1 is pure distillation, 0 flow matching")
    continued_fraction: float = Field(0.25, ge=0, le=1, description="as in pretrain_i2v")

    @model_validator(mode="after")
    def _range(self) -> CfgDistillationConfig:
        if self.min_guidance_scale > self.max_guidance_scale:
            raise ValueError(
                f"min_guidance_scale = {self.min_guidance_scale} is above max_guidance_scale = "
                f"{self.max_guidance_scale}; swap them"
            )
        return self


class CollapseConfig(FrozenConfig):
    """When a distillation counts as collapsed: its clips beside the many-step model's, from the same noise."""

    stop: bool = Field(True, description="stop a collapsed run; false only records it")
    patience: int = Field(2, ge=1, description="validations in a row with a symptom that make a collapse")
    num_clips: int = Field(64, ge=1, description="validation clips, over all workers")
    num_seeds: int = Field(2, ge=1, description="seeds per clip; the difference between them is watched")
    reference_steps: int = Field(16, ge=1, description="Euler steps of the many-step model, once per run")
    num_shown: int = Field(4, ge=0, description="clips shown as student, real score's and fake score's estimate")
    min_variance_ratio: float = Field(0.5, ge=0, description="of the student's clips to the many-step model's")
    max_variance_ratio: float = Field(2.0, gt=0, description="the same")
    min_motion_ratio: float = Field(0.4, ge=0, description="mean square of frame differences, the same")
    min_diversity_ratio: float = Field(0.2, ge=0, description="mean square of differences between seeds, the same")
    max_mean_drift: float = Field(1.0, gt=0, description="shift of the channels' means in standard deviations, rms")
    max_saturation: float = Field(0.1, ge=0, le=1, description="share of values beyond 4 standard deviations")
    max_fake_loss_growth: float = Field(4.0, gt=1, description="fake loss, relative to that at the first validation")


class Dmd2Config(TrainConfig):
    """DMD2 step distillation; by default with a LoRA fake score on the shared frozen base."""

    num_steps: int = Field(300, ge=1, description="generator updates")
    batch_size: int = Field(16, ge=1, description="clips per update, over all workers")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    fake_optimizer: OptimizerConfig = OptimizerConfig(
        kind="adamw", learning_rate=2e-3, betas=(0.0, 0.95), warmup_steps=0, constant_fraction=0.5
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="exponential average of the generator")
    validate_every_steps: int = Field(50, ge=1, description="steps between two looks of the collapse watch")
    collapse: CollapseConfig = CollapseConfig()
    keep: Literal["best", "last"] = Field(
        "best", description="what is exported: the best validated average, or the last"
    )
    start: Literal["cfg_distilled", "teacher"] = Field(
        "cfg_distilled",
        description="the generator's start; from the teacher, guidance and steps are distilled together: raise "
        "real_guidance_scale",
    )
    generator_lora_rank: int = Field(0, ge=0, description="rank of the generator's adapter; 0 trains all its weights")
    num_inference_steps: int = Field(4, ge=1, le=64, description="steps of the student")
    schedule_steps: int = Field(1000, ge=1, description="time steps that the schedule has; the student's fit into it")
    shift: float = Field(5.0, gt=0, description="shift of the student's grid; 5: 1000, 937.5, 833.3, 625 in 4 steps")
    score_shift: float = Field(
        3.0, gt=0, description="shift of the score times; high ones do not see fine noise, low ones not the modes"
    )
    sampler: Literal["renoise", "euler"] = Field("renoise", description="the student's chain, in training and after")
    generator_input: Literal["backward_simulation", "noised_real"] = Field(
        "backward_simulation", description="what the generator sees: its own earlier steps, or noised real latents"
    )
    fake_score: Literal["lora", "full"] = Field("lora", description="an adapter on the shared base, or a whole copy")
    lora_rank: int = Field(64, ge=1, description="rank of the fake score's adapter")
    a_weak: float = Field(0.5, ge=0, description="strength of the adapter in the real score (0 is plain DMD2)")
    a_strong: float = Field(1.0, gt=0, description="strength of the adapter in the fake score")
    real_score: Literal["teacher", "cfg_distilled"] = Field(
        "teacher",
        description="what judges, and the base of the fake score: the undistilled model, or the CFG-distilled one",
    )
    real_guidance_scale: float = Field(
        1.0, ge=0, description="w of the real score; 1 is none, other values cost the teacher a second evaluation"
    )
    student_guidance_scale: float = Field(1.2, ge=0, description="w that the student gets, in training and after")
    student_guidance_range: tuple[float, float] | None = Field(
        None, description="w drawn per clip and given to student and real score alike; none: the two fixed values"
    )
    adversarial_weight: float = Field(0.0, ge=0, description="weight of the adversarial term; 0 leaves it out")
    adversarial_input: Literal["noised", "clean"] = Field("noised", description="what the discriminator sees")
    discriminator_weight: float = Field(0.1, ge=0, description="weight of its loss beside the fake score's")
    regression_weight: float = Field(
        0.0, ge=0, description="pull towards the real clip behind each sample (generator_input noised_real)"
    )
    min_score_time: float = Field(0.02, ge=0, lt=1, description="lower end of x before the shift")
    max_score_time: float = Field(0.98, gt=0, le=1, description="upper end of x before the shift")
    fake_updates_per_step: int = Field(5, ge=1, description="fake-score updates per generator update")
    fake_warmup_updates: int = Field(20, ge=0, description="fake-score updates before the first generator update")
    replay_batches: int = Field(4, ge=1, description="generator batches kept for the fake updates")
    continued_fraction: float = Field(0.25, ge=0, le=1, description="as in pretrain_i2v")

    @model_validator(mode="after")
    def _possible(self) -> Dmd2Config:
        if self.num_inference_steps > self.schedule_steps:
            raise ValueError(
                f"num_inference_steps = {self.num_inference_steps} is more than schedule_steps = "
                f"{self.schedule_steps}; use fewer steps"
            )
        if self.min_score_time >= self.max_score_time:
            raise ValueError(
                f"min_score_time = {self.min_score_time} is not below max_score_time = {self.max_score_time}"
            )
        return self

    @model_validator(mode="after")
    def _options_fit(self) -> Dmd2Config:
        if self.fake_score == "full" and self.a_weak > 0:
            raise ValueError(
                f"a_weak = {self.a_weak}: a full fake score has no adapter to shift the real score by; use a_weak = 0, "
                "or fake_score = lora"
            )
        if self.regression_weight > 0 and self.generator_input != "noised_real":
            raise ValueError(
                f"regression_weight = {self.regression_weight}: backward simulation has no real clip behind a sample; "
                "use generator_input = noised_real, or regression_weight = 0"
            )
        if self.adversarial_weight > 0 and self.placement.engine == "deepspeed" and self.placement.zero_stage == 3:
            raise ValueError(
                f"adversarial_weight = {self.adversarial_weight}: the generator's gradient cannot pass through a fake "
                "score that ZeRO stage 3 has split; use placement.zero_stage <= 2, or adversarial_weight = 0"
            )
        if self.student_guidance_range and self.student_guidance_range[0] > self.student_guidance_range[1]:
            low, high = self.student_guidance_range
            raise ValueError(f"student_guidance_range = ({low}, {high}): its ends are swapped; use ({high}, {low})")
        return self
