"""What a worker uses: wall time, CPU time and memory, with what earlier attempts used."""

from __future__ import annotations

import resource
import time

import torch

from magic141.training.checkpoint import CheckpointInfo
from magic141.training.context import TrainContext, sum_over_workers


class Usage:
    """Wall time, CPU time and memory of a worker since its start, with those of earlier attempts."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._earlier_seconds = self._earlier_cpu_seconds = self._earlier_peak_mb = 0.0
        if torch.cuda.is_initialized():  # by an earlier stage in this process
            torch.cuda.reset_peak_memory_stats()

    def add(self, info: CheckpointInfo) -> None:
        """Include the attempts that led to a checkpoint."""
        self._earlier_seconds, self._earlier_cpu_seconds = info.seconds, info.cpu_seconds
        self._earlier_peak_mb = info.peak_memory_mb

    def so_far(self, context: TrainContext) -> tuple[float, float]:
        """Wall seconds and CPU seconds over all workers."""
        cpu = torch.tensor([time.process_time() - self._cpu], dtype=torch.float64)
        seconds = self._earlier_seconds + time.perf_counter() - self._wall
        return seconds, self._earlier_cpu_seconds + float(sum_over_workers(cpu, context))

    def peak_memory_mb(self, context: TrainContext) -> float:
        """MiB over all workers: now, or in an earlier attempt, if that took more."""
        peak = torch.tensor([_peak_memory_mb(context.device)], dtype=torch.float64)
        return max(self._earlier_peak_mb, float(sum_over_workers(peak, context)))


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
