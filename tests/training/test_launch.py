"""Ray Train with two workers; everything here starts processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from magic141.artifacts.fingerprint import CodeStamp
from magic141.cluster.session import ensure_ray
from magic141.errors import UserError
from magic141.models.config import TransformerConfig
from magic141.stage_log import NullLog
from magic141.training import ray_launch
from magic141.training.config import FlowMatchingConfig
from magic141.training.flow_matching import FlowMatchingSpec
from magic141.training.launch import TrainResult, launch
from magic141.training.worker_task import WorkerTask
from tests.training import spot_cluster
from tests.training.linear import LinearSpec, linear_config
from tests.waiting import PATIENCE_S

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


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(folder.name for folder in (run_dir / "checkpoints").iterdir())


def losses(metrics_file: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in metrics_file.read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """What two undisturbed workers make."""
    return run(tmp_path_factory.mktemp("straight"), "straight")


def has_same_bits(left: TrainResult, right: TrainResult) -> bool:
    one, other = (torch.load(result.export / "weights.pt")["ema"] for result in (left, right))
    same = left.metrics_file.read_bytes() == right.metrics_file.read_bytes()
    return same and all(torch.equal(one[name], other[name]) for name in one)


def test_two_workers_give_the_loss_curve_of_one_even_when_one_is_killed(tmp_path: Path, straight: TrainResult) -> None:
    """Killed and restarted, the run has the same bits as undisturbed; and what one worker computes, to rounding."""
    one = run(tmp_path, "one", launcher="local", engine="plain", num_workers=1)
    config = linear_config(launcher="ray", engine="ddp", num_workers=2)
    killed = launch(LinearSpec(config, noise=0.0, kill_once_at=7), config, tmp_path / "killed", NullLog(), seed=0)
    assert losses(straight.metrics_file) == pytest.approx(losses(one.metrics_file), rel=1e-4)
    assert killed.resumed_from_step == 5
    assert has_same_bits(killed, straight)


def test_an_interrupted_training_goes_on_where_it_was(tmp_path: Path, straight: TrainResult) -> None:
    config = linear_config(launcher="ray", engine="ddp", num_workers=2)
    with pytest.raises(KeyboardInterrupt):
        launch(LinearSpec(config, noise=0.0, interrupt_at=6), config, tmp_path / "cut", NullLog(), seed=0)
    assert not ray.is_initialized(), "no worker writes into the folder any more"
    resumed = run(tmp_path, "cut")
    assert resumed.resumed_from_step == 7
    assert has_same_bits(resumed, straight)


def test_before_a_machine_is_taken_away_with_notice_a_checkpoint_is_saved(tmp_path: Path) -> None:
    """Training goes on from it on another machine; that is no failure, of which none is allowed here."""
    run_dir = tmp_path / "moved"
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    script = [sys.executable, "-m", spot_cluster.__name__, str(run_dir)]
    subprocess.run(script, check=True, env=ours, cwd=Path(__file__).parents[2], timeout=PATIENCE_S)
    assert 0 < json.loads((run_dir / "result.json").read_text())["resumed_from_step"] < spot_cluster.NUM_STEPS
    config = spot_cluster.rarely_saving()
    one = launch(LinearSpec(config, noise=0.0), config, tmp_path / "one", NullLog(), seed=0)
    assert losses(run_dir / "metrics.jsonl") == pytest.approx(losses(one.metrics_file), rel=1e-3)


def test_deepspeed_leaves_broken_gradients_out_and_goes_on_when_a_worker_is_killed_as_it_saves(tmp_path: Path) -> None:
    config = linear_config(launcher="local", engine="plain", num_workers=1)
    plain = launch(LinearSpec(config, noise=0.0, bad_steps=(3,)), config, tmp_path / "plain", NullLog(), seed=0)
    config = linear_config(launcher="ray", engine="deepspeed", num_workers=2, zero_stage=3)
    spec = LinearSpec(config, noise=0.0, bad_steps=(3,), kill_once_saving=10)
    killed = launch(spec, config, tmp_path / "killed", NullLog(), seed=0)
    assert killed.resumed_from_step == 5
    assert losses(killed.metrics_file) == pytest.approx(losses(plain.metrics_file), rel=1e-3)
    left, right = (torch.load(result.export / "weights.pt")["ema"] for result in (plain, killed))
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_a_worker_killed_while_it_saves_leaves_the_checkpoint_before_and_nothing_else(tmp_path: Path) -> None:
    config = linear_config(launcher="ray", engine="plain", num_workers=1)
    spec = LinearSpec(config, noise=0.0, kill_once_saving=10)
    killed = launch(spec, config, tmp_path / "killed", NullLog(), seed=0)
    assert killed.resumed_from_step == 5
    one = run(tmp_path, "one", launcher="local", engine="plain", num_workers=1)
    assert losses(killed.metrics_file) == losses(one.metrics_file)
    assert checkpoints(tmp_path / "killed") == ["step-000010", "step-000012"]


@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_trains_one_stage_after_another_in_this_process(tmp_path: Path, stage: int) -> None:
    config = linear_config(launcher="local", engine="deepspeed", num_workers=1, zero_stage=stage)
    linear = torch.nn.functional.linear
    first, second = (launch(LinearSpec(config, noise=0.0), config, tmp_path / n, NullLog(), seed=0) for n in "ab")
    assert losses(first.metrics_file) == losses(second.metrics_file)
    assert torch.nn.functional.linear is linear, "what runs next would round differently"


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a training whose objective broke after the second checkpoint, and what the driver said."""
    folder = tmp_path_factory.mktemp("crashed") / "cut"
    config = linear_config(launcher="ray", engine="ddp", num_workers=2, max_failures=0)
    with pytest.raises(RuntimeError) as error:
        launch(LinearSpec(config, noise=0.0, crash_at=11), config, folder, NullLog(), seed=0)
    return folder, str(error.value)


