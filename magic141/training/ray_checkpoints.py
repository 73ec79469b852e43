"""Checkpoints of a training on Ray Train workers: which one a run continues from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from magic141.training.checkpoint import damaged, is_whole, step_name

if TYPE_CHECKING:
    from ray.train import Checkpoint


class RayStore:
    """Checkpoints through Ray Train, which merges all workers' files into run_dir/step-XXXXXX."""

    def __init__(self, launch_id: str) -> None:
        self._launch_id = launch_id
        self._suffix = ""

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The newest checkpoint that Ray has committed and that is whole, on all workers the same."""
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
        """Write this worker's part and report it (a barrier)."""
        import ray.train

        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            name = step_name(step) + self._suffix
            ray.train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=name)


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
