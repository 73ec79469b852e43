"""Stage 6: CFG distillation."""

from __future__ import annotations

from tasks.stage import Stage, StageCall
from tasks.training import TRAINING_CODE, VOLATILE


def _run(call: StageCall) -> None:
    from magic141.training.stages import distill_cfg

    config, inputs = call.config, call.inputs
    distill_cfg(
        config.distill_cfg,
        config.model,
        inputs["prepare_data"],
        inputs["pretrain_i2v"],
        call.out,
        call.log,
        call.seed,
        call.run_dir,
    )


STAGE = Stage(
    name="distill_cfg",
    modules=("magic141.training.cfg_distillation", *TRAINING_CODE),
    settings=lambda config: {"distill_cfg": config.distill_cfg, "model": config.model},
    inputs=("prepare_data", "pretrain_i2v"),
    run=_run,
    volatile=VOLATILE,
    model_type="transformer",
)
