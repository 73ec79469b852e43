"""Measurements of models with their conditions: only metrics measured under the same ones are comparable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

SAMPLED_ON = "sampled_on"  # in the record of `generate`: the device, or devices, of what sampled
# Metrics that depend on the machine and its load; scores and the size of the weights do not.
OF_THE_MACHINE = ("latency_ms", "cpu_ms_per_clip", "peak_memory_mb")
VBENCH_DIMENSIONS = "evaluate.vbench_dimensions"
# What decides which rows, prompts and long videos there are, but nothing that stands in a row of the score table.
NOT_IN_A_ROW = ("many_steps", "few_steps", "prompts", "num_prompts", "num_seeds", "long_video_")


@dataclass(frozen=True)
class Measurement:
    """One run's metrics of a model.

    Attributes:
        run_id: MLflow run of the pipeline or evaluation that judged the model.
        metrics: metric -> value.
        conditions: field -> value of everything besides the model that the metrics depend on.
        machine: field -> value of what times and memory also depend on.
        vbench: VBench's dimension -> the version that computed it; those that could not be computed are missing.
    """

    run_id: str
    metrics: Mapping[str, float]
    conditions: Mapping[str, Any]
    machine: Mapping[str, Any]
    vbench: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A condition that differs between the measurements of candidate and champion."""

    field: str
    candidate: str
    champion: str


@dataclass(frozen=True)
class Pair:
    """The measurements to compare; `champion` is None if there is no champion."""

    candidate: Measurement
    champion: Measurement | None

    @property
    def text(self) -> str:
        """Which two runs are compared."""
        beside = f"the champion by run {self.champion.run_id}" if self.champion else "there is no champion"
        return f"judged by run {self.candidate.run_id}, {beside}"

    @property
    def conditions(self) -> list[Difference]:
        """Differences that make all metrics incomparable; each dimension of VBench is computed by itself."""
        if self.champion is None:
            return []
        found = _differences(self.candidate.conditions, self.champion.conditions)
        return [difference for difference in found if difference.field != VBENCH_DIMENSIONS]

    @property
    def machines(self) -> list[Difference]:
        """Further differences, which make times and memory incomparable."""
        return [] if self.champion is None else list(_differences(self.candidate.machine, self.champion.machine))

    @property
    def row_conditions(self) -> list[Difference]:
        """Those of `conditions` that make even a single row of the score table incomparable."""
        elsewhere = tuple(f"generate.{name}" for name in NOT_IN_A_ROW)
        return [difference for difference in self.conditions if not difference.field.startswith(elsewhere)]

    def differences(self, metric: str) -> list[Difference]:
        """Differences that make this metric incomparable."""
        dimension = metric.rpartition("/")[2]
        machines = self.machines if dimension in OF_THE_MACHINE else []
        return [*self.conditions, *machines, *self.vbench_differences(dimension)]

    def vbench_differences(self, dimension: str) -> list[Difference]:
        """The difference between what computed a dimension of VBench, if any; other dimensions have none."""
        if self.champion is None:
            return []
        here, there = (run.vbench.get(dimension, "not computed") for run in (self.candidate, self.champion))
        return [Difference(f"VBench of {dimension}", here, there)] if here != there else []


def closest(candidate: Sequence[Measurement], champion: Sequence[Measurement]) -> Pair:
    """The newest pair measured under the same conditions, preferably on the same machine; else the newest of each.

    Args:
        candidate: measurements of the candidate, newest first; at least one.
        champion: measurements of the champion, newest first; may be empty.
    """
    pairs = [Pair(*both) for both in product(candidate, champion)] or [Pair(candidate[0], None)]
    return min(pairs, key=_distance)


def _distance(pair: Pair) -> tuple[bool, ...]:
    other_vbench = pair.champion is not None and pair.candidate.vbench != pair.champion.vbench
    return bool(pair.conditions), bool(pair.conditions or pair.machines), other_vbench


def as_setting(value: object) -> str:
    """A value in the form that `--set` takes."""
    return value if isinstance(value, str) else json.dumps(value)


def _differences(candidate: Mapping[str, Any], champion: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted(candidate.keys() | champion.keys()):
        texts = [as_setting(values[name]) if name in values else "not on record" for values in (candidate, champion)]
        if texts[0] != texts[1]:
            yield Difference(name, *texts)
