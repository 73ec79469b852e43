"""Decides whether a model may become the champion, with one verdict per condition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from magic141.errors import UserError
from magic141.evaluation.config import GateCondition
from magic141.evaluation.measurement import Difference, Measurement, Pair
from magic141.evaluation.scores import DIMENSIONS

NUM_DIGITS = 12  # 0.9 - 0.85 is a little more than 0.05
COLLAPSE = {True: "seen", False: "none seen", None: "not known: the store has no such metric of the student's run"}


@dataclass(frozen=True)
class Verdict:
    """One condition, whether it holds, the values that decide it, and whether there was anything to compare with."""

    what: str
    holds: bool
    why: str
    compared: bool = True


def judge(pair: Pair, gate: Sequence[GateCondition], collapsed: bool | None) -> list[Verdict]:
    """Judges a candidate by its metrics, and against the champion's if both were measured alike.

    Args:
        pair: the measurements of the candidate and of the present champion, if there is one.
        gate: the conditions.
        collapsed: the collapse watch's flag; None if it is not known, which fails.

    Returns:
        The verdicts, with a failing one for every difference that keeps a condition from being judged.

    Raises:
        UserError: if a condition names a metric that does not exist.
    """
    verdicts = [Verdict("collapse", collapsed is False, COLLAPSE[collapsed])]
    for condition in gate:
        verdicts += _judge(condition, pair)
    return verdicts + [Verdict(d.field, False, f"{d.candidate}, the champion {d.champion}") for d in apart(pair, gate)]


def apart(pair: Pair, gate: Sequence[GateCondition]) -> list[Difference]:
    """Differences between the two measurements that keep conditions of the gate from being judged."""
    compared = [condition.metric for condition in gate if condition.tolerance is not None]
    return list(dict.fromkeys(difference for metric in compared for difference in pair.differences(metric)))


def _judge(condition: GateCondition, pair: Pair) -> Iterator[Verdict]:
    name, metrics = condition.metric, pair.candidate.metrics
    if name not in metrics:
        yield _unmeasured(name, pair)
        return
    value, sign = metrics[name], 1 if condition.better == "higher" else -1
    if condition.limit is not None:
        missing = sign * (condition.limit - value)
        word = "at least" if sign > 0 else "at most"
        yield Verdict(name, missing <= 0, _text(f"{value:.4g}, {word} {condition.limit:.4g}", missing))
    if condition.tolerance is not None:
        yield _compare(condition, value, sign, pair)


def _unmeasured(name: str, pair: Pair) -> Verdict:
    """The verdict for a metric that the run lacks: known scores fail, for example if VBench is not installed.

    Raises:
        UserError: if no metric has that name.
    """
    run = pair.candidate
    if name.rpartition("/")[2] in {dimension.key for dimension in DIMENSIONS}:
        return Verdict(
            name, False, f"run {run.run_id} has none: its report says why; measure it, or change publish.gate"
        )
    known = sorted(metric for metric in run.metrics if metric.startswith("student/")) or sorted(run.metrics)
    raise UserError(
        f"publish.gate: metric {name}: run {run.run_id} has none; known: {', '.join(known) or 'none at all'}"
    )


def _compare(condition: GateCondition, value: float, sign: int, pair: Pair) -> Verdict:
    name = condition.metric
    if pair.champion is None:
        return Verdict(name, True, f"{value:.4g}, there is no champion to compare with", compared=False)
    other = pair.champion.metrics.get(name)
    if differences := pair.differences(name):
        fields = ", ".join(difference.field for difference in differences)
        beside = "" if other is None else f" with the champion's {other:.4g}"
        return Verdict(name, False, f"{value:.4g}, not comparable{beside}: they differ in {fields}")
    if other is None:
        return Verdict(name, True, f"{value:.4g}, the champion's run has no such metric", compared=False)
    tolerance = max(condition.tolerance or 0.0, condition.relative_tolerance * abs(other))
    missing = round(sign * (other - value) - tolerance, NUM_DIGITS)
    text = (
        f"{_with_error(name, pair.candidate)}, champion {_with_error(name, pair.champion)}, tolerance {tolerance:.4g}"
    )
    if pair.candidate.metrics.get(f"{name}_stderr", 0.0) > tolerance > 0:
        text += ", less than the error: judge more clips (generate.num_exact_clips)"
    return Verdict(name, missing <= 0, _text(text, missing))


def _with_error(name: str, measured: Measurement) -> str:
    error = measured.metrics.get(f"{name}_stderr")
    return f"{measured.metrics[name]:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _text(figures: str, missing: float) -> str:
    return figures if missing <= 0 else f"{figures}: fails by {missing:.4g}"
