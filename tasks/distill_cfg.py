"""Stage 6: CFG distillation."""

from __future__ import annotations

from tasks.stage import Stage, StageCall
from tasks.training import TRAINING_CODE, VOLATILE


def _run(call: StageCall) -> None:
    from magic141.training.cfg_distillation import CfgDistillationSpec
    from magic141.training.train import train

    config, data, teacher = call.config.distill_cfg, call.inputs["prepare_data"], call.inputs["pretrain_i2v"]
    spec = CfgDistillationSpec(config, call.config.model, data, teacher / "transformer")
    train(spec, config, data, call.out, call.log, call.seed, call.run_dir)


STAGE = Stage(
    name="distill_cfg",
    modules=("magic141.training.cfg_distillation", *TRAINING_CODE),
    settings=lambda config: {"distill_cfg": config.distill_cfg, "model": config.model},
    inputs=("prepare_data", "pretrain_i2v"),
    run=_run,
    volatile=VOLATILE,
    model_type="transformer",
)
