"""Stage 10: scores."""

from __future__ import annotations

from tasks.stage import Stage, StageCall


def _run(call: StageCall) -> None:
    from magic141.evaluation.evaluate import evaluate_suite

    evaluate_suite(call.config.evaluate, call.inputs["prepare_data"], call.inputs["generate"], call.out, call.log)


STAGE = Stage(
    name="evaluate",
    modules=("magic141.evaluation.evaluate",),
    settings=lambda config: {"evaluate": config.evaluate},
    inputs=("prepare_data", "generate"),
    run=_run,
)
