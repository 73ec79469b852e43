"""The stage contract, with small real stages: key, reuse, atomicity, refresh, truthful closing, the lock."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.session import Session
from magic141.config import PipelineConfig, with_overrides
from magic141.errors import UserError
from magic141.tracking import RunLog, Tracker, closing
from tasks.console import StageConsole
from tasks.run_stage import run_stage
from tasks.stage import Stage, StageCall, StageContext

CODE = ("magic141.frozen",)
ROOT = Path(__file__).resolve().parents[2]


def write_seed(call: StageCall) -> None:
    (call.out / "data.txt").write_text(f"{call.config.data.num_frames}")
    (call.out / "timing.json").write_text(f"{time.time()}")


def copy_upper(call: StageCall) -> None:
    call.log.metrics({"loss": 0.5}, 1)
    call.log.summary({"accuracy": 1, "engine": "plain"})
    call.log.note("copied")
    with call.log.progress(1, "file") as advance:
        advance(1)
    (call.out / "copy.txt").write_text((call.inputs["first"] / "data.txt").read_text())


def write_last(call: StageCall, texts: list[str]) -> None:
    (call.out / "data.txt").write_text(texts.pop())


FIRST = Stage("first", CODE, lambda c: {"data": c.data}, write_seed, volatile=("timing.json",))
SECOND = Stage("second", CODE, lambda c: {"model": c.model}, copy_upper, inputs=("first",), model_type="copy")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return Tracker(tmp_path_factory.mktemp("home"), "stages")


@pytest.fixture
def start(tracker: Tracker) -> Callable[..., StageContext]:
    def _start(*overrides: str, refresh: str = "") -> StageContext:
        config = with_overrides(PipelineConfig(workspace=tracker.workspace), overrides, "test")
        console = StageConsole(Console(file=io.StringIO(), width=200))
        parent = tracker.start_parent("test", "pipeline", {})
        return StageContext(config, tracker, parent.run_id, console, frozenset({refresh} - {""}))

    return _start


def printed(context: StageContext) -> str:
    file = context.console.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_same_config_is_reused_and_recorded_on_the_parent(start: Callable[..., StageContext]) -> None:
    first, again = start("seed=1"), start("seed=1")
    made = [run_stage(stage, first) for stage in (FIRST, SECOND)]
    reused = [run_stage(stage, again) for stage in (FIRST, SECOND)]
    assert made == reused
    assert (first.reused, again.reused) == ([], ["first", "second"])
    assert f"reused from run {made[1].run_id}" in printed(again)
    tags = again.tracker.get_run(again.parent_id).data.tags
    assert tags["reused.second"] == made[1].run_id
    assert again.tracker.artifacts_of(again.tracker.get_run(again.parent_id))["second"] == made[1]


def test_what_another_experiment_made_is_reused_and_stays_as_it_was(
    start: Callable[..., StageContext], tracker: Tracker
) -> None:
    made = run_stage(FIRST, start("seed=12"))
    context = start("seed=12")
    context.tracker = Tracker(tracker.workspace, "other team")
    context.parent_id = context.tracker.start_parent("test", "pipeline", {}).run_id
    assert run_stage(FIRST, context) == made


def test_only_what_depends_on_a_change_runs_again(start: Callable[..., StageContext]) -> None:
    for overrides, reused in (
        (("seed=2",), []),
        (("seed=2", "model.mlp_ratio=2"), ["first"]),
        (("seed=2", "data.num_workers=3", "evaluate.frechet_dimensions=8"), ["first", "second"]),
        (("seed=2", "data.num_frames=15"), []),
    ):
        context = start(*overrides)
        for stage in (FIRST, SECOND):
            run_stage(stage, context)
        assert context.reused == reused


def test_refresh_makes_a_new_run_and_equal_content_keeps_what_follows(start: Callable[..., StageContext]) -> None:
    before, context = start("seed=3"), start("seed=3", refresh="first")
    for run in (before, context):
        for stage in (FIRST, SECOND):
            run_stage(stage, run)
    assert context.reused == ["second"]
    assert context.artifacts["first"].run_id != before.artifacts["first"].run_id
    assert context.artifacts["first"].digest == before.artifacts["first"].digest


def test_a_refresh_that_was_killed_goes_on_with_the_same_command_until_it_is_over(
    start: Callable[..., StageContext],
) -> None:
    def work(call: StageCall) -> None:
        call.run_dir.mkdir(parents=True, exist_ok=True)
        seen.append(len(list(call.run_dir.iterdir())))
        (call.run_dir / f"step-{seen[-1]}").touch()
        if killed:
            raise KeyboardInterrupt

    seen: list[int] = []
    long = Stage("long", CODE, lambda c: {}, work, inputs=("first",))

    def command(refresh: bool) -> list[str]:
        context = start("seed=11")
        context.refresh = frozenset({"first", "long"} if refresh else ())
        with closing(RunLog(context.tracker.client, context.parent_id)):
            for stage in (FIRST, long):
                run_stage(stage, context)
        return context.reused

    killed = False
    assert command(refresh=False) == []
    killed = True
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            command(refresh=True)
    killed = False
    assert command(refresh=True) == ["first"]
    assert seen == [0, 0, 1, 2]
    assert command(refresh=True) == []
    assert seen[-1] == 0


def test_a_run_that_reuses_a_result_keeps_its_hands_off_a_refresh_of_it(start: Callable[..., StageContext]) -> None:
    def work(call: StageCall) -> None:
        call.run_dir.mkdir(parents=True, exist_ok=True)
        seen.append((call.run_dir / "checkpoint").exists())
        (call.run_dir / "checkpoint").touch()
        if len(seen) == 2:
            raise KeyboardInterrupt

    seen: list[bool] = []
    long = Stage("patient", CODE, lambda c: {}, work)

    def command(refresh: bool) -> StageContext:
        context = start("seed=12")
        context.refresh = frozenset({"patient"} if refresh else ())
        with closing(RunLog(context.tracker.client, context.parent_id)):
            key = run_stage(long, context).key
        assert context.run_dir("patient", key).exists() == (len(seen) == 2)
        return context

    command(refresh=False)
    with pytest.raises(KeyboardInterrupt):
        command(refresh=True)
    assert command(refresh=False).reused == ["patient"]
    assert command(refresh=True).reused == []
    assert seen == [False, False, True]


def test_deleted_or_altered_artifacts_are_made_again_and_said(start: Callable[..., StageContext]) -> None:
    ref = run_stage(FIRST, start("seed=4"))
    (ref.path / "data.txt").write_text("tampered")
    context = start("seed=4")
    assert run_stage(FIRST, context).digest == ref.digest
    assert context.reused == []
    assert "altered behind the finished run" in printed(context)


def test_what_a_refresh_makes_anew_takes_nothing_from_earlier_runs(start: Callable[..., StageContext]) -> None:
    texts, stage = ["new", "old"], Stage("varies", CODE, lambda c: {}, lambda call: write_last(call, texts))
    old, new = run_stage(stage, start("seed=9")), run_stage(stage, start("seed=9", refresh="varies"))
    assert (old.state(), new.state()) == ("intact", "intact")
    assert ((old.path / "data.txt").read_text(), (new.path / "data.txt").read_text()) == ("old", "new")
    assert run_stage(stage, start("seed=9")) == new


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


def test_the_record_holds_key_inputs_and_environment(start: Callable[..., StageContext]) -> None:
    context = start("seed=5")
    first, second = (run_stage(stage, context) for stage in (FIRST, SECOND))
    record = json.loads(context.tracker.read_file(second.run_id, "stage.json"))
    assert record["key"] == second.key
    assert record["parts"]["inputs"] == {"first": first.digest}
    assert record["notes"] == ["copied"]
    assert {"git_commit", "libraries", "machine", "cpu", "device", "seconds"} <= record.keys()
    run = context.tracker.get_run(second.run_id)
    assert run.data.tags.get("mlflow.source.git.commit") == record["git_commit"]
    assert run.data.params["model.mlp_ratio"] == "4.0"
    assert (run.data.metrics["loss"], run.data.metrics["accuracy"], run.data.tags["engine"]) == (0.5, 1.0, "plain")
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("boom"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_stage_that_fails_is_closed_truthfully_and_leaves_nothing(
    start: Callable[..., StageContext], error: BaseException, status: str
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
        call.run_dir.mkdir(parents=True, exist_ok=True)
        (call.out / "x").write_text("x")
        module.write_text(code)

    own = Stage("own", ("editedlib.work",), lambda c: {}, work)
    earlier, later = Stage("earlier", CODE, lambda c: {}, work), Stage("later", own.modules, lambda c: {}, work)
    for stages in ([own], [earlier, later]):
        context, code = start("seed=10"), "VALUE = 12\n"
        session = Session(context, RunLog(context.tracker.client, context.parent_id), 0)
        with pytest.raises(UserError, match=rf"{stages[-1].name}: editedlib.work edited during the run.* again"):
            session.run_stages(stages)
        assert stages[-1].name not in context.artifacts
        code = "VALUE = 1\n"
        module.write_text(code)
    assert context.run_dir("own", own.key(context.config, {}).digest).exists()
    assert run_stage(own, start("seed=10")).stage == "own"


def test_one_worker_a_key(start: Callable[..., StageContext]) -> None:
    calls = []

    def slow(call: StageCall) -> None:
        calls.append(1)
        time.sleep(0.5)
        (call.out / "x").write_text("x")

    stage = Stage("slow", CODE, lambda c: {}, slow)
    contexts = [start("seed=6"), start("seed=6")]
    threads = [threading.Thread(target=run_stage, args=(stage, context)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert sorted(len(context.reused) for context in contexts) == [0, 1]


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


def test_the_version_and_the_content_of_sources_are_in_the_key() -> None:
    changes: list[dict[str, Any]] = [{}, {"version": 2}, *({"sources": lambda _, d=d: {"path": d}} for d in "ab")]
    keys = {replace(FIRST, **change).key(PipelineConfig(), {}).digest for change in changes}
    assert len(keys) == len(changes)


def test_a_stage_is_told_of_its_artifact_whether_it_was_made_or_there(start: Callable[..., StageContext]) -> None:
    told = []
    stage = replace(FIRST, name="telling", on_ready=lambda _, ref: told.append(ref))
    assert [run_stage(stage, start("seed=13")) for _ in range(2)] == told


def test_a_run_of_the_key_whose_process_is_gone_is_closed_before_the_next_begins(
    start: Callable[..., StageContext],
) -> None:
    context = start("seed=14")
    dead = context.tracker.start_stage("first", FIRST.key(context.config, {}).digest, context.parent_id)
    dead.tags({"magic141.pid": "4194304"})  # no process has it: beyond the largest
    run_stage(FIRST, context)
    assert context.tracker.get_run(dead.run_id).info.status == "KILLED"
