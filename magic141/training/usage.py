"""What a worker uses: wall time, CPU time and memory, with what earlier attempts used."""

from __future__ import annotations

import resource
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from magic141.training.checkpoint import CheckpointInfo
from magic141.training.context import TrainContext, sum_over_workers


@dataclass(frozen=True)
class Used:
    """What a training used, over all attempts that led to a result.

    Attributes:
        seconds: wall time inside the workers (not their start-up).
        cpu_seconds: CPU time, summed over workers.
        peak_memory_mb: largest allocation on the GPU, or largest resident memory, of each worker in MiB, summed over
            workers; of the attempt that took most.
    """

    seconds: float
    cpu_seconds: float
    peak_memory_mb: float


class Usage:
    """Wall time, CPU time and memory of a worker since its start, with those of earlier attempts."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._earlier = Used(0.0, 0.0, 0.0)
        _forget_peaks()

    def add(self, info: CheckpointInfo) -> None:
        """Include the attempts that led to a checkpoint."""
        self._earlier = Used(info.seconds, info.cpu_seconds, info.peak_memory_mb)

    def so_far(self, context: TrainContext) -> Used:
        """What all workers have used until now; called on all of them."""
        own = [time.process_time() - self._cpu, _peak_memory_mb(context.device)]
        cpu_seconds, peak_mb = sum_over_workers(torch.tensor(own, dtype=torch.float64), context).tolist()
        earlier = self._earlier
        return Used(
            seconds=earlier.seconds + time.perf_counter() - self._wall,
            cpu_seconds=earlier.cpu_seconds + cpu_seconds,
            peak_memory_mb=max(earlier.peak_memory_mb, peak_mb),
        )


def _forget_peaks() -> None:
    """Peaks begin here: an earlier stage in this process may have had higher ones."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux's file; elsewhere the process's own peak stands
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
