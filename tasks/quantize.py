"""Stage 8: int8 weights of the student."""

from __future__ import annotations

from tasks.stage import Stage, StageCall


def _run(call: StageCall) -> None:
    from magic141.quantization import quantize_student

    quantize_student(call.config.quantize, call.inputs["distill_dmd2"], call.out, call.log)


STAGE = Stage(
    name="quantize",
    modules=("magic141.quantization",),
    settings=lambda config: {"quantize": config.quantize},
    inputs=("distill_dmd2",),
    run=_run,
    model_type="transformer-int8",
)
