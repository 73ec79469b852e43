"""Stage 11: the HTML report."""

from __future__ import annotations

from tasks.stage import Stage, StageCall

INPUTS = (
    "prepare_data",
    "train_clip",
    "build_index",
    "pretrain_t2v",
    "pretrain_i2v",
    "distill_cfg",
    "distill_dmd2",
    "quantize",
    "generate",
    "evaluate",
)


def _run(call: StageCall) -> None:
    from magic141.evaluation.report import write_report

    write_report(call.config.report, call.inputs, call.out, call.log)


STAGE = Stage(
    name="report",
    modules=("magic141.evaluation.report",),
    settings=lambda config: {"report": config.report},
    inputs=INPUTS,
    run=_run,
)
