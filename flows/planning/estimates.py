"""Estimates a stage's workers, time and memory, from its earlier runs or from its networks' sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flows.planning.needs import needs_of
from magic141.config import PipelineConfig
from magic141.config.checks import TRAINING_SECTIONS
from magic141.data.sizes import Size
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.variants import list_variants, long_video_variants
from magic141.models.frames import num_latent_frames
from magic141.models.size import num_parameters
from magic141.tracking import Tracker
from magic141.training.config import TrainConfig
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.memory import activation_bytes, state_bytes
from magic141.training.operations import EVALUATION, num_operations, passes_of_training, passes_per_update

HUNYUAN_TEXT, HUNYUAN_POOLED = 4096, 768
IMAGE_TOKENS = {"tiny": (32 // 8) ** 2, "hunyuan": (336 // 14) ** 2}  # (side // patch) ** 2, before the stride
GPU_OPERATIONS_PER_S = 450e12  # speed of the 13B network in bf16 on an H200: docs/results.md
SIZED_BY = ("batch_size", "precision", "fake_score", "lora_rank", "generator_lora_rank", "adversarial_weight")
STARTING_S = 60.0  # less arithmetic than this says nothing: a small network's time is that of starts and of launches


@dataclass(frozen=True)
class Estimate:
    """Estimated needs of a stage.

    Attributes:
        resources: workers, CPUs and GPUs in words.
        num_gpus: GPUs of all workers together.
        seconds: time of its newest run if that was of the same network and size of clips, in proportion to a training's
            work; otherwise the time of its arithmetic on its GPUs; None without GPUs, or if that is below a minute.
        timed: whether `seconds` comes from an earlier run, scaled by no more than the number of its steps.
        memory_gib: GiB per worker; None if unknown.
        measured: whether `memory_gib` was measured in the newest run; otherwise calculated from weights, gradients,
            optimizer states and activations.
    """

    resources: str
    num_gpus: float
    seconds: float | None
    timed: bool
    memory_gib: float | None
    measured: bool


def estimate(stage: str, config: PipelineConfig, tracker: Tracker | None) -> Estimate:
    """Takes what the stage's newest finished run measured, and calculates the rest."""
    records = tracker.records(stage, limit=1) if tracker else []
    record = records[0] if records else {}
    training = getattr(config, stage) if stage in TRAINING_SECTIONS else None
    needs = needs_of(stage, config)
    measured = _measured_gib(record) if _same_size(stage, record, training, config) else None
    calculated = None if training is None or training.num_steps == 0 else calculated_gib(stage, config, training)
    memory = calculated if measured is None else measured
    pace = None if training is None else _pace(stage, record, training)
    taken = _seconds(record, training, pace, config)
    seconds = _gpu_seconds(stage, config, needs.num_gpus) if taken is None else taken
    timed = taken is not None and pace in (None, 1)
    return Estimate(needs.words, needs.num_gpus, seconds, timed, memory, measured is not None)


def _seconds(
    record: Mapping[str, Any], training: TrainConfig | None, pace: float | None, config: PipelineConfig
) -> float | None:
    """Time of an earlier run of the same network; a training's steps are scaled, but not its start."""
    seconds, summary = record.get("seconds"), record.get("summary", {})
    if seconds is None or not _same_network(record, config):
        return None
    if training is None:
        return float(seconds)
    if not summary.get("steps") or not _same_clips(record, config):
        return None
    stepping = float(summary["seconds"])
    start = max(float(seconds) - stepping, 0.0)  # the first is of the last attempt only
    return start + stepping * (pace or 1) * training.num_steps / float(summary["steps"])


def _pace(stage: str, record: Mapping[str, Any], training: TrainConfig) -> float:
    """How much longer a step takes than in an earlier run: by its passes, its clips and the workers for them."""
    before = record.get("parts", {}).get("config", {}).get(stage, {})
    plain = {name: value for name, value in before.items() if not isinstance(value, dict)}
    then, workers = training.model_copy(update=plain), training.placement.num_workers
    clips = training.batch_size / then.batch_size
    passes = passes_per_update(training).products / passes_per_update(then).products
    return float(passes * clips * record.get("summary", {}).get("num_workers", workers) / workers)


def _same_network(record: Mapping[str, Any], config: PipelineConfig) -> bool:
    """Whether an earlier run was of a network like the config's, or of none."""
    now = config.model.model_dump(mode="json")
    return bool(record.get("parts", {}).get("config", {}).get("model", now) == now)


def _same_clips(record: Mapping[str, Any], config: PipelineConfig) -> bool:
    """Whether an earlier training's clips were as high and wide in latents; how long they are, the network says."""
    return bool(record.get("summary", {}).get("latent_size") == InputSizes.of(config).latent_size(config))


