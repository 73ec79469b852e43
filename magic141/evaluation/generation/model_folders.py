"""Loads the compared networks from their stages' artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.variants import ModelName
from magic141.models.device import refuse_large_on_cpu
from magic141.models.transformer import load_for_sampling, sampling_dtype
from magic141.quantization import load_quantized


@dataclass(frozen=True)
class ModelFolders:
    """Artifacts of the stages whose models are compared."""

    teacher: Path
    cfg: Path
    student: Path
    int8: Path

    def resolved(self) -> ModelFolders:
        """The same as absolute paths, which workers in other folders find, too."""
        return ModelFolders(self.teacher.resolve(), self.cfg.resolve(), self.student.resolve(), self.int8.resolve())

    def refuse_days_on_cpu(self, config: GenerateConfig, device: torch.device) -> None:
        """Refuses networks that are too large for a CPU if `device` is one, before any is loaded.

        Raises:
            UserError: if there is such a network on a CPU and generate.allow_cpu is false.
        """
        remedy = "run the flow on a node with a GPU, or set generate.allow_cpu=true and make the suite smaller"
        for folder in () if config.allow_cpu else (self.teacher, self.cfg, self.student, self.int8):
            refuse_large_on_cpu(folder / "transformer", device, remedy)

    def load(self, name: ModelName, device: torch.device) -> Any:
        """The network, ready for sampling."""
        folder: Path = getattr(self, name)
        if name == "int8":
            return load_quantized(folder, sampling_dtype(device)).to(device).eval()
        return load_for_sampling(folder / "transformer", device)
