"""DeepSpeed computes where the stage does, not where it guesses."""

from __future__ import annotations

import os

import pytest
import torch

from magic141.accelerator import settle_accelerator


@pytest.mark.parametrize(
    ("device", "has_gpu", "accelerator"),
    [("cpu", True, "cpu"), ("cuda", True, None), (None, True, None), (None, False, "cpu")],
)
def test_a_stage_without_a_gpu_keeps_deepspeed_off_those_of_the_machine(
    device: str | None, has_gpu: bool, accelerator: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    settle_accelerator(torch.device(device) if device else None)
    assert os.environ.get("DS_ACCELERATOR") == accelerator
