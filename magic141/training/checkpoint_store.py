"""Where a training's checkpoints lie: in the run's folder, which all workers share, each once all have written it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from magic141.artifacts.publication import publish
from magic141.errors import UserError
from magic141.training.checkpoint import is_whole, step_name, step_of
from magic141.training.context import TrainContext, barrier, gathered

FOLDER = "checkpoints"
NUM_TO_KEEP = 2


class CheckpointStore:
    """Checkpoints in `run_dir/checkpoints/step-NUMBER`, of which the newest are kept; used by all workers together.

    All write into one folder aside, which the first worker renames when they have: a kill leaves the older checkpoints
    as they are. A folder aside is named by the attempt, as a worker that is believed dead may still write.
    """

    def __init__(self, context: TrainContext) -> None:
        self.context = context
        self.folder = context.run_dir / FOLDER
        self._attempt = ""  # named by `latest`

    def latest(self) -> Path | None:
        """The newest checkpoint that all workers find whole; None on a fresh start.

        Raises:
            UserError: all that were kept are damaged. Starting over is for the user to decide.
        """
        _look_afresh(self.folder)
        if self.context.is_main:
            self._remove_unfinished()
        self._attempt, kept = gathered((uuid.uuid4().hex[:8], self._kept()), self.context)[0]
        views = gathered([is_whole(folder) for folder in kept], self.context)
        whole = [folder for place, folder in enumerate(kept) if all(view[place] for view in views)]
        if kept and not whole:
            raise UserError(
                f"checkpoint {', '.join(map(str, kept))}: damaged, and none is left that is whole; delete the folder "
                "that holds them to start the training over"
            )
        return whole[-1] if whole else None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Lets every worker `write` its part of a checkpoint, and makes it the newest."""
        name = step_name(step)
        aside = self.folder / f".{name}-{self._attempt}"
        aside.mkdir(exist_ok=True)
        write(aside)
        barrier(self.context)
        if self.context.is_main:
            publish(aside, self.folder / name)
            for old in self._kept()[:-NUM_TO_KEEP]:
                shutil.rmtree(old)

    def _kept(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*"), key=lambda path: step_of(path.name))

    def _remove_unfinished(self) -> None:
        for left in self.folder.glob(".*"):  # written, or set aside for another of its name, when a worker was killed
            shutil.rmtree(left, ignore_errors=True)  # what cannot be removed now is in nobody's way


def _look_afresh(folder: Path) -> None:
    """Makes a machine ask a file server what is in a folder, by a change of its own: it may remember for a minute."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".look-{uuid.uuid4().hex}"
    mark.touch()
    mark.unlink(missing_ok=True)
