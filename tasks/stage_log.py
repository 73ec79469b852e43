"""The log of a running stage, which writes to MLflow and the console."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.console import StageConsole

if TYPE_CHECKING:
    import numpy as np

    from magic141.tracking import RunLog


@dataclass
class TaskLog:
    """The log of a running stage: metrics and media go to MLflow, notes and progress bars to the console."""

    stage: str
    run: RunLog
    console: StageConsole
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics at a step."""
        self.console.values(values)
        self.run.metrics(values, step)

    def image(self, key: str, image: np.ndarray[Any, Any], step: int = 0) -> None:
        """A picture, uint8 [H, W, 3]."""
        self.run.image(key, image, step)

    def file(self, path: Path, folder: str = "") -> None:
        """A file to keep with the run."""
        self.run.file(path, folder)

    def note(self, text: str) -> None:
        """A sentence for people."""
        self.notes.append(text)
        self.console.note(self.stage, text)

    def summary(self, values: Mapping[str, float | int | str]) -> None:
        """Final metrics (numbers) and facts (strings, which become tags)."""
        self.figures.update(values)
        self.run.metrics({name: float(v) for name, v in values.items() if not isinstance(v, str)})
        self.run.tags({name: v for name, v in values.items() if isinstance(v, str)})

    def progress(self, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A bar with the newest metrics, speed and time left."""
        return self.console.progress(self.stage, total, unit)
