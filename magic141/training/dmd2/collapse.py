"""Detects when a distillation collapses, and keeps the best state seen so far.

The losses of DMD2 say nothing about quality: they stay flat while clips lose motion, contrast or diversity. At every
validation the student's clips are therefore compared with the many-step model's, generated from the same prompts,
first frames and noise, and with real clips.

A student that is to make a clip in few steps may begin with less motion than is healthy, and gain it slowly. Therefore
the watch knows its figures before the first update: early in a run, what is out of bounds counts only if it gets worse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
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
_ABOUT = 0.9  # of the best value so far: what is no worse than that may be another draw
_MORE_NOISE = "lower the guidance or optimizer.learning_rate, or try a higher score_shift"
_SLOWER = "lower optimizer.learning_rate or the guidance, or raise a_weak (with fake_score = lora)"
_FASTER_FAKE = "raise fake_updates_per_step or fake_optimizer.learning_rate, lower optimizer.learning_rate"
_RATIO = "{value:.2f} x that of the many-step model"


# metric, which field `min_…` or `max_…` bounds; what is said; remedy
_AT_LEAST = (
    ("variance_ratio", f"variance {_RATIO} (at least {{bound}})", _MORE_NOISE),
    ("motion_ratio", f"motion {_RATIO} (at least {{bound}})", _MORE_NOISE),
    ("detail_ratio", f"difference between neighbours {_RATIO} (at least {{bound}})", _MORE_NOISE),
    ("diversity_ratio", f"difference between seeds {_RATIO} (at least {{bound}})", _MORE_NOISE),
    ("mode_coverage", "{value:.0%} of the many-step model's clips near a student's (at least {bound:.0%})", _SLOWER),
)
_AT_MOST = (
    ("variance_ratio", f"variance {_RATIO} (at most {{bound}})", _SLOWER),
    ("detail_ratio", f"difference between neighbours {_RATIO} (at most {{bound}})", _SLOWER),
    ("frechet_ratio", f"Fréchet distance {_RATIO} (at most {{bound}})", _SLOWER),
    ("mean_drift", "mean off by {value:.2f} standard deviations (at most {bound})", _SLOWER),
    ("saturation", "{value:.0%} of the values saturated (at most {bound:.0%})", _SLOWER),
)


@dataclass(frozen=True)
class Symptom:
    """A metric outside its bounds, in words, and the settings that may cure it."""

    text: str
    remedy: str


def symptoms(
    values: Mapping[str, float],
    growth: Mapping[str, float],
    limits: CollapseConfig,
    known: Sequence[Mapping[str, float]] = (),
) -> list[Symptom]:
    """The symptoms in one validation's metrics; none if they are healthy.

    A fake loss that grows only explains other symptoms: it also does when a still student begins to move.

    Args:
        values: the metrics.
        growth: ratios of some of them to an earlier value, from `CollapseWatch.growth`.
        limits: the bounds.
        known: earlier metrics: what is out of bounds is healthy if it is about as good as the best of them.
    """
    found = [
        *_too_low(values, limits, known),
        *_too_high(values, limits, known),
        *_grown(growth, "dmd_gradient", limits.max_gradient_growth, "gradient", "first", _FASTER_FAKE),
        *_grown(growth, _FRECHET, limits.max_frechet_growth, "Fréchet distance", "smallest", _SLOWER),
    ]
    fake_loss = _grown(growth, "fake_loss", limits.max_fake_loss_growth, "fake loss", "first", _FASTER_FAKE)
    return [*found, *fake_loss] if found else []


def _too_low(
    values: Mapping[str, float], limits: CollapseConfig, known: Sequence[Mapping[str, float]]
) -> Iterator[Symptom]:
    for metric, text, remedy in _AT_LEAST:
        name, bound = PREFIX + metric, getattr(limits, f"min_{metric}")
        best = max((row[name] for row in known if name in row), default=math.inf)
        if values.get(name, math.inf) < min(bound, _ABOUT * best):
            yield Symptom(text.format(value=values[name], bound=bound), remedy)


def _too_high(
    values: Mapping[str, float], limits: CollapseConfig, known: Sequence[Mapping[str, float]]
) -> Iterator[Symptom]:
    for metric, text, remedy in _AT_MOST:
        name, bound = PREFIX + metric, getattr(limits, f"max_{metric}")
        best = min((row[name] for row in known if name in row), default=0.0)
        if values.get(name, 0.0) > max(bound, best / _ABOUT):
            yield Symptom(text.format(value=values[name], bound=bound), remedy)


def _grown(
    growth: Mapping[str, float], name: str, bound: float, what: str, beside: str, remedy: str
) -> Iterator[Symptom]:
    value = growth.get(name, 0.0)
    if value > bound:
        yield Symptom(f"{what} {value:.1f} x its {beside} value (at most {bound})", remedy)


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
        found = symptoms(values, self.growth(values), self.config, self._known(step))
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
        if self.history:
            before[_FRECHET] = min(row[_FRECHET] for row in self.history)
        return {name: values[name] / value for name, value in before.items() if value > 0 and name in values}

    def _known(self, step: int) -> list[Mapping[str, float]]:
        """The metrics so far, from the start on; none once the time to rise is over, or if the start is not known."""
        is_early = step <= self.config.rising_fraction * self.num_steps
        return [self.start, *self.history] if self.start and is_early else []

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
        """The inverse of `state_dict`."""
        vars(self).update(state)

    def _is_best(self, step: int) -> bool:
        """Whether this validation ranks first: those without symptoms before the others, then by Fréchet distance."""

        def rank(row: Mapping[str, float]) -> tuple[bool, float]:
            return row["num_symptoms"] > 0, row[_FRECHET]

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
