"""What runs beside each other differ in: how they were made, their configs, their scores."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from magic141.artifacts.references import flatten
from magic141.evaluation.measurement import OF_THE_MACHINE, Measurement, Pair, as_setting
from magic141.evaluation.scores import COSTS, DIMENSIONS, SCORES_FILE, Dimension, error_text, read_variants
from magic141.frozen import NAMES_ONLY

MEASURED_ONCE = 0.3  # share by which times and memory of the same model may differ from run to run
CEILINGS = ("real", "codec")  # rows of the score table that no model made


@dataclass(frozen=True)
class RunParts:
    """One run to compare.

    Attributes:
        label: what it is called in the table.
        config: its complete config, as plain values.
        artifacts: stage name -> artifact folder on this machine.
        metrics: from the tracking store; they include the scores even if the run's folders are on another machine.
        made: field -> value of what it was made with and from, besides the config.
        measurement: its figures with the conditions under which it was judged; none where they are not on record.
        run_id: of the tracking store.
        stages: whose results it has, wherever they are.
        first_stage: the first that it did not take over from an earlier run that it goes on from; empty without one.
        idle: fields of its config that decide no score, but where and how it runs and what is done with the scores.
    """

    label: str
    config: Mapping[str, Any]
    artifacts: Mapping[str, Path]
    metrics: Mapping[str, float] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    measurement: Measurement | None = None
    run_id: str = ""
    stages: Sequence[str] = ()
    first_stage: str = ""
    idle: Collection[str] = ()

    def variant(self, name: str) -> Mapping[str, Any]:
        """Scores and costs of one variant; empty if the run does not have that variant."""
        rows = self._judged
        return scores_in(self.metrics, name) if rows is None else next((row for row in rows if row["name"] == name), {})

    @property
    def variants(self) -> list[str]:
        """Names of the variants that it has scores of."""
        if (rows := self._judged) is not None:
            return [str(row["name"]) for row in rows if row["name"] not in CEILINGS]
        scored = (name.split("/") for name in self.metrics if name.startswith("scores/"))
        return list(dict.fromkeys(variant for _, variant, *_ in scored if variant not in CEILINGS))

    @cached_property
    def _judged(self) -> list[dict[str, Any]] | None:
        """The entries of its scores.json; None if that is not on this machine."""
        folder = self.artifacts.get("evaluate")
        return read_variants(folder) if folder and (folder / SCORES_FILE).is_file() else None


def scores_in(metrics: Mapping[str, float], variant: str) -> dict[str, float]:
    """Scores and costs of one variant among a pipeline run's metrics."""
    prefix = f"scores/{variant}/"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def errors_in(evaluate: Path, variant: str) -> dict[str, float]:
    """Standard errors of one variant's scores, from what stage `evaluate` made; none if that is on another machine."""
    rows = read_variants(evaluate) if (evaluate / SCORES_FILE).is_file() else []
    record = next((row for row in rows if row["name"] == variant), {})
    errors = {dimension.key: _error(dimension.key, record) for dimension in DIMENSIONS}
    return {key: error for key, error in errors.items() if error is not None}


@dataclass(frozen=True)
class Row:
    """A line of the comparison: a value per run, and the difference of each to the first run's.

    Attributes:
        label: what it is.
        values: a string per run.
        differences: to the first run's, empty where they round to zero.
        better: whether each is better than the first; None where that cannot be told.
        errors: standard errors of the values; empty where there is none.
        meaning: what the label says.
    """

    label: str
    values: list[str]
    differences: list[str]
    better: list[bool | None]
    errors: list[str]
    meaning: str = ""

    @classmethod
    def plain(cls, label: str, values: list[str]) -> Row:
        """Values that no difference can be taken of."""
        empty = [""] * len(values)
        return cls(label, values, empty, [None] * len(values), empty)


def config_differences(runs: Sequence[RunParts]) -> tuple[list[Row], list[Row]]:
    """Fields that are not the same in all runs: those that decide scores, and the others.

    What only names a run is left out.
    """
    flat = [{name: json.dumps(value) for name, value in flatten(run.config)} for run in runs]
    idle = {name for run in runs for name in run.idle}
    rows = [row for row in _differing(flat) if row.label not in NAMES_ONLY]
    return [row for row in rows if row.label not in idle], [row for row in rows if row.label in idle]


