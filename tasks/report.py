"""Stage 11: the HTML report."""

from __future__ import annotations

from magic141.config import PipelineConfig
from tasks.stage import Settings, Stage, StageCall

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
SECTIONS = ("data", "model", *INPUTS[1:], "report")


def _settings(config: PipelineConfig) -> Settings:
    """All settings that the page shows; other settings give another page, even if the artifacts are equal."""
    return {name: getattr(config, name) for name in SECTIONS}


def _run(call: StageCall) -> None:
    from magic141.evaluation.reports.report import write_report

    settings = {"seed": call.seed, **STAGE.settings_in(call.config)}
    write_report(call.config.report, settings, call.inputs, call.out, call.log)


STAGE = Stage(
    name="report",
    modules=(
        "magic141.evaluation.reports.report",
        *(f"magic141.evaluation.reports:{name}.j2" for name in ("report.html", "playback.html", "bar.html", "bar.css")),
    ),
    settings=_settings,
    inputs=INPUTS,
    run=_run,
)
