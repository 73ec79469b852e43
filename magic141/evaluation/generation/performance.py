"""Measures a piece of work: wall time, CPU time, peak memory on a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from magic141.accelerator import finish_gpu_work

MIB = 2**20


@dataclass
class Usage:
    """Time and memory that a measured block took; filled in when it ends.

    Attributes:
        wall_s: elapsed seconds.
        cpu_s: CPU seconds of all threads of this process, unaffected by other processes on the machine.
        added_memory_mb: peak allocation on the GPU, minus what was in use when the block began; None on a CPU, as the
            memory of a process says more of its earlier work than of the block (see `tensor_memory`).
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    added_memory_mb: float | None = None


@contextmanager
def measure() -> Iterator[Usage]:
    """Measures a block; read the yielded `Usage` after it."""
    finish_gpu_work()
    usage, has_gpu = Usage(), torch.cuda.is_initialized()
    before = torch.cuda.memory_allocated() if has_gpu else 0
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield usage
        finish_gpu_work()
    finally:
        usage.wall_s, usage.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        if has_gpu:
            usage.added_memory_mb = (torch.cuda.max_memory_allocated() - before) / MIB


def peak_megabytes(device: torch.device) -> float:
    """MiB of a GPU's largest allocation since the last call; for the CPU of this process's resident memory now."""
    if device.type == "cpu":
        return float(psutil.Process().memory_info().rss) / MIB
    peak = torch.cuda.max_memory_allocated(device) / MIB
    torch.cuda.reset_peak_memory_stats(device)
    return peak
