"""Runs that are cancelled in Prefect: nothing else ends one that no worker has started."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import Flow, get_client, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled

from magic141.errors import UserError

TEXT = "the run was cancelled in Prefect; finished stages are kept"


class CancelledInPrefectError(UserError):
    """Ends a run, and the sweep that it belongs to."""


def refuse_cancelled() -> None:
    """Raises CancelledInPrefectError if this flow run, or the one that it belongs to, is being cancelled.

    That one is set to cancelled at once: from cancelling, Prefect lets it become nothing else, and it would stay so.
    """
    if runtime.flow_run.id is None:
        return
    with get_client(sync_client=True) as client:
        for run_id in {runtime.flow_run.id, runtime.flow_run.root_flow_run_id}:
            state = client.read_flow_run(UUID(str(run_id))).state
            if state and (state.is_cancelling() or state.is_cancelled()):
                client.set_flow_run_state(UUID(str(run_id)), Cancelled(message=TEXT), force=True)
                raise CancelledInPrefectError(TEXT)


def end_as_cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook for `on_failure`, which a run that raised has reached by then: a cancelled one has not failed."""
    if was_cancelled(state):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message=TEXT), force=True)


def was_cancelled(state: State[Any]) -> bool:
    """Whether a flow run's failure is its end by `refuse_cancelled`."""
    return TEXT in (state.message or "")
