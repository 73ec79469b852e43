"""What a worker uses, counted from its start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from magic141.training.config import PlacementConfig
from magic141.training.context import TrainContext
from magic141.training.usage import Usage


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's peak cannot be forgotten")
def test_the_memory_that_earlier_work_in_this_process_took_is_not_counted(tmp_path: Path) -> None:
    context = TrainContext(0, 1, torch.device("cpu"), tmp_path, 0, PlacementConfig())
    usage = Usage()
    before = usage.so_far(context).peak_memory_mb
    torch.ones(100, 2**20)  # 400 MiB, and freed
    assert usage.so_far(context).peak_memory_mb > before + 350
    assert Usage().so_far(context).peak_memory_mb < before + 50
