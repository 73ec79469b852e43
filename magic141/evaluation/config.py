"""Configs of quantisation, generation, evaluation, report and publication."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from magic141.frozen import FrozenConfig, Name, placement

VBenchDimension = Literal[
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "subject_consistency",
    "background_consistency",
    "aesthetic_quality",
    "imaging_quality",
    "i2v_subject",
]


TransformerModule = Literal[
    "x_embedder",
    "context_embedder",
    "time_text_embed",
    "transformer_blocks",
    "single_transformer_blocks",
    "norm_out",
    "proj_out",
]


class QuantizeConfig(FrozenConfig):
    """Int8 weights of the transformer blocks' linear layers, one scale per output channel."""

    exclude: tuple[TransformerModule, ...] = Field(
        ("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"),
        description="top-level modules whose linear layers stay in full precision",
    )

    @model_validator(mode="after")
    def _quantizes_blocks(self) -> QuantizeConfig:
        if "transformer_blocks" in self.exclude and "single_transformer_blocks" in self.exclude:
            raise ValueError(f"exclude = {list(self.exclude)}: leaves no block to quantise; exclude fewer modules")
        return self


class GenerateConfig(FrozenConfig):
    """The videos that are generated for evaluation."""

    num_exact_clips: int = Field(256, ge=1, description="held-out clips continued by every variant, for exact scores")
    num_showcase_clips: int = Field(6, ge=1, description="those shown in the report and scored by VBench")
    prompts: tuple[str, ...] = Field((), description="prompt suite; empty: captions of held-out clips")
    num_prompts: int = Field(8, ge=1, description="captions taken if `prompts` is empty")
    num_seeds: int = Field(2, ge=1, description="seeds per prompt")
    num_continuation_clips: int = Field(64, ge=1, description="clips continued from two known latent frames")
    many_steps: int = Field(25, ge=1, description="steps of the undistilled models")
    guidance_scale: float = Field(1.5, ge=0, description="w; 1 is no guidance")
    shift: float = Field(8.0, gt=0, description="shift of the Euler grid")
    few_steps: tuple[int, ...] = Field((4, 2, 1), min_length=1, description="smaller numbers of steps, for every model")
    long_video_windows: int = Field(12, ge=1, description="chained windows of the long video")
    long_video_clips: int = Field(16, ge=1, description="long videos, for the drift curve")
    long_video_teacher_steps: int = Field(8, ge=1, description="steps of the teacher's long videos, for comparison")
    long_video_scheme: Literal["chained", "fused"] = Field(
        "chained", description="windows one after the other, or all at every step, averaged where they overlap"
    )
    long_video_carried: int = Field(
        2,
        ge=1,
        le=2,
        description="latent frames carried from window to window; training covers 1 and 2",
    )
    batch_size: int = Field(32, ge=1, description="clips per forward pass; noise is drawn batch by batch")
    num_threads: int = placement(2, ge=1, description="CPU threads of each worker")
    num_workers: int = placement(
        1, ge=1, description="pieces of the suite sampled at the same time; 1: in this process, more: as Ray tasks"
    )
    evaluations_per_piece: int = placement(
        10_000,
        ge=1,
        description="network evaluations of a piece, counted per clip: as much may be lost in a crash, and every piece "
        "loads its network again on a worker",
    )
    gpus_per_worker: float = placement(0, ge=0, description="GPUs of a Ray task")
    allow_cpu: bool = placement(False, description="sample more than 1e9 parameters even without a GPU")

    @model_validator(mode="after")
    def _prompts_not_empty(self) -> GenerateConfig:
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError(f"prompts = {self.prompts}: one of them is empty, expected a string in each; remove it")
        return self

    @model_validator(mode="after")
    def _few_steps_differ(self) -> GenerateConfig:
        if len(set(self.few_steps)) < len(self.few_steps):
            once = list(dict.fromkeys(self.few_steps))
            raise ValueError(f"few_steps = {self.few_steps}: a number occurs twice, expected each once; use {once}")
        return self


class EvaluateConfig(FrozenConfig):
    """Which scores are computed."""

    vbench_dimensions: tuple[VBenchDimension, ...] = Field(
        ("temporal_flickering",), description="VBench dimensions; if one lacks its weights, the report says so"
    )
    frechet_dimensions: int = Field(64, ge=2, description="principal components of the Fréchet distance")


class ReportConfig(FrozenConfig):
    """The HTML report."""

    title: str = Field("magic141", description="heading")
    num_videos: int = Field(6, ge=1, description="clips shown per variant")
    zoom: int = Field(4, ge=1, description="screen pixels per video pixel, for small videos")


class GateCondition(FrozenConfig):
    """A condition on one metric that a model must meet to be promoted."""

    metric: str = Field(min_length=1, description="metric of the pipeline run, such as student/frechet")
    better: Literal["higher", "lower"] = Field(description="which values are better")
    tolerance: float | None = Field(
        0.0, ge=0, description="by how much it may be worse than the champion's; null: the champion does not matter"
    )
    relative_tolerance: float = Field(
        0.0, ge=0, description="the same as a share of the champion's value, for metrics without a scale of their own"
    )
    limit: float | None = Field(None, description="bound that applies with or without a champion")

    @model_validator(mode="after")
    def _asks_something(self) -> GateCondition:
        if self.tolerance is None and self.limit is None:
            raise ValueError(f"metric = {self.metric}: neither a tolerance nor a limit, so it holds always; set one")
        return self


EXACT_GATE = (
    GateCondition(metric="student/motion", better="higher", tolerance=0.05),
    GateCondition(metric="student/background_psnr_db", better="higher", tolerance=1.0),
)
COMMON_GATE = (
    GateCondition(metric="student/frechet", better="lower", relative_tolerance=0.25),
    GateCondition(metric="student/peak_memory_mb", better="lower", tolerance=100.0),
)


class PublishConfig(FrozenConfig):
    """The registered model, and the conditions for becoming the champion."""

    model_name: Name = Field(
        "magic141",
        pattern=r"^[\w.-]([\w. -]*[\w.-])?$",
        description="name of the registered model in MLflow: letters, digits, _ . - and spaces inside",
    )
    alias: str = Field(
        "candidate",
        pattern=r"^[A-Za-z][\w-]*$",
        description="alias set on the new version: a letter, then letters, digits, _ or -",
    )
    champion: str = Field("champion", pattern=r"^[A-Za-z][\w-]*$", description="alias that `magic141 promote` moves")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of the published transformer; bfloat16: half the size, and what GPUs sample in",
    )
    gate: tuple[GateCondition, ...] | None = Field(
        None,
        description="conditions for promotion, besides not having collapsed; null: the built-in gate for this kind of "
        "data",
    )

    def conditions(self, has_ground_truth: bool) -> tuple[GateCondition, ...]:
        """The configured gate, or else the built-in one for data with or without ground truth."""
        if self.gate is not None:
            return self.gate
        return (*(EXACT_GATE if has_ground_truth else ()), *COMMON_GATE)

    @field_validator("alias", "champion")
    @classmethod
    def _not_reserved(cls, alias: str) -> str:
        if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
            raise ValueError("MLflow keeps `latest` and v1, v2, … for itself; use another name, such as 'candidate'")
        return alias

    @model_validator(mode="after")
    def _champion_only_by_promotion(self) -> PublishConfig:
        if self.alias == self.champion:
            raise ValueError(
                f"alias = {self.alias!r} is publish.champion too: expected another, so that only `magic141 promote`, "
                "which asks the gate, moves the champion"
            )
        return self
