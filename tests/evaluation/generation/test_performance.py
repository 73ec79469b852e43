from __future__ import annotations

import sys
import time

import pytest
import torch

from magic141.accelerator import give_back_freed_memory
from magic141.evaluation.generation import performance
from magic141.evaluation.generation.performance import measure, peak_megabytes


def test_sleeping_costs_wall_time_but_no_cpu_time() -> None:
    with measure() as usage:
        time.sleep(0.1)
    assert usage.wall_s >= 0.1
    assert usage.cpu_s < 0.09


def test_work_that_a_gpu_has_not_done_yet_counts_where_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(performance, "finish_gpu_work", lambda: waits.append(time.perf_counter()))
    with measure():
        inside = time.perf_counter()
    before, after = waits
    assert before < inside < after


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the GPU's memory here")
def test_without_a_gpu_no_memory_is_measured() -> None:
    with measure() as usage:
        torch.ones(2**20)
    assert usage.added_memory_mb is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_memory_of_a_gpu_that_was_freed_before_the_end_counts_and_what_was_there_before_does_not() -> None:
    held = torch.ones(80 * 2**18, device="cuda")
    with measure() as usage:
        block = torch.ones(60 * 2**18, device="cuda")
        del block
    assert usage.added_memory_mb == 60
    assert float(held[0]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator can be asked")
def test_memory_of_earlier_work_is_given_back() -> None:
    blocks = [torch.ones(2**14) for _ in range(2000)]  # 64 KiB each: small enough for the heap to keep
    last = torch.ones(2**14)  # above them: the heap cannot shrink by itself
    full = peak_megabytes(torch.device("cpu"))
    del blocks
    give_back_freed_memory()
    assert peak_megabytes(torch.device("cpu")) < full - 100
    assert float(last[0]) == 1
