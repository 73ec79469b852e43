"""Checks a config across its sections; gives one line per problem."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from magic141.models.frames import num_latent_frames

if TYPE_CHECKING:
    from magic141.config.pipeline import PipelineConfig

SCHEDULE_STEPS = 1000
TRAINING_SECTIONS = ("pretrain_t2v", "pretrain_i2v", "distill_cfg", "distill_dmd2")


def problems(config: PipelineConfig) -> list[str]:
    """Everything that keeps `config` from being run; empty if nothing does."""
    checks = (_windows, _sides, _heads, _steps, _shown_clips, _shapes_corpus, _bases, _frechet, _guidance, _weak_shift)
    return [problem for check in checks for problem in check(config)]


def _windows(config: PipelineConfig) -> Iterator[str]:
    """Window, stored clip, codec and patches must fit together in time."""
    factor, window, stored = config.temporal_factor, config.model.window_frames, config.data.num_frames
    if (window - 1) % factor:
        near = (window - 1) // factor * factor + 1
        yield (f"model.window_frames = {window}: the codec needs {factor}*k+1 frames; use {near} or {near + factor}")
    if window > stored:
        yield f"model.window_frames = {window}: longer than data.num_frames = {stored}; use at most {stored}"
    elif stored - window < factor and any(_continued(config)):
        yield (
            f"data.num_frames = {stored}: windows that continue must start inside the clip; use at least "
            f"{window + factor} (model.window_frames + {factor}), or set every continued_fraction to 0"
        )
    latent_frames = num_latent_frames(window, factor)
    if latent_frames % config.model.patch_size_t:
        yield f"model.patch_size_t = {config.model.patch_size_t}: does not divide the {latent_frames} latent frames"
    yield from _carried(config, latent_frames)


def _sides(config: PipelineConfig) -> Iterator[str]:
    """Codec and patches must divide frames."""
    spatial = config.data.codec.sizes.spatial_factor
    unit = spatial * config.model.patch_size
    for size in config.data.more_sizes:
        if any(side % unit for side in size):
            yield f"data.more_sizes: {size}: not divisible by codec factor x model.patch_size; use multiples of {unit}"
    for side in ("height", "width"):
        pixels = getattr(config.data, side)
        if pixels % unit:
            yield (
                f"data.{side} = {pixels}: not divisible by codec factor {spatial} x model.patch_size "
                f"{config.model.patch_size}; use a multiple of {unit}"
            )


def _heads(config: PipelineConfig) -> Iterator[str]:
    """Workers that split a clip's tokens divide the heads of attention among them."""
    heads = config.model.num_attention_heads
    for stage in TRAINING_SECTIONS:
        size = getattr(config, stage).placement.sequence_parallel_size
        if heads % size:
            yield (
                f"{stage}.placement.sequence_parallel_size = {size}: expected a divisor of model.num_attention_heads = "
                f"{heads}; use {math.gcd(heads, size)}"
            )


def _carried(config: PipelineConfig, latent_frames: int) -> Iterator[str]:
    """A window of a long video consists of its anchor, the frames carried into it, and at least one new frame."""
    carried, factor = config.generate.long_video_carried, config.temporal_factor
    if latent_frames < 3:  # none is left to carry
        yield (
            f"model.window_frames = {config.model.window_frames}: long videos need windows of an anchor, "
            f"generate.long_video_carried = {carried} and a new latent frame; use at least {(carried + 1) * factor + 1}"
        )
    elif carried > latent_frames - 2:
        yield (
            f"generate.long_video_carried = {carried}: a window has {latent_frames} latent "
            f"frames, one of them the anchor; use at most {latent_frames - 2}"
        )


def _continued(config: PipelineConfig) -> Iterable[float]:
    return (getattr(config, name).continued_fraction for name in TRAINING_SECTIONS if name != "pretrain_t2v")


def _steps(config: PipelineConfig) -> Iterator[str]:
    """Samplers take no more steps than the schedule has."""
    generate = config.generate
    for name, steps in [("many_steps", generate.many_steps), *(("few_steps", n) for n in generate.few_steps)]:
        if not 1 <= steps <= SCHEDULE_STEPS:
            yield f"generate.{name} = {steps}: the schedule has {SCHEDULE_STEPS} steps; use 1 to {SCHEDULE_STEPS}"


def _shown_clips(config: PipelineConfig) -> Iterator[str]:
    """Clips that are shown are among those that are generated."""
    generate = config.generate
    if generate.num_showcase_clips > generate.num_exact_clips:
        yield (
            f"generate.num_showcase_clips = {generate.num_showcase_clips}: only generate.num_exact_clips = "
            f"{generate.num_exact_clips} are generated; use at most that"
        )


