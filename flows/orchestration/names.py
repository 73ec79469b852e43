"""What Prefect calls a flow run: as MLflow calls the run that it makes, instead of two random words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from flows.records.naming import RUN_ID_CHARS, SEPARATOR, run_name


def flow_run_name() -> str:
    """The name of the flow run that this process is in."""
    return name_of(flow_run.flow_name or "", flow_run.parameters or {})


def name_of(flow_name: str, parameters: Mapping[str, Any]) -> str:
    """`demo · a_weak=0.25`, `demo · sweep`, `models:/magic141@champion · eval`: what it works on, and what was set.

    Args:
        flow_name: `magic141`, or `magic141-` and what the flow does.
        parameters: the flow's.
    """
    _, _, does = flow_name.partition("-")
    said = f"{_subject(parameters)}{SEPARATOR}sweep" if does == "sweep" else _subject(parameters)
    return run_name(said, does, [str(text) for text in parameters.get("overrides") or ()])


def _subject(parameters: Mapping[str, Any]) -> str:
    """The config's name, a model's URI, or the beginning of a run's id."""
    if config := parameters.get("config"):
        return Path(str(config)).stem
    named = str(parameters.get("origin") or parameters.get("model") or parameters.get("run_id") or "magic141")
    return named if ":" in named else named[:RUN_ID_CHARS]
