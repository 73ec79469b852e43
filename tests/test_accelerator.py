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


@pytest.mark.parametrize(("device", "number"), [("cuda:8", "8"), ("cuda", "2"), ("cpu", "2")])
def test_deepspeed_computes_on_the_gpu_that_the_worker_was_given(
    device: str, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number among the GPUs that the worker sees need not be the worker's own."""
    monkeypatch.setattr(os, "environ", {"LOCAL_RANK": "2"})
    settle_accelerator(torch.device(device))
    assert os.environ["LOCAL_RANK"] == number
