"""The stages' names, and stages that fail."""

from __future__ import annotations

from dataclasses import replace

import tasks.pipeline
from tasks.stage import Stage, StageCall

ALL = [stage.name for stage in tasks.pipeline.STAGES]


def after(*stages: str) -> list[str]:
    return [name for name in ALL if name not in stages]


def broken_at(stages: tuple[Stage, ...], at_seed: int = 5) -> tuple[Stage, ...]:
    """The stages with a train_clip that fails at one seed."""

    def maybe(stage: Stage) -> Stage:
        def work(call: StageCall) -> None:
            if call.seed == at_seed:
                raise RuntimeError("out of memory")
            stage.run(call)

        return replace(stage, run=work) if stage.name == "train_clip" else stage

    return tuple(maybe(stage) for stage in stages)
