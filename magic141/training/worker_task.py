"""What a launch sends to its workers, and the file by which they know it and are asked to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from magic141.training.config import TrainConfig
from magic141.training.objective import ObjectiveSpec

_STOP = "stop"


@dataclass(frozen=True)
class WorkerTask:
    """What is sent to every worker."""

    spec: ObjectiveSpec
    config: TrainConfig
    run_dir: Path
    seed: int
    launch_id: str

    @property
    def mark(self) -> Path:
        """A file that is in the run's folder while this task runs."""
        return self.run_dir / f".launch-{self.launch_id}"

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Puts the mark in place, by which workers know the folder from one of their own with the same path."""
        self.mark.touch()
        try:
            yield
        finally:
            self.mark.unlink(missing_ok=True)

    def ask_to_stop(self) -> None:
        """Asks the workers, on whatever machine, to save a checkpoint and end."""
        self.mark.write_text(_STOP)

    def is_to_stop(self) -> bool:
        """Whether they have been asked. Opens the file: a file server's client may remember what it saw before."""
        try:
            return self.mark.read_text() == _STOP
        except FileNotFoundError:
            return False
