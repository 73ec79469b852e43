"""Stage 7: DMD2 step distillation of the CFG-distilled model."""

from __future__ import annotations

import json

from magic141.artifacts.references import ArtifactRef
from magic141.errors import UserError
from tasks.stage import Stage, StageCall, StageContext
from tasks.training import TRAINING_CODE, VOLATILE


def _run(call: StageCall) -> None:
    from magic141.training.dmd2.spec import Dmd2Spec
    from magic141.training.train import train

    config, data = call.config.distill_dmd2, call.inputs["prepare_data"]
    teacher, cfg_distilled = (call.inputs[stage] / "transformer" for stage in ("pretrain_i2v", "distill_cfg"))
    spec = Dmd2Spec(config, call.config.model, data, teacher, cfg_distilled)
    train(spec, config, data, call.out, call.log, call.seed, call.run_dir)


def _refuse_collapsed(context: StageContext, ref: ArtifactRef) -> None:
    """Refuses to reuse a student that ended collapsed, unless this run also sets collapse.stop = false."""
    from magic141.training.config import WATCH_FILE

    watched = json.loads((ref.path / WATCH_FILE).read_text())
    if watched["collapsed"] and context.config.distill_dmd2.collapse.stop:
        raise UserError(
            f"distill_dmd2.collapse.stop = true: the student of run {ref.run_id} had collapsed at its end; change a "
            "setting of distill_dmd2, or take it as it is with collapse.stop = false"
        )


STAGE = Stage(
    name="distill_dmd2",
    modules=("magic141.training.dmd2.spec", *TRAINING_CODE),
    settings=lambda config: {"distill_dmd2": config.distill_dmd2, "model": config.model},
    inputs=("prepare_data", "pretrain_i2v", "distill_cfg"),
    run=_run,
    volatile=VOLATILE,
    model_type="transformer",
    on_ready=_refuse_collapsed,
)
