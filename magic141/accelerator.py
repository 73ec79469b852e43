"""What is to be said to an accelerator, or to the libraries that look for one."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import torch


def settle_accelerator() -> None:
    """Tells DeepSpeed of the CPU where there is no GPU: it guesses, aloud and in every process, unless it is told.

    To be called before DeepSpeed is imported, and before workers start.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def finish_gpu_work() -> None:
    """Waits until the GPU has done what it was given: until then a clock measures only the giving."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def give_back_freed_memory() -> None:
    """Lets go of what earlier work left behind: GPU memory for other processes, the rest for the machine (glibc)."""
    gc.collect()
    torch.cuda.empty_cache()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
