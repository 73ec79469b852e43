"""Helpers for accelerators: settle DeepSpeed's choice, wait for the GPU, free memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import torch


def settle_accelerator(device: torch.device | None = None) -> None:
    """Makes DeepSpeed compute on `device`, by default on the CPU if there is no GPU.

    DeepSpeed would guess, and say so in every process: a GPU wherever there is one, also for a stage that has none. Of
    several it takes the one with the worker's number. On a node with more than ten GPUs that is not the one that Ray
    gave to the worker, because Ray lists a node's GPUs in the order of words: 0, 1, 10, 11, 2.
    Call it before DeepSpeed is imported and before workers start.
    """
    if device.type == "cpu" if device else not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    elif device and device.index is not None:
        os.environ["LOCAL_RANK"] = str(device.index)  # to DeepSpeed a GPU's number


def finish_gpu_work() -> None:
    """Waits until the GPU has finished its queued work; a clock would otherwise measure only the queueing."""
    if torch.cuda.is_initialized():  # not just there: a worker that was given none takes no memory of it
        torch.cuda.synchronize()


def give_back_freed_memory() -> None:
    """Frees memory that earlier work left behind: cached GPU memory, and with glibc freed host memory."""
    gc.collect()
    torch.cuda.empty_cache()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
