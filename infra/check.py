"""Looks through infra/prefect.yaml for what a server would take without a word and then never run, or run and fail.

`python infra/check.py [FILE]`: a line for each fault, exit code 1 if there are any.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prefect.exceptions import MissingFlowError
from prefect.flows import load_flow_from_entrypoint
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

SCHEDULES = {"cron": CronSchedule, "interval": IntervalSchedule, "rrule": RRuleSchedule}
ROOT = Path(__file__).resolve().parents[1]


def faults(deployment: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a deployment."""
    one = deployment.get("schedule")
    for schedule in [*([one] if one else []), *(deployment.get("schedules") or [])]:
        if problem := never_fires(schedule):
            yield f"schedule {schedule.get('slug', '')}: {problem}"
    try:
        flow = load_flow_from_entrypoint(deployment["entrypoint"])
    except (ImportError, MissingFlowError) as error:
        yield f"entrypoint {deployment['entrypoint']}: {error}"
        return
    known = parameter_schema(flow).properties
    given = [deployment, *(deployment.get("triggers") or [])]
    for name in (name for part in given for name in part.get("parameters") or {}):
        if name not in known:
            yield f"parameter {name}: the flow {flow.name} has none of that name; it has {', '.join(known)}"
    config = (deployment.get("parameters") or {}).get("config")
    if config and not (ROOT / config).is_file():
        yield f"parameter config = {config}: no such file"


def never_fires(schedule: dict[str, Any]) -> str | None:
    """Why a schedule gives no run, ever; None if it does."""
    kinds = [kind for kind in SCHEDULES if kind in schedule]
    if len(kinds) != 1:
        return f"expected one of {', '.join(SCHEDULES)}"
    fields = {name: schedule[name] for name in (kinds[0], "timezone", "day_or") if name in schedule}
    shown = ", ".join(f"{name} = {value}" for name, value in fields.items())
    try:
        if asyncio.run(SCHEDULES[kinds[0]](**fields).get_dates(1)):
            return None
    except ValidationError as error:
        return f"{shown}: {error.errors()[0]['msg']}"
    except ValueError:  # no such day
        pass
    return f"{shown}: never fires"


def main(file: Path) -> int:
    """Prints the faults; returns how many."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        print(f"{file}: expected a readable YAML file of deployments, as infra/prefect.yaml: {error}")
        return 1
    found = [f"{file}: {d['name']}: {fault}" for d in content["deployments"] for fault in faults(d)]
    print("\n".join(found) or f"{file}: {len(content['deployments'])} deployments, no faults")
    return len(found)


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "infra" / "prefect.yaml")))
