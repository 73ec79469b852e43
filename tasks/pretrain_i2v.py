"""Stage 5: image to video, from the T2V network widened to 2C+1 channels or a base; the teacher."""

from __future__ import annotations

from pathlib import Path

from tasks.stage import Stage, StageCall, sources_in
from tasks.training import TRAINING_CODE, VOLATILE


def _run(call: StageCall) -> None:
    from magic141.training.flow_matching import FlowMatchingSpec
    from magic141.training.pretraining import pretrain

    config, data = call.config.pretrain_i2v, call.inputs["prepare_data"]
    start = Path(config.base) if config.base else call.inputs["pretrain_t2v"] / "transformer"
    spec = FlowMatchingSpec(config, call.config.model, data, start, image_condition=True)
    pretrain(spec, call.out, call.log, call.seed, call.run_dir)


STAGE = Stage(
    name="pretrain_i2v",
    modules=("magic141.training.pretraining", *TRAINING_CODE),
    settings=lambda config: {"pretrain_i2v": config.pretrain_i2v, "model": config.model},
    inputs=("prepare_data", "pretrain_t2v"),
    sources=sources_in("pretrain_i2v"),
    run=_run,
    volatile=VOLATILE,
    model_type="transformer",
)
