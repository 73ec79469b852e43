"""Runs of processes that are gone are closed; those that live, here or elsewhere, are not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
from mlflow.exceptions import MlflowException

from magic141.tracking import Tracker, liveness, run_log
from magic141.tracking.liveness import STALE_SECONDS
from magic141.tracking.tags import TAG_HEARTBEAT, TAG_PID, TAG_PROCESSES, TAG_STARTED
from tests.waiting import PATIENCE_S, wait_for


def test_runs_of_dead_processes_are_closed_as_killed(tracker: Tracker) -> None:
    parent = tracker.start_parent("demo", "pipeline", {})
    alive, dead = (tracker.start_stage("train", "key-c", parent.run_id) for _ in range(2))
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead.tags({"magic141.pid": process.stdout.decode().strip()})
    tracker.close_stale("key-c")
    assert tracker.get_run(dead.run_id).info.status == "KILLED"
    assert tracker.get_run(alive.run_id).info.status == "RUNNING"


def test_setting_the_clock_does_not_end_a_run(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start times are counted from the boot, whose time moves with the clock."""
    beating, silent = (tracker.start_stage("train", "key-clock", "parent") for _ in range(2))
    silent.tags({TAG_HEARTBEAT: f"{time.time() - STALE_SECONDS - 60:.0f}"})
    before = float(liveness._start_of(os.getpid()))
    monkeypatch.setattr(liveness, "_start_of", lambda _: f"{before + 3600:.0f}")
    assert [liveness.is_dead(tracker.get_run(run.run_id)) for run in (beating, silent)] == [False, True]


@pytest.mark.parametrize("error", [psutil.NoSuchProcess(1), psutil.AccessDenied(1)])
def test_a_living_process_that_the_machine_hides_is_judged_by_its_heartbeat(
    error: psutil.Error, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other users' processes are hidden where /proc is mounted with hidepid."""
    beating, silent = (tracker.start_stage("train", "key-x", "parent") for _ in range(2))
    silent.tags({TAG_HEARTBEAT: f"{time.time() - STALE_SECONDS - 60:.0f}"})

    def hidden(_: int) -> str:
        raise error

    monkeypatch.setattr(liveness, "_start_of", hidden)
    assert [liveness.is_dead(tracker.get_run(run.run_id)) for run in (beating, silent)] == [False, True]


def test_runs_of_other_machines_are_closed_when_their_heartbeat_has_stopped(tracker: Tracker) -> None:
    silent, beating, older = (tracker.start_stage("train", "key-i", "parent") for _ in range(3))
    now = time.time()
    silent.tags({TAG_PROCESSES: "a-pod-that-is-gone", TAG_HEARTBEAT: f"{now - STALE_SECONDS - 60:.0f}"})
    # a container beside this one, with this host's name: the process id that is unknown here is one of its own
    beating.tags({TAG_PROCESSES: "container", TAG_PID: "4000000", TAG_HEARTBEAT: f"{now - STALE_SECONDS + 60:.0f}"})
    older.tags({TAG_PROCESSES: "a-pod-of-an-earlier-version"})
    tracker.client.delete_tag(older.run_id, TAG_HEARTBEAT)
    tracker.start_parent("demo", "pipeline", {}).close("FINISHED")
    assert [tracker.get_run(run.run_id).info.status for run in (silent, beating, older)] == [
        "KILLED",
        "RUNNING",
        "RUNNING",
    ]
    silent.close("FINISHED")  # it was only out of reach
    assert tracker.get_run(silent.run_id).info.status == "FINISHED"


def test_the_heart_beats_until_the_run_is_closed_and_survives_a_store_that_does_not_answer(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "HEARTBEAT_SECONDS", 0.05)
    run = tracker.start_stage("train", "key-j", "parent")
    assert float(tracker.get_run(run.run_id).data.tags[TAG_HEARTBEAT]) == pytest.approx(time.time(), abs=60)
    with monkeypatch.context() as away:
        away.setattr(tracker.client, "set_tag", raising)
        time.sleep(0.3)
    run.tags({TAG_HEARTBEAT: "0"})
    wait_for(lambda: float(tracker.get_run(run.run_id).data.tags[TAG_HEARTBEAT]) > 0)
    (beats,) = (thread for thread in threading.enumerate() if thread.name == f"heartbeat-{run.run_id}")
    run.close("FINISHED")
    beats.join(PATIENCE_S)
    assert not beats.is_alive()


def raising(*_: object) -> None:
    raise MlflowException("no answer")


def test_a_process_id_that_another_process_has_by_now_is_no_sign_of_life(tracker: Tracker) -> None:
    run = tracker.start_stage("train", "key-p", "parent")
    # this process's id, but not its start
    run.tags({TAG_STARTED: "1000000000", TAG_HEARTBEAT: f"{time.time() - STALE_SECONDS - 60:.0f}"})
    tracker.close_stale("key-p")
    assert tracker.get_run(run.run_id).info.status == "KILLED"
