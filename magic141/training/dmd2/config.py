"""Configs of DMD2 step distillation and of its collapse watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from magic141.frozen import MOST_STEPS, FrozenConfig, placement
from magic141.models.config import Sampler
from magic141.training.config import OptimizerConfig, TrainConfig


class CollapseConfig(FrozenConfig):
    """When a distillation counts as collapsed: bounds on its clips compared with the many-step model's."""

    stop: bool = placement(
        True, description="stop a run that collapses, and refuse to reuse a collapsed student; false only records it"
    )
    patience: int = Field(2, ge=1, description="validations in a row with a symptom that count as collapse")
    rising_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the updates in which a figure out of bounds counts only if it got worse",
    )
    num_clips: int = Field(64, ge=1, description="validation clips, over all workers")
    num_seeds: int = Field(2, ge=1, description="seeds per clip; diversity is measured between them")
    reference_steps: int = Field(16, ge=1, description="Euler steps of the many-step model")
    num_shown: int = placement(4, ge=0, description="clips in the picture of student, real and fake score")
    min_variance_ratio: float = Field(0.5, ge=0, description="variance relative to the many-step model's: lower bound")
    max_variance_ratio: float = Field(2.0, gt=0, description="variance relative to the many-step model's: upper bound")
    min_motion_ratio: float = Field(0.4, ge=0, description="mean square of frame differences, likewise relative")
    min_detail_ratio: float = Field(0.4, ge=0, description="mean square of differences between horizontal neighbours")
    max_detail_ratio: float = Field(2.5, gt=0, description="the same: upper bound")
    min_diversity_ratio: float = Field(0.2, ge=0, description="mean square of seed differences, likewise relative")
    min_mode_coverage: float = Field(
        0.1, ge=0, le=1, description="share of the many-step model's clips nearer to a student's than to another seed"
    )
    max_mean_drift: float = Field(1.0, gt=0, description="rms shift of the channels' means, in standard deviations")
    max_saturation: float = Field(0.1, ge=0, le=1, description="excess share of values beyond 4 standard deviations")
    max_fake_loss_growth: float = Field(4.0, gt=1, description="fake loss relative to that at the first validation")
    max_gradient_growth: float = Field(4.0, gt=1, description="mean square of the DMD2 gradient, likewise")
    max_frechet_ratio: float = Field(10.0, gt=1, description="Fréchet distance relative to the many-step model's")
    max_frechet_growth: float = Field(2.0, gt=1, description="Fréchet distance relative to the smallest so far")


