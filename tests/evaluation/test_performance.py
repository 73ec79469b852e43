from __future__ import annotations

import time

import numpy as np
import torch

from magic141.evaluation.performance import measure, weight_megabytes


def test_sleeping_costs_wall_time_but_no_cpu_time() -> None:
    with measure() as usage:
        time.sleep(0.1)
    assert usage.wall_s >= 0.1
    assert usage.cpu_s < 0.09


def test_memory_that_was_freed_before_the_end_counts() -> None:
    with measure() as before:
        pass
    with measure() as usage:
        block = np.ones(60 * 2**20, np.uint8)
        time.sleep(0.5)  # the sampler needs its turn on a busy machine
        del block
    assert usage.peak_memory_mb > before.peak_memory_mb + 40


def test_weights_are_counted_as_stored() -> None:
    assert weight_megabytes(torch.nn.Linear(1024, 1024, bias=False)) == 4
    assert weight_megabytes(torch.nn.Linear(1024, 1024, bias=False).bfloat16()) == 2
