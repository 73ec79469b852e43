"""Measures a piece of work: wall time, CPU time, peak memory, size of weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from magic141.accelerator import finish_gpu_work

MIB = 2**20
SAMPLE_INTERVAL_S = 0.02


@dataclass
class Usage:
    """Time and memory that a measured block took; filled in when it ends.

    Attributes:
        wall_s: elapsed seconds.
        cpu_s: CPU seconds of all threads of this process, unaffected by other processes on the machine.
        added_memory_mb: peak allocation on the GPU, or else peak resident memory of this process, minus what was in use
            when the block began, so that earlier work of the process does not count.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    added_memory_mb: float = 0.0


@contextmanager
def measure() -> Iterator[Usage]:
    """Measures a block; read the yielded `Usage` after it."""
    finish_gpu_work()
    usage, memory = Usage(), _PeakMemory()
    memory.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield usage
        finish_gpu_work()
    finally:
        usage.wall_s, usage.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        usage.added_memory_mb = memory.stop()


def weight_megabytes(model: nn.Module) -> float:
    """MiB of parameters and buffers in their own dtypes."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB


def resident_megabytes() -> float:
    """MiB of resident memory of this process now."""
    return float(psutil.Process().memory_info().rss) / MIB


class _PeakMemory:
    """Samples the resident memory in a thread; on a GPU, CUDA records the peak itself."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        self._done = threading.Event()
        self._before = self._peak = self._now()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()

    def stop(self) -> float:
        """MiB by which the peak exceeds the start."""
        if self._cuda:
            self._peak = torch.cuda.max_memory_allocated() / MIB
        else:
            self._done.set()
            self._thread.join()
        return max(self._peak, self._now()) - self._before

    def _now(self) -> float:
        return torch.cuda.memory_allocated() / MIB if self._cuda else resident_megabytes()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_INTERVAL_S):
            self._peak = max(self._peak, self._now())
