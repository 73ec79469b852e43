"""Two workers train as one does, with every engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.stage_log import NullLog
from magic141.training.context import TrainContext
from magic141.training.launch import TrainResult, launch
from tests.training.linear import LinearRegression, LinearSpec, linear_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forks")]


def train(
    folder: Path, spec: type[LinearSpec] = LinearSpec, crash_at: int | None = None, **placement: Any
) -> TrainResult:
    config = linear_config(**placement)
    return launch(spec(config, noise=0.0, bad_steps=(3,), crash_at=crash_at), config, folder, NullLog(), seed=0)


def assert_same(left: TrainResult, right: TrainResult, rel: float, atol: float) -> None:
    first, second = (
        [json.loads(line)["loss"] for line in result.metrics_file.read_text().splitlines()] for result in (left, right)
    )
    assert first == pytest.approx(second, rel=rel)
    ours, theirs = (torch.load(result.export / "weights.pt")["ema"] for result in (left, right))
    torch.testing.assert_close(ours, theirs, rtol=rel, atol=atol)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_deepspeed_leaves_broken_gradients_out_and_resumes(tmp_path: Path, stage: int) -> None:
    placement: dict[str, Any] = {"launcher": "ray", "engine": "deepspeed", "num_workers": 2, "zero_stage": stage}
    with pytest.raises(Exception, match="the objective broke"):
        train(tmp_path / "broken", crash_at=7, **placement)
    resumed = train(tmp_path / "broken", **placement)
    assert resumed.resumed_from_step == 5
    assert_same(resumed, train(tmp_path / "one"), rel=1e-3, atol=1e-4)


ENGINES: dict[str, dict[str, Any]] = {
    "DDP": {"engine": "ddp"},
    "ZeRO 0": {"engine": "deepspeed", "zero_stage": 0},
    "ZeRO 1": {"engine": "deepspeed", "zero_stage": 1},
    "ZeRO 1, offloaded": {"engine": "deepspeed", "zero_stage": 1, "offload_optimizer": True},
    "ZeRO 2": {"engine": "deepspeed", "zero_stage": 2},
    "ZeRO 3, offloaded": {"engine": "deepspeed", "zero_stage": 3, "offload_optimizer": True},
}


class CountsSums(LinearRegression):
    """Counts how often gradients are summed over the workers before the last pass of an update."""

    def __init__(self, spec: LinearSpec, context: TrainContext) -> None:
        super().__init__(spec, context)
        self.early = self.now = 0
        for name in ("all_reduce", "reduce", "reduce_scatter_tensor", "all_gather_into_tensor"):
            setattr(torch.distributed, name, self.counted(getattr(torch.distributed, name)))
        backward = self.engine.backward

        def watched(loss: Tensor, last: bool = True) -> None:
            before = self.now
            backward(loss, last)
            self.early += 0 if last else self.now - before

        self.engine.backward = watched  # type: ignore[method-assign]

    def counted(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.now += 1
            return collective(*args, **kwargs)

        return call

    def step(self, step: int) -> dict[str, Tensor | float]:
        return {**super().step(step), "early": float(self.early), "sums": float(self.now)}


@dataclass(frozen=True)
class CountsSumsSpec(LinearSpec):
    """Builds `CountsSums`."""

    def build(self, context: TrainContext) -> CountsSums:
        return CountsSums(self, context)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_several_passes_train_as_one(tmp_path: Path, engine: dict[str, Any]) -> None:
    """Even if only the first pass of an update is broken; whole gradients are averaged after the last pass only."""
    parts = train(tmp_path / "parts", CountsSumsSpec, launcher="ray", num_workers=2, clips_per_pass=1, **engine)
    last = json.loads(parts.metrics_file.read_text().splitlines()[-1])
    assert last["sums"] > 0
    assert last["early"] == 0 or engine.get("zero_stage", 0) >= 2
    assert_same(parts, train(tmp_path / "one"), rel=1e-4, atol=1e-5)
