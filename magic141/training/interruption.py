"""Interruptions of a training: it ends between two updates, with a checkpoint, so that no update is computed twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import torch

from magic141.errors import UserError
from magic141.training.context import TrainContext, sum_over_workers
from magic141.training.progress import FILE, read_rows
from magic141.training.worker_task import WorkerTask

T = TypeVar("T")
Notice = Callable[[], object]
LOOK_EVERY_S = 10.0  # Ray's workers ask each other, which takes milliseconds
_POLL_S = 0.2


def no_notice() -> None:
    """Of workers whose machines are not taken away."""


class Asked(NamedTuple):
    """What the workers are to do between two updates: save a checkpoint, and end."""

    save: bool
    stop: bool


class Interruptions:
    """What the workers are asked for; all of them get the same answers.

    Args:
        task: whether its launch asks them to stop.
        notice: what is known of workers' machines that are to go, otherwise None; called by all workers at once.
    """

    def __init__(self, task: WorkerTask, context: TrainContext, notice: Notice = no_notice) -> None:
        self._task, self._context, self._notice = task, context, notice
        self._looked_s = time.monotonic()
        self._known: object = None

    def asked(self) -> Asked:
        """Called by all workers between two updates; the first one's view decides."""
        view = [False, False]
        if self._context.is_main:
            view = [self._task.is_to_stop(), time.monotonic() - self._looked_s >= LOOK_EVERY_S]
        stop, look = map(bool, sum_over_workers(torch.tensor(view, dtype=torch.float64), self._context))
        return Asked(save=stop or (look and self._has_news()), stop=stop)

    def _has_news(self) -> bool:
        """Whether there is notice of a machine that was not to go before."""
        self._looked_s = time.monotonic()
        before, self._known = self._known, self._notice()
        return self._known is not None and self._known != before


def interruptible(
    run: Callable[[], T], task: WorkerTask, note: Callable[[str], None], end: Callable[[], None] = lambda: None
) -> T:
    """Calls `run`, which trains, in a thread of its own, as the main thread is the one that is interrupted.

    Ctrl-C, SIGTERM or a cancellation then lets the workers save a checkpoint first; another one ends this at once.

    Args:
        run: trains; what it returns or raises is this function's.
        task: what the workers were sent.
        note: tells the user.
        end: after an interruption, ends what `run` has started: nothing may write into the run's folder any more.
    """
    outcome: Future[T] = Future()
    thread = threading.Thread(target=_run_into, args=(outcome, run), name="training", daemon=True)
    try:
        thread.start()
        _wait_for(thread)
    except BaseException:
        try:
            if _has_begun(task):
                _let_save(task, thread, outcome, note)
        finally:
            end()
        raise
    return outcome.result()


def _let_save(task: WorkerTask, thread: threading.Thread, outcome: Future[T], note: Callable[[str], None]) -> None:
    task.ask_to_stop()
    note("stops with a checkpoint after this update; interrupt it again to stop at once")
    _wait_for(thread)
    if isinstance(ending := outcome.exception(), UserError):
        note(str(ending))


def _run_into(outcome: Future[T], run: Callable[[], T]) -> None:
    try:
        outcome.set_result(run())
    except BaseException as error:  # raised by the waiting thread
        outcome.set_exception(error)


def _wait_for(thread: threading.Thread) -> None:
    """Waits in short turns, as Prefect can interrupt a thread only between them."""
    while thread.is_alive():
        thread.join(_POLL_S)


def _has_begun(task: WorkerTask) -> bool:
    """Whether the workers train: before that, none would see that it is asked."""
    return any(row.get("launch") == task.launch_id for row in read_rows(task.run_dir / FILE))
