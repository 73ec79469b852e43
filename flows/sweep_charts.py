"""A sweep's charts: each score over the first field that varies, with a line for each combination of the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from flows.members import MemberOutcome
from flows.planning.grid import CheckedMember, Member
from magic141.config import PipelineConfig
from magic141.evaluation.reports.charts import Series, line_chart
from magic141.evaluation.scores import Dimension

APART = 0.5  # share of a name's place on the x axis that points of different lines take


def charts(
    members: Sequence[CheckedMember],
    outcomes: Sequence[MemberOutcome],
    dimensions: Sequence[Dimension],
) -> Iterator[tuple[str, str]]:
    """Title and SVG per score, over the first field that varies: a line if it is a number, else points over names."""
    field = first_varied(members)
    numbers = [number for member in members if (number := number_at(member.config, field)) is not None]
    names = [name_at(member, field) for member in members]
    named = [] if len(numbers) == len(members) else list(dict.fromkeys(names))
    places = [float(named.index(name)) for name in names] if named else numbers
    lines = _line_of_each(members, field)
    for dimension in dimensions:
        series = list(_series(dimension, lines, places, outcomes, named=bool(named)))
        if drawn := line_chart(series, field, whole_x=False, title=dimension.label, x_names=named):
            yield dimension.heading, drawn


def first_varied(members: Sequence[CheckedMember]) -> str:
    """The first field that members set and that has more than one value among them."""
    fields = dict.fromkeys(field for member in members for field, _ in member.settings)
    varied = (field for field in fields if len({name_at(member, field) for member in members}) > 1)
    return next(varied, next(iter(fields)))


def _line_of_each(members: Sequence[Member], field: str) -> list[str]:
    """The line that each member is on: its settings of the other fields; no name if there is one line."""
    labels = [member.without(field).label for member in members]
    return labels if len(set(labels)) > 1 else [""] * len(members)


def _series(
    dimension: Dimension,
    lines: Sequence[str],
    places: Sequence[float],
    outcomes: Sequence[MemberOutcome],
    named: bool,
) -> Iterator[Series]:
    """The lines with their points in order, and the standard errors as bars; over names, beside each other."""
    labels, key = list(dict.fromkeys(lines)), dimension.key
    for number, label in enumerate(labels):
        aside = (number - (len(labels) - 1) / 2) * APART / len(labels) if named else 0.0
        found = sorted(
            (place + aside, outcome.scores[key], outcome.errors.get(key))
            for line, place, outcome in zip(lines, places, outcomes, strict=True)
            if line == label and key in outcome.scores
        )
        bars = [(x, y - error, y + error) for x, y, error in found if error is not None]
        yield Series(label, [(x, y) for x, y, _ in found], dots=True, bars=bars, line=not named)


def number_at(config: PipelineConfig, field: str) -> float | None:
    """The value of `field` in `config` for the axis of a chart; None if it is not a number."""
    value = _value_at(config, field)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def name_at(member: CheckedMember, field: str) -> str:
    """The value of `field` as the axis of a chart names it: as the member sets it, or as its config has it."""
    value = _value_at(member.config, field)
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return dict(member.settings).get(field) or json.dumps(plain, default=str)


def _value_at(config: PipelineConfig, field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name)
    return value
