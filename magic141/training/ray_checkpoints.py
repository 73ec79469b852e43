"""Checkpoints of a training on Ray Train workers: which one a run continues from."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from magic141.artifacts.digests import sha256_text
from magic141.errors import UserError
from magic141.training.checkpoint import damaged, is_whole, step_name

if TYPE_CHECKING:
    from ray.train import Checkpoint

LIST_FILE = "checkpoint_manager_snapshot.json"  # Ray's name


class RayStore:
    """Checkpoints through Ray Train, which merges all workers' files into run_dir/step-XXXXXX.

    Args:
        run_dir: folder of the training.
        rank: number of this worker.
        launch_id: names this launch.
    """

    def __init__(self, run_dir: Path, rank: int, launch_id: str) -> None:
        self._launch_id = launch_id
        self._suffix = ""
        # always the same: what a worker that was killed while it wrote has left there goes when the next one comes
        self._aside = Path(tempfile.gettempdir()) / f"magic141-{sha256_text(str(run_dir))[:16]}-{rank}"

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The newest checkpoint that Ray has committed and that is whole, on all workers the same."""
        shutil.rmtree(self._aside, ignore_errors=True)
        committed = _committed_checkpoints()
        if not committed:
            yield None
            return
        place = _for_all(next((place for place, one in enumerate(committed) if _readable(one)), len(committed)))
        if place == len(committed):
            raise damaged([one.path for one in committed])
        if place > 0:  # Ray deletes the damaged one later, by its name: nothing else may have it
            self._suffix = f"-{self._launch_id[:8]}"
        with committed[place].as_directory() as folder:
            yield Path(folder)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write this worker's part and report it; other workers may still upload theirs."""
        import ray.train

        self._aside.mkdir(mode=0o700)
        try:
            write(self._aside)
            checkpoint = ray.train.Checkpoint.from_directory(self._aside)
            name = step_name(step) + self._suffix
            ray.train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=name)
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)


def require_readable_list(run_dir: Path) -> None:
    """Raises UserError if Ray's list of a training's checkpoints was cut short: Ray writes it in place."""
    file = run_dir / LIST_FILE
    if not file.exists():
        return
    try:
        json.loads(file.read_text())
    except ValueError:
        raise UserError(
            f"{file}: Ray's list of this training's checkpoints is damaged; delete the folder that holds it to start "
            "the training over"
        ) from None


def _committed_checkpoints() -> list[Checkpoint]:
    """The checkpoints that Ray keeps, newest first."""
    import ray.train

    if ray.train.get_checkpoint() is None:
        return []
    return [reported.checkpoint for reported in reversed(ray.train.get_all_reported_checkpoints())]


def _readable(checkpoint: Checkpoint) -> bool:
    with checkpoint.as_directory() as folder:
        return is_whole(Path(folder))


def _for_all(place: int) -> int:
    """The largest of the workers' places, so that all continue from the same checkpoint."""
    places = [place]
    if dist.is_initialized():
        places *= dist.get_world_size()
        dist.all_gather_object(places, place)
    return max(places)
