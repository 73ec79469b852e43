"""Ray Train with two workers; everything here starts processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from magic141.errors import UserError
from magic141.fingerprint import CodeStamp
from magic141.models.config import TransformerConfig
from magic141.raysession import ensure_ray
from magic141.stage_log import NullLog
from magic141.training import ray_launch
from magic141.training.config import FlowMatchingConfig
from magic141.training.context import TrainContext
from magic141.training.flow_matching import FlowMatchingSpec
from magic141.training.launch import TrainResult, launch
from tests.training.linear import LinearRegression, LinearSpec, linear_config

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Reading(LinearSpec):
    """Trains on a folder."""

    data: Path = Path("/not/mounted")


@pytest.fixture(scope="module", autouse=True)
def session() -> None:
    ensure_ray()


def run(tmp_path: Path, name: str, **placement: Any) -> TrainResult:
    usual: dict[str, Any] = {"launcher": "ray", "engine": "ddp", "num_workers": 2}
    config = linear_config(**(usual | placement))
    return launch(LinearSpec(config, noise=0.0), config, tmp_path / name, NullLog(), seed=0)


def losses(result: TrainResult) -> list[float]:
    return [json.loads(line)["loss"] for line in result.metrics_file.read_text().splitlines()]


def test_two_workers_give_the_loss_curve_of_one_even_when_one_is_killed(tmp_path: Path) -> None:
    """Killed and restarted, the run has the same bits as undisturbed; and what one worker computes, to rounding."""
    one = run(tmp_path, "one", launcher="local", engine="plain", num_workers=1)
    straight = run(tmp_path, "straight")
    config = linear_config(launcher="ray", engine="ddp", num_workers=2)
    killed = launch(LinearSpec(config, noise=0.0, kill_once_at=7), config, tmp_path / "killed", NullLog(), seed=0)
    assert losses(straight) == pytest.approx(losses(one), rel=1e-4)
    assert killed.resumed_from_step == 5
    assert killed.metrics_file.read_bytes() == straight.metrics_file.read_bytes()
    left, right = (torch.load(result.export / "weights.pt")["ema"] for result in (straight, killed))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_deepspeed_trains_leaves_broken_gradients_out_and_resumes(tmp_path: Path, stage: int) -> None:
    config = linear_config(launcher="local", engine="plain", num_workers=1)
    plain = launch(LinearSpec(config, noise=0.0, bad_steps=(3,)), config, tmp_path / "plain", NullLog(), seed=0)
    config = linear_config(launcher="ray", engine="deepspeed", num_workers=2, zero_stage=stage)
    spec = LinearSpec(config, noise=0.0, bad_steps=(3,), kill_once_at=7)
    killed = launch(spec, config, tmp_path / "killed", NullLog(), seed=0)
    assert killed.resumed_from_step == 5
    assert losses(killed) == pytest.approx(losses(plain), rel=1e-3)
    left, right = (torch.load(result.export / "weights.pt")["ema"] for result in (plain, killed))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_trains_one_stage_after_another_in_this_process(tmp_path: Path, stage: int) -> None:
    config = linear_config(launcher="local", engine="deepspeed", num_workers=1, zero_stage=stage)
    first, second = (launch(LinearSpec(config, noise=0.0), config, tmp_path / n, NullLog(), seed=0) for n in "ab")
    assert losses(first) == losses(second)


def test_a_damaged_checkpoint_is_passed_over_and_named_if_there_is_no_other(tmp_path: Path) -> None:
    config = linear_config(launcher="ray", engine="ddp", num_workers=2, max_failures=0)
    with pytest.raises(RuntimeError, match="the objective broke"):
        launch(LinearSpec(config, noise=0.0, crash_at=11), config, tmp_path / "cut", NullLog(), seed=0)
    older, newer = sorted((tmp_path / "cut").glob("step-*/objective-1.pt"))
    whole = older.read_bytes()
    for file in (older, newer):
        os.truncate(file, len(whole) // 2)
    with pytest.raises(UserError, match=r"step-000010, \S+step-000005: damaged; delete the folder around it to train"):
        launch(LinearSpec(config, noise=0.0), config, tmp_path / "cut", NullLog(), seed=0)
    older.write_bytes(whole)
    resumed = launch(LinearSpec(config, noise=0.0), config, tmp_path / "cut", NullLog(), seed=0)
    assert resumed.resumed_from_step == 5
    one = run(tmp_path, "one", launcher="local", engine="plain", num_workers=1)
    assert losses(resumed) == pytest.approx(losses(one), rel=1e-4)
    assert not newer.exists()  # Ray keeps two, and lets go of a damaged one as of any other


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
    config = linear_config(launcher="local", engine="plain", num_workers=1)
    plain = launch(LinearSpec(config, noise=0.0, bad_steps=(3,)), config, tmp_path / "plain", NullLog(), seed=0)
    config = linear_config(launcher="ray", num_workers=2, clips_per_pass=1, **engine)
    parts = launch(CountsSumsSpec(config, noise=0.0, bad_steps=(3,)), config, tmp_path / "parts", NullLog(), seed=0)
    last = json.loads(parts.metrics_file.read_text().splitlines()[-1])
    assert last["sums"] > 0
    assert last["early"] == 0 or engine.get("zero_stage", 0) >= 2
    assert losses(parts) == pytest.approx(losses(plain), rel=1e-4)
    left, right = (torch.load(result.export / "weights.pt")["ema"] for result in (plain, parts))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)


def test_the_workers_traceback_reaches_the_driver(tmp_path: Path) -> None:
    config = linear_config(launcher="ray", engine="ddp", num_workers=2, max_failures=0)
    with pytest.raises(RuntimeError, match=r"linear\.py(.|\n)*ZeroDivisionError: the objective broke"):
        launch(LinearSpec(config, crash_at=3), config, tmp_path, NullLog(), seed=0)


def test_more_workers_than_this_machine_has_room_for_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_workers = 2: with cpus_per_worker = 5000 they take 10000 CPUs, of which"):
        run(tmp_path, "wide", cpus_per_worker=5000)


def test_a_users_mistake_stays_one_and_is_not_retried(tmp_path: Path) -> None:
    config = linear_config(launcher="ray", engine="ddp", num_workers=2)
    with pytest.raises(UserError, match="the clips are too short"):
        launch(LinearSpec(config, mistake="the clips are too short"), config, tmp_path, NullLog(), seed=0)


def test_a_folder_that_a_node_lacks_is_named_and_not_waited_for(tmp_path: Path) -> None:
    config = linear_config(launcher="ray", engine="ddp", num_workers=2)
    with pytest.raises(UserError, match=r"^/not/mounted: not on \S+, on which a worker runs; every node must have"):
        launch(Reading(config), config, tmp_path, NullLog(), seed=0)


def test_workers_with_other_code_than_the_drivers_do_not_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = dict(ray_launch.code_of(LinearSpec(linear_config())).digests)
    assert {"magic141.training.loop", "tests.training.linear"} <= code.keys()
    newer = CodeStamp(tuple({**code, "magic141.training.engines.engine": "0"}.items()))
    monkeypatch.setattr(ray_launch, "code_of", lambda spec: newer)
    with pytest.raises(UserError, match=r"^machine \S+: magic141\.training\.engine differ from the driver's, [^\n]*$"):
        run(tmp_path, "refused")
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("address", "watched"), [(None, False), ("local", False), ("10.0.0.1:6379", True)])
def test_only_a_clusters_machines_are_watched_for_notice(
    address: str | None, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": address} if address else {})
    ray_launch._configure_ray_train()
    assert ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in os.environ) == watched


def test_a_ray_that_died_between_two_trainings_is_started_again(tmp_path: Path) -> None:
    raylet = next(child for child in psutil.Process().children() if child.name() == "raylet")
    raylet.kill()
    time.sleep(1)
    one = run(tmp_path, "one", launcher="local", engine="plain", num_workers=1)
    assert losses(run(tmp_path, "two")) == pytest.approx(losses(one), rel=1e-4)


def test_a_model_to_start_from_that_a_node_lacks_is_named(tmp_path: Path) -> None:
    """Like a folder of the workspace: one worker alone that stops would leave the others waiting."""
    config = FlowMatchingConfig(base=str(tmp_path / "checkpoints"))
    spec = FlowMatchingSpec(config, TransformerConfig(), tmp_path, None)
    assert str(ray_launch.missing_folder(spec)).startswith(f"{tmp_path / 'checkpoints'}: not on ")
    (tmp_path / "checkpoints").mkdir()
    assert ray_launch.missing_folder(spec) is None
