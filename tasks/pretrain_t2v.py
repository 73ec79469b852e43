"""Stage 4: text to video by flow matching, or a base checkpoint as it is."""

from __future__ import annotations

from pathlib import Path

from tasks.stage import Stage, StageCall, sources_in
from tasks.training import TRAINING_CODE, VOLATILE


def _run(call: StageCall) -> None:
    from magic141.training.flow_matching import FlowMatchingSpec
    from magic141.training.pretraining import pretrain

    config, data = call.config.pretrain_t2v, call.inputs["prepare_data"]
    start = Path(config.base) if config.base else None
    spec = FlowMatchingSpec(config, call.config.model, data, start, image_condition=False)
    pretrain(spec, call.out, call.log, call.seed, call.run_dir)


STAGE = Stage(
    name="pretrain_t2v",
    modules=("magic141.training.pretraining", *TRAINING_CODE),
    settings=lambda config: {"pretrain_t2v": config.pretrain_t2v, "model": config.model},
    inputs=("prepare_data",),
    sources=sources_in("pretrain_t2v"),
    run=_run,
    volatile=VOLATILE,
    model_type="transformer",
)
