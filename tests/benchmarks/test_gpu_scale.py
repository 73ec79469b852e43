"""The measurement on one GPU: it counts the operations that the network really takes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from magic141.config import load_config
from tests.benchmarks.test_tables import ROOT, script


def test_operations_are_those_of_the_papers_network(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_scale = script("gpu_scale", monkeypatch)
    scale = gpu_scale.Scale(load_config(ROOT / "configs" / "hunyuan_13b.yaml"), torch.device("meta"))
    evaluation = scale._evaluation(scale._network(torch.bfloat16))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        evaluation()
    assert counter.get_total_flops() == pytest.approx(scale._operations(), rel=1e-3)
