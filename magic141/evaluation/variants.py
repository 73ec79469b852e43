"""The variants that are compared: model, number of steps, sampler and guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from magic141.evaluation.config import GenerateConfig
from magic141.models.sampling import SamplingSettings
from magic141.training.dmd2.config import Dmd2Config

if TYPE_CHECKING:
    from magic141.models.generator import VideoGenerator
    from magic141.models.text_embedding import TextEmbedding

ModelName = Literal["teacher", "cfg", "student", "int8"]
IN_CHAIN = {  # model: name and label of its variants in the student's chain
    "cfg": ("cfg_chain", "CFG-distilled, student's chain"),
    "student": ("student", "student"),
    "int8": ("int8", "int8 student"),
}


@dataclass(frozen=True)
class Variant(SamplingSettings):
    """One row of the score table."""

    name: str
    label: str
    model: ModelName

    def generator(self, model: Any, null_text: TextEmbedding, latent_frames: int) -> VideoGenerator:
        """A generator that samples the given network with this variant's settings."""
        from magic141.models.generator import VideoGenerator  # imports torch, which listing variants does not need

        return VideoGenerator(model, null_text, latent_frames, settings=self)


def list_variants(config: GenerateConfig, dmd2: Dmd2Config) -> list[Variant]:
    """All variants, models in the order of the pipeline: teacher, CFG-distilled model, student, int8 student.

    The CFG-distilled model is sampled as when used alone, and in the student's chain, to show what step distillation
    adds.
    """
    few = [steps for steps in config.few_steps if steps != config.many_steps]
    teacher = [teacher_variant(config, steps) for steps in (config.many_steps, *few)]
    cfg = [_cfg(config, steps) for steps in (config.many_steps, *few)]
    chain = dict.fromkeys((dmd2.num_inference_steps, *few))
    before, student = ([_in_chain(dmd2, steps, model) for steps in chain] for model in ("cfg", "student"))
    return [*teacher, *cfg, *before, *student, _in_chain(dmd2, dmd2.num_inference_steps, "int8")]


def long_video_variants(config: GenerateConfig, dmd2: Dmd2Config) -> list[Variant]:
    """The variants of the long videos: the teacher, at fewer steps than usual, and the student."""
    return [teacher_variant(config, config.long_video_teacher_steps), student_variant(dmd2)]


def student_variant(dmd2: Dmd2Config) -> Variant:
    """The student at the steps that it is distilled for."""
    return _in_chain(dmd2, dmd2.num_inference_steps, "student")


def teacher_variant(config: GenerateConfig, num_steps: int) -> Variant:
    """The undistilled model: Euler steps with two evaluations each."""
    return Variant(
        name=f"teacher_{num_steps}",
        label=f"teacher, {_steps(num_steps)}",
        model="teacher",
        sampler="euler",
        guidance="two_evaluations",
        num_steps=num_steps,
        guidance_scale=config.guidance_scale,
        shift=config.shift,
    )


def _cfg(config: GenerateConfig, num_steps: int) -> Variant:
    return Variant(
        name=f"cfg_{num_steps}",
        label=f"CFG-distilled, {_steps(num_steps)}",
        model="cfg",
        sampler="euler",
        guidance="embedded",
        num_steps=num_steps,
        guidance_scale=config.guidance_scale,
        shift=config.shift,
    )


def _in_chain(dmd2: Dmd2Config, num_steps: int, model: Literal["cfg", "student", "int8"]) -> Variant:
    """A model sampled like the student, with its sampler, shift and guidance."""
    name, label = IN_CHAIN[model]
    return Variant(
        name=f"{name}_{num_steps}",
        label=f"{label}, {_steps(num_steps)}",
        model=model,
        sampler=dmd2.sampler,
        guidance="embedded",
        num_steps=num_steps,
        guidance_scale=dmd2.student_guidance_scale,
        shift=dmd2.shift,
    )


def _steps(num: int) -> str:
    return "1 step" if num == 1 else f"{num} steps"