def _shapes_corpus(config: PipelineConfig) -> Iterator[str]:
    """Batches must fit into the corpus, and there must be enough clips to evaluate; a folder's are counted later."""
    if config.data.source != "shapes":
        return
    shapes = config.data.shapes
    num_train = shapes.num_train
    why = f"the corpus has data.shapes.num_train = {num_train} clips; use a batch of at most {num_train}, or more clips"
    if num_train < 2:
        yield f"data.shapes.num_train = {num_train}: too few for the smallest batch of train_clip; use at least 2"
    else:
        yield from oversized_batches(config, ("train_clip", *TRAINING_SECTIONS), num_train, why)
    for name in ("num_exact_clips", "long_video_clips"):
        clips = getattr(config.generate, name)
        if clips > shapes.num_heldout:
            yield (
                f"generate.{name} = {clips}: data.shapes.num_heldout = {shapes.num_heldout} clips are held out; "
                f"use at most {shapes.num_heldout}"
            )


def _bases(config: PipelineConfig) -> Iterator[str]:
    """A stage without steps takes its base as it is; T2V needs none if nothing is made from it."""
    t2v, i2v = config.pretrain_t2v, config.pretrain_i2v
    taken = "num_steps = 0 takes a base as it is, but base is not set; set base, or train"
    if not i2v.num_steps and i2v.base is None:
        yield f"pretrain_i2v.{taken}"
    if t2v.lora_rank and t2v.num_steps and t2v.base is None:
        yield f"pretrain_t2v.lora_rank = {t2v.lora_rank}: there is nothing to adapt without a base; set base, or use 0"
    if not t2v.num_steps and t2v.base is None and i2v.base is None:
        yield f"pretrain_t2v.{taken}, or set pretrain_i2v.base, so that no T2V model is needed"


def _frechet(config: PipelineConfig) -> Iterator[str]:
    """Its samples are latent positions, of which there must be more than the dimensions that are compared."""
    channels, factor, side = config.data.codec.sizes
    clips, asked = config.generate.num_exact_clips, config.evaluate.frechet_dimensions
    samples = clips * (config.data.height // side) * (config.data.width // side)
    numbers = channels * num_latent_frames(config.model.window_frames, factor)
    field = f"evaluate.frechet_dimensions = {asked}"
    if asked > numbers:
        yield f"{field}: a latent position of a window has only {numbers} numbers; use at most that"
    elif asked >= samples:
        yield (
            f"{field}: generate.num_exact_clips = {clips} have {samples} latent positions; use at most {samples - 1}, "
            "or more clips"
        )


def oversized_batches(config: PipelineConfig, names: Iterable[str], num_train: int, why: str) -> Iterator[str]:
    """Yields a line for every training section whose batch has more clips than there are."""
    for name in names:
        section = getattr(config, name)
        if section.num_steps and section.batch_size > num_train:
            yield f"{name}.batch_size = {section.batch_size}: {why}"


def _guidance(config: PipelineConfig) -> Iterator[str]:
    """The CFG-distilled model may only be used at guidance scales that it was distilled on."""
    low, high = config.distill_cfg.min_guidance_scale, config.distill_cfg.max_guidance_scale
    dmd2 = config.distill_dmd2
    asked = [
        ("generate.guidance_scale", config.generate.guidance_scale),
        ("distill_dmd2.student_guidance_scale", dmd2.student_guidance_scale),
    ]
    if dmd2.student_guidance_range and "cfg_distilled" in (dmd2.start, dmd2.real_score):
        asked += [("distill_dmd2.student_guidance_range", end) for end in dmd2.student_guidance_range]
    if dmd2.real_score == "cfg_distilled":
        asked.append(("distill_dmd2.real_guidance_scale", dmd2.real_guidance_scale))
    for field, value in asked:
        if not low <= value <= high:
            yield f"{field} = {value}: distill_cfg covers {low} to {high}; stay inside, or widen distill_cfg's range"


def _weak_shift(config: PipelineConfig) -> Iterator[str]:
    """a_weak must be below a_strong: DMD2's gradient vanishes if they are equal, and reverses if a_weak is larger."""
    weak, strong = config.distill_dmd2.a_weak, config.distill_dmd2.a_strong
    if weak >= strong:
        yield (
            f"distill_dmd2.a_weak = {weak}: expected below a_strong = {strong}, where real and fake score are one "
            f"network; use {strong / 2} or less"
        )
