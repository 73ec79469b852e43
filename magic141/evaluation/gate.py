"""Whether a model may become the champion: every condition with its figures, none hidden behind an average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from magic141.evaluation.config import GateCondition
from magic141.frozen import UserError


@dataclass(frozen=True)
class Verdict:
    """One condition, whether it holds, and by what figures."""

    what: str
    holds: bool
    why: str


def judge(
    candidate: Mapping[str, float],
    champion: Mapping[str, float] | None,
    gate: Sequence[GateCondition],
    collapsed: bool | None,
) -> list[Verdict]:
    """Judges a candidate's metrics.

    Args:
        candidate: metrics of the run that made it.
        champion: those of the present champion's run; None when there is none.
        gate: the conditions.
        collapsed: the collapse watch's flag; None where nothing watched.

    Raises:
        UserError: a condition names a metric that the candidate's run does not have.
    """
    verdicts = [] if collapsed is None else [Verdict("collapse", not collapsed, "seen" if collapsed else "none seen")]
    for condition in gate:
        verdicts += _judge(condition, candidate, champion)
    return verdicts


def _judge(
    condition: GateCondition, candidate: Mapping[str, float], champion: Mapping[str, float] | None
) -> Iterator[Verdict]:
    name = condition.metric
    if name not in candidate:
        known = sorted(metric for metric in candidate if metric.startswith("student/")) or sorted(candidate)
        raise UserError(
            f"publish.gate: metric {name}: the candidate's run has none; known: {', '.join(known) or 'none at all'}"
        )
    value, sign = candidate[name], 1 if condition.better == "higher" else -1
    if condition.limit is not None:
        missing = sign * (condition.limit - value)
        word = "at least" if sign > 0 else "at most"
        yield Verdict(name, missing <= 0, _text(f"{value:.4g}, {word} {condition.limit:.4g}", missing))
    if champion is None:
        yield Verdict(name, True, f"{value:.4g}, there is no champion to compare with")
    elif name not in champion:
        yield Verdict(name, True, f"{value:.4g}, the champion's run has no such metric")
    else:
        missing = sign * (champion[name] - value) - condition.tolerance
        text = f"{value:.4g}, champion {champion[name]:.4g}, tolerance {condition.tolerance:.4g}"
        yield Verdict(name, missing <= 0, _text(text, missing))


def _text(figures: str, missing: float) -> str:
    return figures if missing <= 0 else f"{figures}: fails by {missing:.4g}"
