"""Runs that are cancelled in Prefect: nothing else ends one that no worker has started."""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import Flow, get_client, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled

from magic141.errors import UserError

LOOK_EVERY_S = 15.0
TEXT = "the run was cancelled in Prefect; finished stages are kept"


class CancelledInPrefectError(UserError):
    """Ends a run, and the sweep that it belongs to; nothing has to be corrected for it to go on."""

    is_mistake = False


def refuse_cancelled() -> None:
    """Raises CancelledInPrefectError if this flow run, or the one that it belongs to, is being cancelled.

    That one is set to cancelled at once: from cancelling, Prefect lets it become nothing else, and it would stay so.
    """
    if run_id := _cancelled():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Cancelled(message=TEXT), force=True)
        raise CancelledInPrefectError(TEXT)


@contextmanager
def heeding_cancellation() -> Iterator[None]:
    """Ends the block, in the main thread, as SIGTERM would, soon after the run is cancelled: a stage may take a week.

    Not of a deployed run, which its worker ends: a second signal would not let a training save its checkpoint.
    """
    found = threading.Event()
    try:
        with _watching(found):
            yield
    except TerminationSignal:
        if found.is_set():
            refuse_cancelled()
        raise


@contextmanager
def _watching(found: threading.Event) -> Iterator[None]:
    """Looks in a thread whether the run is cancelled; then sets `found` and sends SIGTERM, but not after the block."""
    over, sending = threading.Event(), threading.Lock()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            if _is_cancelled_as_far_as_known():
                with sending:
                    if not over.is_set():
                        found.set()
                        os.kill(os.getpid(), signal.SIGTERM)
                return

    if runtime.flow_run.id and not runtime.deployment.id:
        threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True).start()
    try:
        yield
    finally:
        with sending:
            over.set()


def _is_cancelled_as_far_as_known() -> bool:
    try:
        return _cancelled() is not None
    except Exception as error:  # a server that does not answer now is asked again
        logging.getLogger(__name__).debug("Prefect does not answer: %s", error)
        return False


def _cancelled() -> UUID | None:
    """This flow run, or the one that it belongs to, if it is being cancelled."""
    if runtime.flow_run.id is None:
        return None
    with get_client(sync_client=True) as client:
        for run_id in {runtime.flow_run.id, runtime.flow_run.root_flow_run_id}:
            state = client.read_flow_run(UUID(str(run_id))).state
            if state and (state.is_cancelling() or state.is_cancelled()):
                return UUID(str(run_id))
    return None


def end_as_cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook for `on_failure`, which a run that raised has reached by then: a cancelled one has not failed."""
    if was_cancelled(state):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message=TEXT), force=True)


def was_cancelled(state: State[Any]) -> bool:
    """Whether a flow run's failure is its end by `refuse_cancelled`."""
    return TEXT in (state.message or "")
