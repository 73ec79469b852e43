"""Where a stage reports while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


class StageLog(Protocol):
    """Where a stage reports while it runs."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics at a step; the newest are also shown beside the progress bar."""

    def image(self, key: str, image: np.ndarray[Any, Any], step: int = 0) -> None:
        """A picture, uint8 [H, W, 3]."""

    def file(self, path: Path, folder: str = "") -> None:
        """A file to keep with the run."""

    def note(self, text: str) -> None:
        """A sentence for people: shown on the console and kept in the stage's record."""

    def summary(self, values: Mapping[str, float | int | str]) -> None:
        """The stage's final metrics (numbers) and facts (strings)."""

    def progress(self, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar over `total` units; call its result with how many *more* units are done."""


class NullLog:
    """A log that keeps nothing; for tests and benchmarks."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Drops them."""

    def image(self, key: str, image: np.ndarray[Any, Any], step: int = 0) -> None:
        """Drops it."""

    def file(self, path: Path, folder: str = "") -> None:
        """Drops it."""

    def note(self, text: str) -> None:
        """Drops it."""

    def summary(self, values: Mapping[str, float | int | str]) -> None:
        """Drops them."""

    def progress(self, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A bar that is not shown."""
        return nullcontext(lambda done: None)
