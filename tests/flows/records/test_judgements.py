from __future__ import annotations

from typing import Any

import pytest

from flows.records.judgements import DEVICE, _conditions, _machine
from magic141.evaluation.measurement import SAMPLED_ON

EVALUATED: dict[str, Any] = {
    "device": "NVIDIA H200",
    "modules": {},
    "parts": {"config": {"evaluate": {"frechet_dimensions": 64}}},
}


@pytest.mark.parametrize(
    ("summary", "device", "kind"),
    [
        ({SAMPLED_ON: "cpu"}, "cpu", "cpu"),
        ({SAMPLED_ON: "NVIDIA A100 + NVIDIA H200"}, "NVIDIA A100 + NVIDIA H200", "gpu"),
        ({}, "NVIDIA H200", "gpu"),
    ],
    ids=["on workers without a GPU", "on different GPUs", "recorded by an earlier version"],
)
def test_clips_are_judged_by_the_device_that_sampled_them(summary: dict[str, str], device: str, kind: str) -> None:
    """The process that finished the stage may have another one than its workers."""
    generated = {
        "device": "NVIDIA H200",
        "cpu": "AMD EPYC",
        "modules": {},
        "summary": summary,
        "parts": {
            "seed": 0,
            "inputs": {"prepare_data": "0" * 64},
            "config": {"generate": {"many_steps": 25}, "model": {"window_frames": 9}},
        },
    }
    conditions = _conditions(generated, EVALUATED)
    assert conditions[f"{DEVICE}generate"] == kind
    assert conditions[f"{DEVICE}evaluate"] == "gpu"
    assert _machine(generated, {}, conditions)["device"] == device