def test_the_workers_traceback_reaches_the_driver(crashed: tuple[Path, str]) -> None:
    assert re.search(r"linear\.py(.|\n)*ZeroDivisionError: the objective broke", crashed[1])


def test_this_process_goes_on_with_what_workers_on_ray_have_begun(crashed: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(crashed[0], tmp_path / "copy"))
    assert not list(run_dir.glob(".launch-*")), "no mark is left behind"
    config = linear_config(launcher="local", engine="plain", num_workers=1)
    assert launch(LinearSpec(config), config, run_dir, NullLog(), seed=0).resumed_from_step == 10
    assert checkpoints(run_dir) == ["step-000010", "step-000012"]


def test_a_damaged_checkpoint_is_passed_over_and_named_if_there_is_no_other(
    crashed: tuple[Path, str], tmp_path: Path
) -> None:
    config = linear_config(launcher="ray", engine="ddp", num_workers=2)
    cut = crashed[0]
    older, newer = sorted(cut.glob("checkpoints/step-*/objective-1.pt"))
    whole = older.read_bytes()
    for file in (older, newer):
        os.truncate(file, len(whole) // 2)
    with pytest.raises(UserError, match=r"step-000005, \S+step-000010: damaged, and none is left that is whole"):
        launch(LinearSpec(config, noise=0.0), config, cut, NullLog(), seed=0)
    older.write_bytes(whole)
    resumed = launch(LinearSpec(config, noise=0.0), config, cut, NullLog(), seed=0)
    assert resumed.resumed_from_step == 5
    one = run(tmp_path, "one", launcher="local", engine="plain", num_workers=1)
    assert losses(resumed.metrics_file) == pytest.approx(losses(one.metrics_file), rel=1e-4)
    assert checkpoints(cut) == ["step-000010", "step-000012"]


def test_more_workers_than_this_machine_has_room_for_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_workers = 2: with cpus_per_worker = 5000 they take 10000 CPUs, of which"):
        run(tmp_path, "wide", cpus_per_worker=5000)


def test_a_users_mistake_stays_one_and_is_not_retried(tmp_path: Path) -> None:
    config = linear_config(launcher="ray", engine="ddp", num_workers=2)
    with pytest.raises(UserError, match="the clips are too short"):
        launch(LinearSpec(config, mistake="the clips are too short"), config, tmp_path, NullLog(), seed=0)


def test_a_folder_that_a_node_lacks_is_named_and_not_waited_for(tmp_path: Path) -> None:
    config = linear_config(launcher="ray", engine="ddp", num_workers=2)
    with pytest.raises(UserError, match=r"^/not/mounted: missing on \S+, where a worker runs; every node needs"):
        launch(Reading(config), config, tmp_path, NullLog(), seed=0)


def test_workers_with_other_code_than_the_drivers_do_not_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = dict(ray_launch.code_of(LinearSpec(linear_config())).digests)
    assert {"magic141.training.loop", "tests.training.linear"} <= code.keys()
    newer = CodeStamp(tuple({**code, "magic141.training.engines.engine": "0"}.items()))
    monkeypatch.setattr(ray_launch, "code_of", lambda spec: newer)
    with pytest.raises(
        UserError, match=r"^machine \S+: magic141\.training\.engines\.engine differ from the driver's, [^\n]*$"
    ):
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
    assert losses(run(tmp_path, "two").metrics_file) == pytest.approx(losses(one.metrics_file), rel=1e-4)


def test_a_model_to_start_from_that_a_node_lacks_is_named(tmp_path: Path) -> None:
    """Like a folder of the workspace: one worker alone that stops would leave the others waiting."""
    base = tmp_path / "base"
    config = FlowMatchingConfig(base=str(base))
    spec = FlowMatchingSpec(config, TransformerConfig(), tmp_path, base, image_condition=False)
    task = WorkerTask(spec, config, tmp_path, seed=0, launch_id="now")
    assert str(ray_launch.missing_folder(task)).startswith(f"{tmp_path}: missing on "), "or another one of this path"
    task.mark.touch()
    assert str(ray_launch.missing_folder(task)).startswith(f"{base}: missing on ")
    base.mkdir()
    assert ray_launch.missing_folder(task) is None
