"""Notifies people of failed runs by a JSON message to a webhook; never fails itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import UUID

from prefect import Flow, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.logging.loggers import flow_run_logger
from prefect.utilities.urls import url_for

from flows.failures.resume import CORRECT, RESUME
from flows.orchestration.cancellation import was_cancelled
from flows.orchestration.server import EMBEDDED_VARIABLE
from flows.records.commands import command
from magic141.config import HOME_VARIABLE, default_home
from magic141.errors import UserError, first_line
from magic141.urls import without_credentials

URL_VARIABLE = "MAGIC141_NOTIFY_URL"
SECRET_BLOCK = "magic141-notify-url"
COMMANDS = {
    "magic141": "run",
    "magic141-rerun": "run",
    "magic141-sweep": "sweep",
    "magic141-evaluation": "eval",
}  # flow -> command that does the same
OPTIONS = {
    "run_id": "--run",
    "origin": "--run",
    "first": "--from",
    "vary": "--vary",
    "members": "--member",
    "variant": "--variant",
    "model": "--model",
    "overrides": "--set",
    "until": "--until",
    "refresh": "--refresh",
    "workspace": "--workspace",
    "parallel": "--parallel",
}
MISTAKE = f"{UserError.__name__}: "  # as it appears in Prefect's message for an exception
TIMEOUT_S = 10
MAX_ERROR_CHARS = 500


def notify(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook for `on_failure` and `on_crashed`: posts `{"text": ...}`, which Slack and Mattermost show as a message.

    The address is MAGIC141_NOTIFY_URL, or else the Prefect Secret block `magic141-notify-url`; without either, nothing
    is sent, and nothing of a run that was cancelled. The address is a secret and is never logged; a failed post is
    logged and not repeated.
    """
    log = flow_run_logger(flow_run)
    if was_cancelled(state):
        return
    try:
        if url := _address():
            _post(url, message(flow.name, flow_run, state))
            log.info("sent a notification of the failure")
    except Exception as error:  # the run's own failure has to stay visible
        log.warning(f"the notification of the failure was not sent: {_harmless(error)}")


def message(flow_name: str, flow_run: FlowRun, state: State[Any]) -> str:
    """The message: what failed, where to look, why (first line), and the command that resumes it."""
    command = resume_command(flow_name, flow_run.id, flow_run.deployment_id, flow_run.parameters)
    reason = first_line(state.message or "", MAX_ERROR_CHARS)
    lines = [
        f"{flow_name}: run {flow_run.name} {'crashed' if state.is_crashed() else 'failed'}",
        None if EMBEDDED_VARIABLE in os.environ else url_for(flow_run),  # an embedded server ends with this process
        reason,
        command and f"{CORRECT if MISTAKE in reason else RESUME}: {command}",
    ]
    return without_credentials("\n".join(line for line in lines if line))


def resume_command(
    flow_name: str, run_id: UUID, deployment_id: UUID | None, parameters: Mapping[str, Any]
) -> str | None:
    """The command that resumes a run, reusing its finished stages; None for a flow without a command."""
    if deployment_id:
        return f"prefect flow-run retry {run_id}"
    if flow_name not in COMMANDS:
        return None
    config = [str(parameters["config"])] if "config" in parameters else []
    return command(COMMANDS[flow_name], *config, *_options(parameters), *_workspace(parameters))


def _workspace(parameters: Mapping[str, Any]) -> Sequence[str]:
    """The --workspace option, if the flow got its workspace from the environment instead of a parameter."""
    return (
        ["--workspace", str(default_home())] if HOME_VARIABLE in os.environ and not parameters.get("workspace") else []
    )


def _options(parameters: Mapping[str, Any]) -> Sequence[str]:
    given = [(option, parameters[name]) for name, option in OPTIONS.items() if parameters.get(name)]
    flat = [(option, each) for option, value in given for each in (value if isinstance(value, list) else [value])]
    return [word for option, value in flat for word in (option, str(value))]


def _address() -> str | None:
    if url := os.environ.get(URL_VARIABLE):
        return url
    with get_client(sync_client=True) as client:
        try:
            return str(client.read_block_document_by_name(SECRET_BLOCK, "secret", include_secrets=True).data["value"])
        except ObjectNotFound:  # nobody asked for notifications
            return None


def _post(url: str, text: str) -> None:
    body = json.dumps({"text": text}).encode()
    with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=TIMEOUT_S):
        pass


def _harmless(error: Exception) -> str:
    """An error without its own text, which may quote the address."""
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    reason = getattr(error, "reason", None)
    return f"{type(error).__name__}: {reason}" if isinstance(reason, OSError) else type(error).__name__
