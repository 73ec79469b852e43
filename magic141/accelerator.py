"""DeepSpeed guesses its accelerator, aloud and in every process, unless it is told."""

from __future__ import annotations

import os

import torch


def settle_accelerator() -> None:
    """Names the CPU where there is no GPU; to be called before DeepSpeed is imported, and before workers start."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
