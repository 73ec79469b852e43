"""A stage computed again although its result exists: a new run, which a kill does not lose."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from magic141.tracking import RunLog, closing
from tasks.run_stage import run_stage
from tasks.stage import Stage, StageCall, StageContext
from tests.tasks.stages import CODE, FIRST, SECOND


def write_last(call: StageCall, texts: list[str]) -> None:
    (call.out / "data.txt").write_text(texts.pop())


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


def test_a_refresh_begins_at_the_first_step_although_there_are_checkpoints_of_a_run_before_it(
    start: Callable[..., StageContext],
) -> None:
    def work(call: StageCall) -> None:
        seen.append(call.run_dir.exists())
        call.run_dir.mkdir(parents=True, exist_ok=True)
        if len(seen) == 1:
            raise KeyboardInterrupt

    seen: list[bool] = []
    long = Stage("begins", CODE, lambda c: {}, work)
    with pytest.raises(KeyboardInterrupt):
        run_stage(long, start("seed=13"))
    run_stage(long, start("seed=13", refresh="begins"))
    assert seen == [False, False]


def test_what_a_refresh_makes_anew_takes_nothing_from_earlier_runs(start: Callable[..., StageContext]) -> None:
    texts, stage = ["new", "old"], Stage("varies", CODE, lambda c: {}, lambda call: write_last(call, texts))
    old, new = run_stage(stage, start("seed=9")), run_stage(stage, start("seed=9", refresh="varies"))
    assert (old.state(), new.state()) == ("intact", "intact")
    assert ((old.path / "data.txt").read_text(), (new.path / "data.txt").read_text()) == ("old", "new")
    assert run_stage(stage, start("seed=9")) == new
