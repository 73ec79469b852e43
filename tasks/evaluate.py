"""Stage 10: scores of all variants."""

from __future__ import annotations

from collections.abc import Mapping

from magic141.config import PipelineConfig
from magic141.evaluation.scoring.vbench_needs import what_can_be_scored
from tasks.stage import Stage, StageCall


def _run(call: StageCall) -> None:
    from magic141.evaluation.scoring.evaluate import evaluate_suite

    evaluate_suite(call.config.evaluate, call.inputs["prepare_data"], call.inputs["generate"], call.out, call.log)


def _sources(config: PipelineConfig) -> Mapping[str, str]:
    """What VBench can compute here: with more packages or weights installed, the stage runs again."""
    return {"vbench": what_can_be_scored(config.evaluate.vbench_dimensions)}


STAGE = Stage(
    name="evaluate",
    modules=("magic141.evaluation.scoring.evaluate",),
    settings=lambda config: {"evaluate": config.evaluate},
    inputs=("prepare_data", "generate"),
    sources=_sources,
    run=_run,
)
