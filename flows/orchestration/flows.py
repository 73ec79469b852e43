"""What all flows share: how Prefect names their runs, and what happens when one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import Flow, flow

from flows.orchestration.cancellation import end_as_cancelled
from flows.orchestration.names import flow_run_name
from flows.orchestration.notify import notify

P = ParamSpec("P")
R = TypeVar("R")


def our_flow(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Makes a function a Prefect flow.

    Without retries, as a run resumes by its command; and without Prefect's check of the parameters, whose message would
    hide ours.
    """
    return flow(
        name=name,
        flow_run_name=flow_run_name,
        retries=0,
        validate_parameters=False,
        on_failure=[end_as_cancelled, notify],
        on_crashed=[notify],
    )