def _gpu_seconds(stage: str, config: PipelineConfig, num_gpus: float) -> float | None:
    """Time of a stage's arithmetic alone, without reading, communication and validation."""
    if num_gpus == 0 or stage == "prepare_data":
        return None
    if stage == "generate":
        shapes = config.data.source == "shapes"
        passes = EVALUATION * _num_evaluations(config.generate, config.distill_dmd2, has_ground_truth=shapes)
    else:
        training = getattr(config, stage)
        if training.precision != "bf16":
            return None
        passes = passes_of_training(training) * training.batch_size
    sizes = (config.data.size,) if stage == "generate" else config.data.sizes
    tokens = InputSizes.of(config).num_tokens(config, sizes, image_condition=stage != "pretrain_t2v")
    seconds = num_operations(passes, config.model, tokens) / num_gpus / GPU_OPERATIONS_PER_S
    return seconds if seconds > STARTING_S else None


def _num_evaluations(config: GenerateConfig, dmd2: Dmd2Config, has_ground_truth: bool) -> int:
    """Network evaluations of all clips by all variants; continuations need ground truth."""
    clips = config.num_exact_clips + len(config.prompts or range(config.num_prompts)) * config.num_seeds
    if has_ground_truth:
        clips += min(config.num_continuation_clips, config.num_exact_clips)
    windows = config.long_video_windows * config.long_video_clips
    short, long = (
        sum(variant.num_evaluations for variant in variants)
        for variants in (list_variants(config, dmd2), long_video_variants(config, dmd2))
    )
    return short * clips + long * windows


def _measured_gib(record: Mapping[str, Any]) -> float | None:
    summary = record.get("summary", {})
    if "peak_memory_mb" not in summary or not summary.get("num_workers"):
        return None
    return float(summary["peak_memory_mb"]) / float(summary["num_workers"]) / 1024


def _same_size(stage: str, record: Mapping[str, Any], training: TrainConfig | None, config: PipelineConfig) -> bool:
    """Whether a measured memory still applies: the same network, options, splitting, and number and size of clips."""
    if training is None:
        return False
    summary, then = record.get("summary", {}), record.get("parts", {}).get("config", {})
    where = training.placement
    at_once = summary.get("clips_per_pass", training.clips_per_worker)
    before = (summary.get("num_workers"), summary.get("splitting"), at_once, *_sized_by(then.get(stage, {})))
    options = _sized_by(training.model_dump(mode="json"))
    now = (where.num_workers, where.splitting, training.clips_per_pass, *options)
    return now == before and _same_network(record, config) and _same_clips(record, config)


def _sized_by(options: Mapping[str, Any]) -> list[Any]:
    """A training stage's options that decide its memory."""
    kinds = [options.get(name, {}).get("kind") for name in ("optimizer", "fake_optimizer")]
    return [*kinds, *(options.get(name) for name in SIZED_BY)]


def calculated_gib(stage: str, config: PipelineConfig, training: TrainConfig) -> float:
    """GiB per worker of a training stage, for weights, gradients, optimizer states and activations."""
    sizes = InputSizes.of(config)
    i2v, guided = stage != "pretrain_t2v", stage.startswith("distill")
    widths = (sizes.channels, sizes.text_width, sizes.pooled_width)
    states = state_bytes(training, config.model, num_parameters(config.model, *widths, i2v, guided))
    tokens = sizes.num_tokens(config, config.data.sizes, i2v)
    return (states + activation_bytes(training, config.model, tokens)) / 2**30


@dataclass(frozen=True)
class InputSizes:
    """Sizes of the network's inputs, from the config alone.

    Attributes:
        channels: channels of the latents.
        factor: spatial compression: side of a latent pixel, in pixels.
        text_width: width of text and image tokens.
        pooled_width: width of the pooled text vector.
    """

    channels: int
    factor: int
    text_width: int
    pooled_width: int

    @classmethod
    def of(cls, config: PipelineConfig) -> InputSizes:
        """The sizes that follow from a config."""
        video, encoder = config.data.codec.sizes, config.data.encoder
        text = (encoder.width,) * 2 if encoder.kind == "tiny" else (HUNYUAN_TEXT, HUNYUAN_POOLED)
        return cls(video.channels, video.spatial_factor, *text)

    def latent_size(self, config: PipelineConfig) -> str:
        """Height and width of latents of all sizes, as a training records them."""
        sides = ((size.height // self.factor, size.width // self.factor) for size in config.data.sizes)
        return " ".join(f"{height}x{width}" for height, width in sides)

    def num_text(self, config: PipelineConfig, image_condition: bool = True) -> int:
        """Tokens of one clip's text and first frame."""
        encoder = config.data.encoder
        image = -(-IMAGE_TOKENS[encoder.kind] // encoder.image_token_stride)
        return encoder.max_text_tokens + (image if image_condition and encoder.image_tokens else 0)

    def num_tokens(self, config: PipelineConfig, sizes: Iterable[Size], image_condition: bool) -> int:
        """Tokens of one clip of the largest of `sizes`: patches of its window, text, and the first frame's tokens."""
        model = config.model
        patch = model.patch_size * self.factor
        frames = num_latent_frames(model.window_frames, config.temporal_factor) // model.patch_size_t
        largest = max((size.height // patch) * (size.width // patch) for size in sizes)
        return frames * largest + self.num_text(config, image_condition)
