"""Ctrl-C, SIGTERM and cancellations reach the main thread; the training thread then saves and ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from magic141.errors import UserError
from magic141.stage_log import NullLog
from magic141.training import interruption
from magic141.training.checkpoint_store import CheckpointStore
from magic141.training.context import TrainContext
from magic141.training.interruption import Interruptions, interruptible
from magic141.training.launch import launch
from magic141.training.loop import run_training
from magic141.training.progress import ProgressWriter
from magic141.training.worker_task import WorkerTask
from tests.training.linear import LinearSpec, linear_config
from tests.training.test_loop import RecordingLog, weights
from tests.waiting import PATIENCE_S, wait_for


def task_in(folder: Path, spec: LinearSpec | None = None) -> WorkerTask:
    config = linear_config()
    return WorkerTask(spec or LinearSpec(config), config, folder, seed=3, launch_id="now")


def context_of(task: WorkerTask) -> TrainContext:
    return TrainContext(0, 1, torch.device("cpu"), task.run_dir, task.seed, task.config.placement)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of the checkpoints that are saved."""
    steps: list[int] = []
    save = CheckpointStore.save

    def recorded(store: CheckpointStore, step: int, write: Callable[[Path], None]) -> None:
        steps.append(step)
        save(store, step, write)

    monkeypatch.setattr(CheckpointStore, "save", recorded)
    return steps


@pytest.mark.parametrize("at", [-2, 6])
def test_an_interrupted_training_loses_no_update_and_its_result_does_not_show_it(tmp_path: Path, at: int) -> None:
    config = linear_config()
    straight = launch(LinearSpec(config, first_step=-3), config, tmp_path / "straight", NullLog(), seed=3)
    run_dir, log = tmp_path / "interrupted", RecordingLog()
    with pytest.raises(KeyboardInterrupt):
        launch(LinearSpec(config, first_step=-3, interrupt_at=at), config, run_dir, log, seed=3)
    done = at + 1
    assert log.notes[:2] == [
        "stops with a checkpoint after this update; interrupt it again to stop at once",
        f"stopped after step {max(done, 0)} of 12, with a checkpoint",
    ]
    assert not list(run_dir.glob(".launch-*"))

    resumed = launch(LinearSpec(config, first_step=-3), config, run_dir, NullLog(), seed=3)
    assert resumed.resumed_from_step == max(done, 0)
    assert resumed.metrics_file.read_bytes() == straight.metrics_file.read_bytes()
    for name, value in weights(tmp_path / "straight").items():
        assert torch.equal(value, weights(run_dir)[name]), name


def test_an_interruption_at_a_checkpoint_saves_it_once(tmp_path: Path, saved: list[int]) -> None:
    config = linear_config()
    with pytest.raises(KeyboardInterrupt):
        launch(LinearSpec(config, interrupt_at=9), config, tmp_path, NullLog(), seed=3)
    assert saved == [5, 10]


def test_a_second_interruption_waits_for_nothing(tmp_path: Path) -> None:
    task, ends = task_in(tmp_path), threading.Event()

    def hang() -> None:
        ProgressWriter(tmp_path, "now", 0)
        interrupt()
        wait_for(task.is_to_stop)
        interrupt()
        ends.wait(PATIENCE_S)

    ended: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        interruptible(hang, task, lambda note: None, end=lambda: ended.append(ends.is_set()))
    assert ended == [False], "what it has started is ended, too"
    ends.set()


def test_a_training_that_has_not_begun_is_not_waited_for(tmp_path: Path) -> None:
    """Its workers may be waiting for a place, or load a large model; there is nothing to be saved."""
    task, ends = task_in(tmp_path), threading.Event()

    def start() -> None:
        interrupt()
        ends.wait(PATIENCE_S)

    with pytest.raises(KeyboardInterrupt):
        interruptible(start, task, lambda note: None)
    assert not task.mark.exists()
    ends.set()


def test_what_the_thread_returns_or_raises_is_the_callers(tmp_path: Path) -> None:
    task, mistake = task_in(tmp_path), UserError("the clips are too short")

    def fail() -> None:
        raise mistake

    assert interruptible(lambda: 141, task, lambda note: None) == 141
    with pytest.raises(UserError) as raised:
        interruptible(fail, task, lambda note: None)
    assert raised.value is mistake


def test_notice_of_a_machine_that_is_to_go_saves_once_and_training_goes_on(
    tmp_path: Path, saved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "LOOK_EVERY_S", 0.0)
    looks = iter([None, None, *["node a"] * 4, *["node a and b"] * 5])
    task = task_in(tmp_path)
    run_training(task, context_of(task), lambda: next(looks))
    assert saved == [3, 5, 7, 10, 12], "the third and the seventh, beside every fifth and the last"


def test_notice_is_looked_for_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, looks = [100.0], list[float]()
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    task = task_in(tmp_path)
    interruptions = Interruptions(task, context_of(task), lambda: looks.append(now_s[0]))
    for now_s[0] in (101.0, 109.9, 110.0, 115.0, 120.0):
        assert interruptions.asked() == (False, False)
    assert looks == [110.0, 120.0]


def test_workers_stop_when_the_mark_says_so(tmp_path: Path) -> None:
    task = task_in(tmp_path)
    interruptions = Interruptions(task, context_of(task))
    assert not interruptions.asked().stop, "no mark"
    with task.marked():
        assert not interruptions.asked().stop
        task.ask_to_stop()
        assert interruptions.asked() == (True, True)
    assert not task.mark.exists()