def made_differences(runs: Sequence[RunParts]) -> list[Row]:
    """What the runs were made with and from, and judged with, where it is not the same; without the config's fields."""
    known = {name for run in runs for name, _ in flatten(run.config)}
    made, conditions = [run.made for run in runs], [_judged_with(run) for run in runs]
    judged = [values for values in conditions if values]  # a run that was not has nothing that could differ
    apart = {row.label for row in (*_differing(made), *_differing(judged))} - known
    rows = _differing([{**values, **origin} for origin, values in zip(made, conditions, strict=True)])
    return [row for row in rows if row.label in apart]


def not_alike(runs: Sequence[RunParts]) -> list[str]:
    """The conditions under which some run was not judged as the first was."""
    fields = (difference.field for run in runs[1:] for difference in _pair(runs[0], run).row_conditions)
    return list(dict.fromkeys(fields))


def unjudged(runs: Sequence[RunParts]) -> list[str]:
    """Labels of the runs that have scores, but no record of how these were measured."""
    return [run.label for run in runs if run.variants and run.measurement is None]


def score_rows(runs: Sequence[RunParts], variant: str) -> list[Row]:
    """Scores and costs of one variant in every run; those that no run has are left out."""
    records = [run.variant(variant) for run in runs]
    rows = (_score_row(dimension, records, runs) for dimension in DIMENSIONS)
    return [row for row in rows if row is not None]


def _differing(flat: Sequence[Mapping[str, str]]) -> list[Row]:
    names = sorted({name for values in flat for name in values})
    rows = (Row.plain(name, [values.get(name, "-") for values in flat]) for name in names)
    return [row for row in rows if len(set(row.values)) > 1]


def _judged_with(run: RunParts) -> dict[str, str]:
    if run.measurement is None:
        return {}
    return {
        name: as_setting(value)
        for name, value in (*run.measurement.conditions.items(), *run.measurement.machine.items())
    }


def _pair(first: RunParts, other: RunParts) -> Pair:
    nothing = Measurement("", {}, {}, {})
    return Pair(other.measurement or nothing, first.measurement or nothing)


def _score_row(dimension: Dimension, records: Sequence[Mapping[str, Any]], runs: Sequence[RunParts]) -> Row | None:
    values = [_value(dimension.key, record) for record in records]
    if all(value is None for value in values):
        return None
    errors = [_error(dimension.key, record) for record in records]
    shown = ["-" if value is None else f"{value:.{dimension.digits}f}" for value in values]
    differences = ["", *(_difference(value, values[0], dimension.digits) for value in values[1:])]
    better = [
        _is_better(dimension, value, error, values[0], errors[0])
        if difference and _comparable(dimension, runs[0], run)
        else None
        for run, value, error, difference in zip(runs, values, errors, differences, strict=True)
    ]
    texts = [error_text(error, dimension.digits) for error in errors]
    return Row(dimension.heading, shown, differences, better, texts, dimension.help)


def _difference(value: float | None, first: float | None, digits: int) -> str:
    text = "" if value is None or first is None else f"{value - first:+.{digits}f}"
    return text if text and float(text) else ""


def _comparable(dimension: Dimension, first: RunParts, run: RunParts) -> bool:
    """Whether a difference would be the model's: both judged alike, for times and memory on machines alike."""
    if first.measurement is None or run.measurement is None:
        return False
    pair = _pair(first, run)
    of_the_machine = dimension.key in OF_THE_MACHINE and pair.machines
    return not (pair.row_conditions or of_the_machine or pair.vbench_differences(dimension.key))


def _is_better(
    dimension: Dimension, value: float | None, error: float | None, first: float | None, first_error: float | None
) -> bool | None:
    """Whether a value is better than the first; None if chance explains the difference, or an error is not known."""
    sign = {"high": 1, "low": -1, "none": 0}[dimension.better]
    if value is None or first is None or not sign:
        return None
    if dimension not in COSTS and (error is None or first_error is None):
        return None
    measured_once = MEASURED_ONCE * abs(first) if dimension.key in OF_THE_MACHINE else 0.0
    scatter = measured_once + 2 * math.hypot(error or 0.0, first_error or 0.0)
    return (value - first) * sign > 0 if abs(value - first) > scatter else None


def _value(key: str, record: Mapping[str, Any]) -> float | None:
    found = record.get(key, record.get("scores", {}).get(key, {}).get("value"))
    return float(found) if isinstance(found, int | float) else None


def _error(key: str, record: Mapping[str, Any]) -> float | None:
    found = record.get(f"{key}_stderr", record.get("scores", {}).get(key, {}).get("stderr"))
    return float(found) if isinstance(found, int | float) else None
