"""A stage that fails, is killed or edited, or runs twice at once: closed truthfully, nothing half-made, goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.records.session import Session
from magic141.errors import UserError
from magic141.tracking import RunLog, Tracker
from tasks.run_stage import run_stage
from tasks.stage import Stage, StageCall, StageContext
from tests.tasks.stages import CODE, FIRST, printed
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]


def test_checkpoints_of_a_stage_that_is_done_go_also_when_its_process_was_killed_before_it_removed_them(
    start: Callable[..., StageContext],
) -> None:
    context = start("seed=8")
    ref = run_stage(FIRST, context)
    left = context.run_dir("first", ref.key)
    left.mkdir(parents=True)
    (left / "checkpoint").write_text("3")
    again = start("seed=8")
    run_stage(FIRST, again)
    assert again.reused == ["first"]
    assert not left.exists()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RuntimeError("boom at http://ada:s3cret@host"), "FAILED", "failed: RuntimeError: boom at http://"),
        (KeyboardInterrupt(), "KILLED", "stopped"),
    ],
)
def test_a_stage_that_fails_is_closed_truthfully_and_leaves_nothing(
    start: Callable[..., StageContext], error: BaseException, status: str, line: str
) -> None:
    def fail(call: StageCall) -> None:
        (call.out / "half.txt").write_text("half")
        call.run_dir.mkdir(parents=True, exist_ok=True)
        (call.run_dir / "checkpoint").write_text("step 3")
        raise error

    context = start(f"seed={100 if status == 'FAILED' else 101}")
    stage = Stage("failing", CODE, lambda c: {}, fail)
    with pytest.raises(type(error)):
        run_stage(stage, context)
    key = stage.key(context.config, {}).digest
    assert not list((context.home / "artifacts" / "failing").iterdir())
    assert (context.run_dir("failing", key) / "checkpoint").exists()
    runs = context.tracker.client.search_runs([context.tracker.experiment_id], f"tags.`magic141.key` = '{key}'")
    assert [run.info.status for run in runs] == [status]
    assert line in printed(context)
    assert "s3cret" not in printed(context)
    if isinstance(error, Exception):
        assert runs[0].data.tags["error"].startswith("RuntimeError: boom")
        assert "raise error" in context.tracker.read_file(runs[0].info.run_id, "error.txt"), "with its traceback"


def test_code_edited_during_the_run_is_filed_under_no_key(
    start: Callable[..., StageContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is a stage's own code or that of one to come; undone, the run goes on from its checkpoints."""
    (tmp_path / "editedlib").mkdir()
    (tmp_path / "editedlib" / "__init__.py").touch()
    module = tmp_path / "editedlib" / "work.py"
    module.write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def work(call: StageCall) -> None:
        begun.append(call.out.name)
        call.run_dir.mkdir(parents=True, exist_ok=True)
        (call.out / "x").write_text("x")
        module.write_text(code)

    own = Stage("own", ("editedlib.work",), lambda c: {}, work)
    earlier, later = Stage("earlier", CODE, lambda c: {}, work), Stage("later", own.modules, lambda c: {}, work)
    for stages in ([own], [earlier, later]):
        context, code, begun = start("seed=10"), "VALUE = 12\n", list[str]()
        session = Session(context, RunLog(context.tracker.client, context.parent_id), 0)
        with pytest.raises(UserError, match=rf"{stages[-1].name}: editedlib.work edited during the run.* again"):
            session.run_stages(stages)
        assert stages[-1].name not in context.artifacts
        assert len(begun) == 1, "no hours of work that will be filed under no key"
        code = "VALUE = 1\n"
        module.write_text(code)
    assert context.run_dir("own", own.key(context.config, {}).digest).exists()
    assert run_stage(own, start("seed=10")).stage == "own"


def test_checkpoints_are_gone_on_from_by_the_key_that_left_them_and_by_no_other(
    start: Callable[..., StageContext],
) -> None:
    def work(call: StageCall) -> None:
        seen.append(call.run_dir.exists())
        call.run_dir.mkdir(parents=True, exist_ok=True)
        if len(seen) == 1:
            raise KeyboardInterrupt

    seen: list[bool] = []
    stage = Stage("resuming", CODE, lambda c: {}, work)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, start("seed=30"))
    for seed in (31, 30):
        run_stage(stage, start(f"seed={seed}"))
    assert seen == [False, False, True]


def run_at_once(stage: Stage, contexts: Sequence[StageContext]) -> None:
    with ThreadPoolExecutor(len(contexts)) as pool:
        list(pool.map(run_stage, [stage] * len(contexts), contexts))


def test_one_worker_a_key(start: Callable[..., StageContext]) -> None:
    calls = []

    def slow(call: StageCall) -> None:
        calls.append(1)
        wait_for(lambda: any("another process works on the same key" in printed(context) for context in contexts), 0.01)
        (call.out / "x").write_text("x")

    contexts = [start("seed=6"), start("seed=6")]
    run_at_once(Stage("slow", CODE, lambda c: {}, slow), contexts)
    assert len(calls) == 1
    assert sorted(len(context.reused) for context in contexts) == [0, 1]


def test_workers_of_other_keys_do_not_wait(start: Callable[..., StageContext]) -> None:
    meeting = threading.Barrier(2, timeout=60)

    def meet(call: StageCall) -> None:
        meeting.wait()

    run_at_once(Stage("meets", CODE, lambda c: {}, meet), [start("seed=6"), start("seed=7")])


KILLED_WORKER = """
    import sys, time
    from pathlib import Path
    from magic141.config import PipelineConfig
    from magic141.tracking import Tracker
    from tasks.console import StageConsole
    from tasks.run_stage import run_stage
    from tasks.stage import Stage, StageContext

    def work(call):
        (call.out / "half.txt").write_text("half")
        call.run_dir.mkdir(parents=True)
        (call.run_dir / "checkpoint").write_text("3")
        print("working", flush=True)
        time.sleep(60)

    tracker = Tracker(Path(sys.argv[1]), "stages")
    config = PipelineConfig(workspace=tracker.workspace, seed=77)
    parent = tracker.start_parent("test", "pipeline", {})
    context = StageContext(config, tracker, parent.run_id, StageConsole())
    run_stage(Stage("victim", ("magic141.frozen",), lambda c: {}, work), context)
"""


@pytest.mark.slow
def test_kill_9_leaves_no_result_and_the_next_run_goes_on(start: Callable[..., StageContext], tracker: Tracker) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED_WORKER), str(tracker.workspace)]
    worker = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"working\n"
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    seen = []

    def resume(call: StageCall) -> None:
        seen.append((call.run_dir / "checkpoint").read_text())
        assert not list(call.out.iterdir())
        (call.out / "whole.txt").write_text("whole")

    context = start("seed=77")
    ref = run_stage(Stage("victim", CODE, lambda c: {}, resume), context)
    assert seen == ["3"]
    assert [path.name for path in ref.path.parent.iterdir()] == [ref.path.name]
    query = f"tags.`magic141.key` = '{ref.key}'"
    runs = tracker.client.search_runs([tracker.experiment_id], query, order_by=["attributes.start_time ASC"])
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]


def test_a_run_of_the_key_whose_process_is_gone_is_closed_before_the_next_begins(
    start: Callable[..., StageContext],
) -> None:
    context = start("seed=14")
    dead = context.tracker.start_stage("first", FIRST.key(context.config, {}).digest, context.parent_id)
    dead.tags({"magic141.pid": "4194304"})  # no process has it: beyond the largest
    run_stage(FIRST, context)
    assert context.tracker.get_run(dead.run_id).info.status == "KILLED"
