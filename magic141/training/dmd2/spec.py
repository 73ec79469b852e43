"""What is sent to a worker that takes part in a step distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from magic141.models.config import TransformerConfig
from magic141.training.context import TrainContext
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.dmd2 import Dmd2


@dataclass(frozen=True)
class Dmd2Spec:
    """What a worker needs to build the objective.

    Attributes:
        config: the stage's settings.
        model: the transformer's settings.
        data: the data artifact.
        teacher: diffusers folder of the undistilled network; a T2V teacher gives a T2V student.
        cfg_distilled: diffusers folder of the CFG-distilled network. `config.start` says from which of the two the
            student starts, `config.real_score` which one is the real score.
    """

    config: Dmd2Config
    model: TransformerConfig
    data: Path
    teacher: Path
    cfg_distilled: Path

    def folder(self, network: Literal["teacher", "cfg_distilled"]) -> Path:
        """The diffusers folder of one of the two networks."""
        return self.teacher if network == "teacher" else self.cfg_distilled

    def build(self, context: TrainContext) -> Dmd2:
        """Loads data and networks on this worker."""
        return Dmd2(self, context)