class Dmd2Config(TrainConfig):
    """DMD2 step distillation (paper, section 3.1); by default with a LoRA fake score on the shared frozen base."""

    num_steps: int = Field(300, ge=1, le=MOST_STEPS, description="generator updates")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    fake_optimizer: OptimizerConfig = OptimizerConfig(
        kind="adamw", learning_rate=2e-3, betas=(0.0, 0.95), warmup_steps=0, constant_fraction=0.5
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="decay of the generator's exponential average")
    validate_every_steps: int = Field(50, ge=1, description="steps between two validations, for the collapse watch")
    collapse: CollapseConfig = CollapseConfig()
    keep: Literal["best", "last"] = Field(
        "best", description="which average of the weights is exported: the best at a validation, or the last"
    )
    start: Literal["cfg_distilled", "teacher"] = Field(
        "cfg_distilled",
        description="initial generator; from the teacher, guidance and steps are distilled together: raise "
        "real_guidance_scale",
    )
    generator_lora_rank: int = Field(0, ge=0, description="rank of the generator's adapter; 0 trains all its weights")
    num_inference_steps: int = Field(4, ge=1, le=64, description="steps of the student")
    shift: float = Field(5.0, gt=0, description="shift of the student's grid; 5: 1000, 937.5, 833.3, 625 in 4 steps")
    score_shift: float = Field(
        3.0, gt=0, description="shift of the score times; too high, they miss fine grain, too low, the modes"
    )
    sampler: Sampler = Field("renoise", description="the student's sampler, in training and after")
    generator_input: Literal["backward_simulation", "noised_real"] = Field(
        "backward_simulation", description="what the generator sees: its own earlier steps, or noised real latents"
    )
    final_exit_fraction: float = Field(
        0.6,
        ge=0,
        le=1,
        description="share of updates that train the chain's last step; the other steps share the rest equally",
    )
    first_exit_fraction: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of updates that train the chain's first step, the only one a one-step student uses; null, "
        "as with less than 3 steps: an equal part of what final_exit_fraction leaves",
    )
    exit_embedding: bool = Field(
        False, description="tell the fake score at which step a clip left the chain: better clips with few steps"
    )
    fake_score: Literal["lora", "full"] = Field("lora", description="an adapter on the shared base, or a whole copy")
    lora_rank: int = Field(64, ge=1, description="rank of the fake score's adapter")
    a_weak: float = Field(0.5, ge=0, description="strength of the adapter in the real score (0 is plain DMD2)")
    a_strong: float = Field(1.0, gt=0, description="strength of the adapter in the fake score")
    real_score: Literal["teacher", "cfg_distilled"] = Field(
        "teacher",
        description="network of the real score and base of the fake: the undistilled or the CFG-distilled model",
    )
    real_guidance_scale: float = Field(
        1.0, ge=0, description="w of the real score; 1: no guidance; others cost the teacher a second evaluation"
    )
    student_guidance_scale: float = Field(1.2, ge=0, description="w given to the student, in training and after")
    student_guidance_range: tuple[float, float] | None = Field(
        None, description="w is drawn per clip from it, for student and real score alike; null: the fixed values"
    )
    adversarial_weight: float = Field(0.0, ge=0, description="weight of the adversarial loss; 0 leaves it out")
    adversarial_input: Literal["noised", "clean"] = Field("noised", description="what the discriminator sees")
    discriminator_weight: float = Field(0.1, ge=0, description="weight of the discriminator's loss")
    regression_weight: float = Field(
        0.0, ge=0, description="weight of the loss to each sample's real clip (generator_input noised_real)"
    )
    min_score_time: float = Field(0.02, ge=0, lt=1, description="smallest score time before the shift")
    max_score_time: float = Field(0.98, gt=0, le=1, description="largest score time before the shift")
    fake_updates_per_step: int = Field(5, ge=1, description="fake-score updates per generator update")
    fake_warmup_updates: int = Field(
        20, ge=0, description="fake-score updates before all others, on new clips every fake_updates_per_step"
    )
    replay_batches: int = Field(4, ge=1, description="latest generator batches kept for fake updates")
    continued_fraction: float = Field(0.25, ge=0, le=1, description="as in pretrain_i2v")
    own_frames_fraction: float = Field(
        0.0, ge=0, le=1, description="share of updates whose continued clips continue the student's own frames"
    )

    @property
    def is_guided(self) -> bool:
        """Whether the real score uses guidance."""
        return self.student_guidance_range is not None or self.real_guidance_scale != 1

    @property
    def has_one_base(self) -> bool:
        """Whether generator and scores are branches of one network, whose frozen weights are then in memory once."""
        return self.generator_lora_rank > 0 and self.fake_score == "lora" and self.start == self.real_score

    @property
    def is_adversarial(self) -> bool:
        """Whether there is a discriminator."""
        return self.adversarial_weight > 0

    @property
    def optimizers(self) -> Mapping[str, OptimizerConfig]:
        """Those of generator and fake score."""
        return {"optimizer": self.optimizer, "fake_optimizer": self.fake_optimizer}

    @model_validator(mode="after")
    def _score_times_in_order(self) -> Dmd2Config:
        if self.min_score_time >= self.max_score_time:
            raise ValueError(
                f"min_score_time = {self.min_score_time} is not below max_score_time = {self.max_score_time}; "
                "swap them, or move them apart"
            )
        return self

    @model_validator(mode="after")
    def _first_exit_is_not_the_rest(self) -> Dmd2Config:
        if self.first_exit_fraction is not None and self.num_inference_steps < 3:
            raise ValueError(
                f"first_exit_fraction = {self.first_exit_fraction}: with num_inference_steps = "
                f"{self.num_inference_steps} the first step's share follows from final_exit_fraction; expected three "
                "or more steps; use first_exit_fraction = null"
            )
        return self

    @model_validator(mode="after")
    def _shares_fit(self) -> Dmd2Config:
        if self.final_exit_fraction + (self.first_exit_fraction or 0.0) > 1:
            raise ValueError(
                f"final_exit_fraction = {self.final_exit_fraction} and first_exit_fraction = "
                f"{self.first_exit_fraction} are more than all updates; their sum is at most 1"
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
        if self.is_adversarial and self.discriminator_weight == 0:
            raise ValueError(
                f"adversarial_weight = {self.adversarial_weight}: with discriminator_weight = 0 a discriminator that "
                "never learns would push the student; raise that, or use adversarial_weight = 0"
            )
        if self.is_adversarial and self.placement.engine == "deepspeed" and self.placement.zero_stage == 3:
            raise ValueError(
                f"adversarial_weight = {self.adversarial_weight}: the generator's gradient cannot pass through a fake "
                "score that ZeRO stage 3 has split; use placement.zero_stage <= 2, or adversarial_weight = 0"
            )
        return self

    @model_validator(mode="after")
    def _learns_w(self) -> Dmd2Config:
        if self.start == "teacher" and self.generator_lora_rank > 0 and self.student_guidance_range is not None:
            raise ValueError(
                f"student_guidance_range = {self.student_guidance_range}: an adapter on the teacher never learns w, "
                "whose embedding it does not train; use start = cfg_distilled, or generator_lora_rank = 0"
            )
        return self

    @model_validator(mode="after")
    def _own_frames_fit(self) -> Dmd2Config:
        head = f"own_frames_fraction = {self.own_frames_fraction}"
        if self.own_frames_fraction > 0 and self.continued_fraction == 0:
            raise ValueError(f"{head}: no clip is continued with continued_fraction = 0; raise that, or use 0")
        if self.own_frames_fraction > 0 and (self.is_adversarial or self.generator_input == "noised_real"):
            raise ValueError(
                f"{head}: no real clip goes on from the student's frames; use adversarial_weight = 0 and "
                "generator_input = backward_simulation, or own_frames_fraction = 0"
            )
        return self

    @model_validator(mode="after")
    def _used_where_trained(self) -> Dmd2Config:
        if self.student_guidance_range is None:
            return self
        (low, high), used = self.student_guidance_range, self.student_guidance_scale
        if low > high:
            raise ValueError(f"student_guidance_range = ({low}, {high}): its ends are swapped; use ({high}, {low})")
        if not low <= used <= high:
            raise ValueError(
                f"student_guidance_range = ({low}, {high}): expected to contain student_guidance_scale = {used}, at "
                f"which the student is used; use ({min(low, used)}, {max(high, used)}), or a scale inside"
            )
        return self
