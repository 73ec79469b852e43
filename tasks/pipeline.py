"""The list of all stages, in the order in which they run."""

from __future__ import annotations

from magic141.config import PipelineConfig, missing_sources
from magic141.config.errors import nearest
from magic141.errors import UserError
from tasks import (
    build_index,
    distill_cfg,
    distill_dmd2,
    evaluate,
    generate,
    prepare_data,
    pretrain_i2v,
    pretrain_t2v,
    publish,
    quantize,
    report,
    train_clip,
)
from tasks.stage import Stage

STAGES: tuple[Stage, ...] = (
    prepare_data.STAGE,
    train_clip.STAGE,
    build_index.STAGE,
    pretrain_t2v.STAGE,
    pretrain_i2v.STAGE,
    distill_cfg.STAGE,
    distill_dmd2.STAGE,
    quantize.STAGE,
    generate.STAGE,
    evaluate.STAGE,
    report.STAGE,
    publish.STAGE,
)


def stages_between(first: str | None, last: str | None) -> tuple[Stage, ...]:
    """The stages from `first` to `last`, inclusive; None stands for the very first or last stage.

    Raises:
        UserError: if there is no such stage, or `first` comes after `last`.
    """
    start = 0 if first is None else _place(first, "--from")
    end = len(STAGES) - 1 if last is None else _place(last, "--until")
    if start > end:
        raise UserError(f"--from {first}: comes after --until {last}; swap them, or leave one out")
    return STAGES[start : end + 1]


def judging_stages() -> tuple[Stage, ...]:
    """The stages that sample models that are there already, score and show them."""
    return stages_between("generate", "report")


def _place(name: str, option: str) -> int:
    return [stage.name for stage in STAGES].index(known_stage(name, option))


def known_stage(name: str, option: str) -> str:
    """Returns the name if there is such a stage.

    Raises:
        UserError: if no stage has that name.
    """
    names = [stage.name for stage in STAGES]
    if name not in names:
        raise UserError(f"{option} {name or repr(name)}: no such stage; {nearest(name, names)}")
    return name


def missing_by_stage(config: PipelineConfig) -> dict[str, str]:
    """Stage -> error lines, for stages that read missing files or folders or a base that does not fit."""
    stages = {stage.section: stage.name for stage in STAGES}
    found: dict[str, list[str]] = {}
    for line in missing_sources(config):
        found.setdefault(stages[line.partition(".")[0]], []).append(line)
    return {stage: "\n".join(lines) for stage, lines in found.items()}
