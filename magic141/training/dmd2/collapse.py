"""Detects when a distillation collapses, and keeps the best state seen so far.

The losses of DMD2 say nothing about quality: they stay flat while clips lose motion, contrast or diversity. At every
validation the student's clips are therefore compared with the many-step model's, generated from the same prompts,
first frames and noise, and with real clips.

A student that is to make a clip in few steps may begin with less motion than is healthy, and gain it slowly. Therefore
the watch knows its figures before the first update: early in the run, too low a figure counts only if it has fallen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from magic141.errors import UserError
from magic141.training.config import WATCH_FILE
from magic141.training.dmd2.clip_metrics import PREFIX
from magic141.training.dmd2.config import CollapseConfig

_FRECHET = f"{PREFIX}frechet"
_TRENDS = ("fake_loss", "dmd_gradient")
_FALLEN = 0.9  # share of the highest value so far below which a figure has fallen, and is not just another draw
_MORE_NOISE = "lower the guidance or optimizer.learning_rate, or try a higher score_shift"
_SLOWER = "lower optimizer.learning_rate or the guidance, or raise a_weak (with fake_score = lora)"
_FASTER_FAKE = "raise fake_updates_per_step or fake_optimizer.learning_rate, lower optimizer.learning_rate"


@dataclass(frozen=True)
class Symptom:
    """A metric outside its bounds, in words, and the settings that may cure it."""

    text: str
    remedy: str


def symptoms(
    values: Mapping[str, float],
    growth: Mapping[str, float],
    limits: CollapseConfig,
    healthy_from: Mapping[str, float] | None = None,
) -> list[Symptom]:
    """The symptoms in one validation's metrics; none if they are healthy.

    Fake loss and gradient only add to what the clips show: they also grow when a still student begins to move.

    Args:
        values: the metrics.
        growth: ratios of some of them to an earlier value, from `CollapseWatch.growth`.
        limits: the bounds.
        healthy_from: values from which a figure is healthy although below its lower bound; none by default.
    """
    found = [*_of_clips(values, growth, limits, healthy_from or {})]
    return found + ([*_of_training(growth, limits)] if found else [])


def _of_clips(
    values: Mapping[str, float],
    growth: Mapping[str, float],
    limits: CollapseConfig,
    healthy_from: Mapping[str, float],
) -> Iterator[Symptom]:
    def low(name: str, bound: float, what: str) -> Iterator[Symptom]:
        return _low(values, name, bound, healthy_from, what)

    yield from low("variance_ratio", limits.min_variance_ratio, "variance")
    yield from _high(values, "variance_ratio", limits.max_variance_ratio, "variance", _SLOWER)
    yield from low("motion_ratio", limits.min_motion_ratio, "motion")
    yield from low("detail_ratio", limits.min_detail_ratio, "difference between neighbours")
    yield from _high(values, "detail_ratio", limits.max_detail_ratio, "difference between neighbours", _SLOWER)
    yield from low("diversity_ratio", limits.min_diversity_ratio, "difference between seeds")
    yield from _uncovered(values, limits.min_mode_coverage, healthy_from)
    yield from _high(values, "frechet_ratio", limits.max_frechet_ratio, "Fréchet distance", _SLOWER)
    drift, saturation = values.get(f"{PREFIX}mean_drift", 0.0), values.get(f"{PREFIX}saturation", 0.0)
    if drift > limits.max_mean_drift:
        yield Symptom(f"mean off by {drift:.2f} standard deviations (at most {limits.max_mean_drift})", _SLOWER)
    if saturation > limits.max_saturation:
        yield Symptom(f"{saturation:.0%} of the values saturated (at most {limits.max_saturation:.0%})", _SLOWER)
    yield from _grown(growth, _FRECHET, limits.max_frechet_growth, "Fréchet distance", "smallest", _SLOWER)


def _of_training(growth: Mapping[str, float], limits: CollapseConfig) -> Iterator[Symptom]:
    yield from _grown(growth, "fake_loss", limits.max_fake_loss_growth, "fake loss", "first", _FASTER_FAKE)
    yield from _grown(growth, "dmd_gradient", limits.max_gradient_growth, "gradient", "first", _FASTER_FAKE)


def _grown(
    growth: Mapping[str, float], name: str, bound: float, what: str, beside: str, remedy: str
) -> Iterator[Symptom]:
    value = growth.get(name, 0.0)
    if value > bound:
        yield Symptom(f"{what} {value:.1f} x its {beside} value (at most {bound})", remedy)


def _uncovered(values: Mapping[str, float], bound: float, healthy_from: Mapping[str, float]) -> Iterator[Symptom]:
    name = f"{PREFIX}mode_coverage"
    value = values.get(name)
    if value is not None and value < min(bound, healthy_from.get(name, bound)):
        yield Symptom(
            f"{value:.0%} of the many-step model's clips have a student's near (at least {bound:.0%})", _SLOWER
        )


def _low(
    values: Mapping[str, float], name: str, bound: float, healthy_from: Mapping[str, float], what: str
) -> Iterator[Symptom]:
    value = values.get(PREFIX + name)
    if value is not None and value < min(bound, healthy_from.get(PREFIX + name, bound)):
        yield Symptom(f"{what} {value:.2f} x that of the many-step model (at least {bound})", _MORE_NOISE)


def _high(values: Mapping[str, float], name: str, bound: float, what: str, remedy: str) -> Iterator[Symptom]:
    value = values.get(PREFIX + name)
    if value is not None and value > bound:
        yield Symptom(f"{what} {value:.2f} x that of the many-step model (at most {bound})", remedy)


@dataclass
class CollapseWatch:
    """Judges every validation of a run and keeps the best state seen.

    Attributes:
        config: the bounds.
        num_steps: updates of the whole run.
        start: the metrics before the first update; empty if they were not measured.
        best_step: updates after which the best state was seen; None before the first validation.
        best: a copy of that state, as passed to `judge`.
        history: the metrics of every validation.
        num_bad: validations in a row with a symptom.
        first: training losses and gradients at the first validation, to which later ones are compared.
        message: what was seen and what to try; empty unless the run has collapsed.
    """

    config: CollapseConfig
    num_steps: int
    start: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best: dict[str, Any] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    num_bad: int = 0
    first: dict[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def collapsed(self) -> bool:
        """Whether the last `patience` validations all had a symptom."""
        return self.num_bad >= self.config.patience

    def judge(self, step: int, values: Mapping[str, float], state: dict[str, Any]) -> None:
        """Judges one validation; `values`, and therefore the verdict, are the same on all workers.

        Whether the run may go on says `require_sound`.

        Args:
            step: updates done.
            values: metrics of the validation, and of training since the last validation.
            state: what to keep if this is the best so far (copied).
        """
        self.first = self.first or {name: values[name] for name in _TRENDS if name in values}
        found = symptoms(values, self.growth(values), self.config, self._healthy_from(step))
        self.num_bad = self.num_bad + 1 if found else 0
        shown = {name: value for name, value in values.items() if name.startswith(PREFIX)}
        self.history.append({"step": step, **shown, "num_symptoms": len(found)})
        if self._is_best(step):
            self.best_step, self.best = step, _copy(state)
        self.message = self._message(step, found) if self.collapsed else ""

    def require_sound(self) -> None:
        """Ends a run that has collapsed.

        Raises:
            UserError: if the run has collapsed and `config.stop` is set.
        """
        if self.collapsed and self.config.stop:
            raise UserError(self.message)

    def growth(self, values: Mapping[str, float]) -> dict[str, float]:
        """Ratios of losses and gradients to their first values, and of the Fréchet distance to its smallest so far."""
        before = dict(self.first)
        if self.history and _FRECHET in values:
            before[_FRECHET] = min(row[_FRECHET] for row in self.history)
        return {name: values[name] / value for name, value in before.items() if value > 0 and name in values}

    def _healthy_from(self, step: int) -> dict[str, float]:
        """A little below the highest of each metric so far; nothing once the time to rise is over."""
        if step > self.config.rising_fraction * self.num_steps:
            return {}
        before = [row for row in (self.start, *self.history) if row]
        return {name: _FALLEN * max(row.get(name, 0.0) for row in before) for name in self.start}

    def write(self, folder: Path, exported_step: int) -> None:
        """Writes `watch.json` beside the student: metrics of all validations, best and exported step, verdict."""
        record = {
            "best_step": self.best_step,
            "exported_step": exported_step,
            "collapsed": self.collapsed,
            "start": self.start,
            "validations": self.history,
        }
        (folder / WATCH_FILE).write_text(json.dumps(record, indent=1))

    def state_dict(self) -> dict[str, Any]:
        """Everything that validations have changed."""
        return {name: value for name, value in vars(self).items() if name not in ("config", "num_steps")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the best state goes back to host memory."""
        vars(self).update(_copy(state))

    def _is_best(self, step: int) -> bool:
        """Whether this validation ranks first: those without symptoms before the others, then by Fréchet distance."""

        def rank(row: Mapping[str, float]) -> tuple[bool, float]:
            return row["num_symptoms"] > 0, row.get(_FRECHET, 0.0)

        return min(self.history, key=rank)["step"] == step

    def _message(self, step: int, found: list[Symptom]) -> str:
        seen = "; ".join(symptom.text for symptom in found)
        remedies = "; ".join(dict.fromkeys(symptom.remedy for symptom in found))
        return (
            f"distill_dmd2 collapsed at step {step}, after {self.num_bad} validations in a row with symptoms: {seen}. "
            f"Try this: {remedies}. The best validation was at step {self.best_step}. Changing any other setting "
            "starts the stage over; collapse.stop = false continues from the last checkpoint."
        )


def _copy(state: Any) -> Any:
    """A deep copy of nested dictionaries of tensors, in host memory, to save the device's."""
    if isinstance(state, dict):
        return {name: _copy(value) for name, value in state.items()}
    return state.detach().to("cpu", copy=True) if isinstance(state, torch.Tensor) else state
