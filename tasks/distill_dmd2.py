"""Stage 7: DMD2 step distillation of the CFG-distilled model."""

from __future__ import annotations

from tasks.stage import Stage, StageCall
from tasks.training import TRAINING_CODE, VOLATILE


def _run(call: StageCall) -> None:
    from magic141.training.stages import distill_dmd2

    config, inputs = call.config, call.inputs
    distill_dmd2(
        config.distill_dmd2,
        config.model,
        inputs["prepare_data"],
        inputs["pretrain_i2v"],
        inputs["distill_cfg"],
        call.out,
        call.log,
        call.seed,
        call.run_dir,
    )


STAGE = Stage(
    name="distill_dmd2",
    modules=("magic141.training.dmd2", *TRAINING_CODE),
    settings=lambda config: {"distill_dmd2": config.distill_dmd2, "model": config.model},
    inputs=("prepare_data", "pretrain_i2v", "distill_cfg"),
    run=_run,
    volatile=VOLATILE,
    model_type="transformer",
)
