"""Runs the members of a sweep: one after the other in this process, or several at once in their own processes."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

from prefect.context import hydrated_context, serialize_context
from prefect.utilities.callables import cloudpickle_wrapped_call
from pydantic import Field

from flows.failures.resume import is_mistake
from flows.orchestration.cancellation import CancelledInPrefectError
from flows.pipeline import pipeline
from flows.planning.grid import CheckedMember
from flows.records.session import Outcome
from magic141.errors import MAX_REASON_CHARS, first_line
from magic141.evaluation.reports.comparison_tables import errors_in, scores_in
from magic141.evaluation.scores import Dimension, error_text
from magic141.frozen import FrozenConfig
from magic141.tracking import Tracker
from magic141.urls import without_credentials
from tasks.console import StageConsole

NAME = "sweep"
STOPPING_S = 20.0


class MemberOutcome(FrozenConfig):
    """A member's result: its run and scores with their standard errors, or its error and whether that is a mistake."""

    label: str
    run_id: str | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    errors: dict[str, float] = Field(default_factory=dict)
    reused: tuple[str, ...] = ()
    error: str | None = None
    is_mistake: bool = False

    def cell(self, dimension: Dimension) -> str:
        """A score with its standard error, as a table on the console shows it."""
        if dimension.key not in self.scores:
            return "-"
        error = error_text(self.errors.get(dimension.key), dimension.digits)
        return f"{self.scores[dimension.key]:.{dimension.digits}f} {error}".rstrip()

    @property
    def reason(self) -> str:
        """The first line of the error, shortened."""
        return first_line(str(self.error), MAX_REASON_CHARS)


@dataclass(frozen=True)
class MemberRun:
    """Runs a member; holds what all members of a sweep have in common.

    Attributes:
        config: path of the YAML file.
        overrides: overrides for all members.
        until: last stage to run.
        variant: variant whose scores are compared.
        parent: MLflow run of the sweep.
    """

    config: str
    overrides: tuple[str, ...]
    until: str
    variant: str
    parent: str

    def __call__(self, member: CheckedMember) -> MemberOutcome:
        """Runs the pipeline with the member's settings; an error becomes its outcome."""
        try:
            done: Outcome = pipeline(self.config, [*self.overrides, *member.overrides], self.until, None, self.parent)
            tracker = Tracker(member.config.home, member.config.experiment)
            run = tracker.get_run(done.run_id)
            scores, judged = scores_in(run.data.metrics, self.variant), tracker.artifacts_of(run).get("evaluate")
            errors = errors_in(judged.path, self.variant) if judged else {}
        except CancelledInPrefectError:  # it ends the sweep, too
            raise
        except Exception as error:  # the stage's run has the traceback; other members go on
            text = without_credentials(f"{type(error).__name__}: {error}")
            return MemberOutcome(label=member.label, error=text, is_mistake=is_mistake(error))
        return MemberOutcome(label=member.label, run_id=done.run_id, scores=scores, errors=errors, reused=done.reused)


def run_members(run: MemberRun, members: Sequence[CheckedMember], num_parallel: int) -> list[MemberOutcome]:
    """Runs the members and returns their outcomes, in the same order.

    Several at once run in their own processes, because training seeds a process's global generators; each writes to its
    own log file. A stage that they share is computed by one of them, and the others wait for it.
    """
    console = StageConsole()
    if num_parallel == 1:
        return list(_in_turn(run, members, console))
    folder = output_folder(members[0].config.home, run.parent)
    folder.mkdir(parents=True, exist_ok=True)
    console.note(NAME, f"{len(members)} members, {num_parallel} at once; their output: {folder}")
    processes = [
        MemberProcess(run, member, folder / f"{number:03d}.log", serialize_context())
        for number, member in enumerate(members, 1)
    ]
    with ThreadPoolExecutor(num_parallel) as pool:
        try:
            return list(pool.map(lambda process: process.outcome(console), processes))
        except BaseException:  # if the sweep is stopped, so are its members
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.stop()
            raise


def output_folder(home: Path, sweep_id: str) -> Path:
    """Where a sweep's page is, and what its members print when several run at once."""
    return home / "sweeps" / sweep_id


def _in_turn(run: MemberRun, members: Sequence[CheckedMember], console: StageConsole) -> Iterator[MemberOutcome]:
    """The members one after the other in this process, each announced."""
    for number, member in enumerate(members, 1):
        console.note(NAME, f"{number} of {len(members)}: {member.label}")
        yield run(member)


class MemberProcess:
    """A member's run in its own process, under the sweep's flow run, with its output in a file."""

    def __init__(self, run: MemberRun, member: CheckedMember, log_file: Path, context: dict[str, Any]) -> None:
        self.label, self.log_file = member.label, log_file
        spawn = get_context("spawn")
        self._receiver, self._sender = spawn.Pipe(duplex=False)
        call = cloudpickle_wrapped_call(_run_under, context, run, member)  # pickle cannot serialise the context
        self._process = spawn.Process(target=_run_here, args=(self._sender, call, log_file))

    def outcome(self, console: StageConsole) -> MemberOutcome:
        """Starts it and waits until it ends, even if it is killed."""
        self._process.start()
        self._sender.close()  # so that only the member's copy keeps the pipe open, and its death closes it
        console.note(NAME, f"{self.label}: started")
        try:
            made: MemberOutcome = pickle.loads(self._receiver.recv_bytes())
        except EOFError:
            self._process.join()
            error = f"its process ended with exit code {self._process.exitcode}: see {self.log_file}"
            made = MemberOutcome(label=self.label, error=error)
        self._process.join()
        if made.error:
            console.failed(NAME, f"{self.label}: {made.reason}")
        else:
            console.note(NAME, f"{self.label}: finished, run {made.run_id}")
        return made

    def stop(self) -> None:
        """Stops it as Ctrl-C would."""
        if self._process.is_alive():
            self._process.terminate()


def _run_here(sender: Connection, call: Callable[[], bytes], log_file: Path) -> None:
    """Runs in the member's process; ignores Ctrl-C, as the sweep then sends SIGTERM: both would disturb its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_sweep, daemon=True).start()
    with log_file.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    sender.send_bytes(call())


def _end_with_sweep() -> None:
    """Stops the member if its sweep is killed, and ends it by force if Prefect waits for the sweep's dead server."""
    sweep = parent_process()
    assert sweep is not None
    sweep.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOPPING_S)
    os._exit(1)


def _run_under(context: dict[str, Any], run: MemberRun, member: CheckedMember) -> MemberOutcome:
    with hydrated_context(context):
        return run(member)
