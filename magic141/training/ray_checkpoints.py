"""Checkpoints of a training on Ray Train workers: which one a run continues from.

All workers write into the same folder of the run, which they share. What makes a checkpoint of it is Ray's list: Ray
enters it when all workers have reported it, and afterwards deletes the oldest one.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from magic141.errors import UserError
from magic141.training.checkpoint import damaged, is_whole, step_name

LIST_FILE = "checkpoint_manager_snapshot.json"  # Ray's name


class RayStore:
    """Checkpoints that Ray Train lists, in run_dir/step-XXXXXX-ATTEMPT.

    No attempt writes into a folder of another one's: it may be damaged and on Ray's list, or a worker that is believed
    dead may still write there.

    Args:
        run_dir: folder of the training, which all workers share.
        rank: number of this worker.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        self._run_dir, self._rank = run_dir, rank
        self._attempt = ""  # named by `latest`

    def latest(self) -> Path | None:
        """The newest checkpoint that Ray has committed and that is whole, on all workers the same."""
        committed = _committed_folders()
        if self._rank == 0:
            _remove_uncommitted(self._run_dir, committed)
        place = next((place for place, folder in enumerate(committed) if is_whole(folder)), len(committed))
        places, attempts = zip(*_gathered((place, uuid.uuid4().hex[:8])), strict=True)
        self._attempt = attempts[0]
        place = max(places)  # where a worker finds damage, none continues
        if committed and place == len(committed):
            raise damaged(committed)
        return committed[place] if committed else None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write this worker's part and report it; others may still write theirs."""
        import ray.train

        folder = self._run_dir / f"{step_name(step)}-{self._attempt}"
        folder.mkdir(exist_ok=True)
        write(folder)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        in_place = ray.train.CheckpointUploadMode.NO_UPLOAD
        ray.train.report({"step": step}, checkpoint=checkpoint, checkpoint_upload_mode=in_place)


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


def _committed_folders() -> list[Path]:
    """The checkpoints that Ray keeps, newest first."""
    import ray.train

    if ray.train.get_checkpoint() is None:
        return []
    return [Path(reported.checkpoint.path) for reported in reversed(ray.train.get_all_reported_checkpoints())]


def _remove_uncommitted(run_dir: Path, committed: list[Path]) -> None:
    """Removes what a kill has left: a checkpoint not yet on Ray's list, or no longer on it but not yet deleted."""
    kept = {folder.name for folder in committed}
    for folder in run_dir.glob("step-*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed now is in nobody's way


def _gathered(mine: Any) -> list[Any]:
    """The values of all workers, by rank."""
    values = [mine]
    if dist.is_initialized():
        values *= dist.get_world_size()
        dist.all_gather_object(values, mine)
    return values
