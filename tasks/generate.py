"""Stage 9: videos of every variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from magic141.config import PipelineConfig
from tasks.stage import Stage, StageCall

INPUTS = (
    "prepare_data",
    "train_clip",
    "build_index",
    "pretrain_i2v",
    "distill_cfg",
    "distill_dmd2",
    "quantize",
)


def student_sampling(config: PipelineConfig) -> Mapping[str, Any]:
    """The settings of `distill_dmd2` that matter after training: how the student is sampled."""
    dmd2 = config.distill_dmd2
    return {
        "distill_dmd2.num_inference_steps": dmd2.num_inference_steps,
        "distill_dmd2.shift": dmd2.shift,
        "distill_dmd2.sampler": dmd2.sampler,
        "distill_dmd2.student_guidance_scale": dmd2.student_guidance_scale,
    }


def _run(call: StageCall) -> None:
    from magic141.evaluation.generation.generate import generate_suite
    from magic141.evaluation.generation.model_folders import ModelFolders

    models = ModelFolders(
        teacher=call.inputs["pretrain_i2v"],
        cfg=call.inputs["distill_cfg"],
        student=call.inputs["distill_dmd2"],
        int8=call.inputs["quantize"],
    )
    generate_suite(
        call.config.generate,
        call.config.distill_dmd2,
        call.config.model,
        data=call.inputs["prepare_data"],
        clip=call.inputs["train_clip"],
        index=call.inputs["build_index"],
        models=models,
        out=call.out,
        log=call.log,
        seed=call.seed,
        run_dir=call.run_dir,
    )


STAGE = Stage(
    name="generate",
    modules=("magic141.evaluation.generation.generate",),
    settings=lambda config: {"generate": config.generate, "model": config.model, **student_sampling(config)},
    inputs=INPUTS,
    run=_run,
)
