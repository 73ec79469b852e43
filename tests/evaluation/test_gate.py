"""The gate: every condition says by how much it holds or fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from magic141.errors import UserError
from magic141.evaluation.config import GateCondition, PublishConfig
from magic141.evaluation.gate import Verdict, judge
from magic141.evaluation.measurement import Measurement, Pair, closest

CHAMPION = {"student/motion": 0.80, "student/frechet": 2.0}
MOTION = GateCondition(metric="student/motion", better="higher", tolerance=0.05)
FRECHET = GateCondition(metric="student/frechet", better="lower", tolerance=0.1)
LATENCY = GateCondition(metric="student/latency_ms", better="lower", tolerance=5)


def measured(metrics: dict[str, float], run_id: str = "r", host: str = "a", **conditions: object) -> Measurement:
    return Measurement(run_id, metrics, conditions, {"machine": host})


def pair(candidate: dict[str, float], champion: dict[str, float] | None) -> Pair:
    """Two measurements under the same conditions."""
    return Pair(measured(candidate), None if champion is None else measured(champion))


@pytest.mark.parametrize(("motion", "holds"), [(0.9, True), (0.76, True), (0.74, False)])
def test_higher_is_better_within_the_tolerance(motion: float, holds: bool) -> None:
    _, verdict = judge(pair({"student/motion": motion}, CHAMPION), [MOTION], collapsed=False)
    assert (verdict.holds, verdict.compared) == (holds, True)


def test_a_failure_names_its_amount() -> None:
    _, verdict = judge(pair({"student/frechet": 2.4}, CHAMPION), [FRECHET], collapsed=False)
    assert verdict.why == "2.4, champion 2, tolerance 0.1: fails by 0.3"


@pytest.mark.parametrize(("frechet", "holds"), [(25.0, True), (25.1, False)])
def test_a_relative_tolerance_is_a_share_of_the_champions_value(frechet: float, holds: bool) -> None:
    condition = GateCondition(metric="student/frechet", better="lower", relative_tolerance=0.25)
    _, verdict = judge(pair({"student/frechet": frechet}, {"student/frechet": 20.0}), [condition], collapsed=False)
    assert verdict.holds == holds
    assert verdict.why.startswith(f"{frechet:.4g}, champion 20, tolerance 5")


def test_exactly_as_much_worse_as_is_allowed_is_allowed() -> None:
    condition = MOTION.model_copy(update={"tolerance": 0.05})
    _, verdict = judge(pair({"student/motion": 0.85}, {"student/motion": 0.9}), [condition], collapsed=False)
    assert verdict.holds, verdict


def test_more_dimensions_of_vbench_leave_the_other_scores_comparable() -> None:
    few, more = (Measurement("r", CHAMPION, {"evaluate.vbench_dimensions": names}, {}) for names in (["a"], ["a", "b"]))
    assert not Pair(few, more).differences("student/frechet")


def test_an_error_larger_than_the_tolerance_is_said() -> None:
    candidate, champion = ({"student/frechet": 2.05, "student/frechet_stderr": error} for error in (0.4, 0.05))
    _, verdict = judge(pair(candidate, champion), [FRECHET], collapsed=False)
    assert verdict.why == (
        "2.05 ± 0.4, champion 2.05 ± 0.05, tolerance 0.1, less than the error: judge more clips "
        "(generate.num_exact_clips)"
    )
    _, verdict = judge(pair(champion, champion), [FRECHET], collapsed=False)
    assert verdict.why == "2.05 ± 0.05, champion 2.05 ± 0.05, tolerance 0.1"


def test_a_limit_holds_without_a_champion() -> None:
    condition = GateCondition(metric="student/latency_ms", better="lower", limit=50)
    fast, slow = (judge(pair({"student/latency_ms": ms}, None), [condition], collapsed=False) for ms in (40.0, 70.0))
    assert all(verdict.holds for verdict in fast)
    assert [verdict.holds for verdict in slow] == [True, False, True]
    assert "at most 50: fails by 20" in slow[1].why


@pytest.mark.parametrize(("motion", "why"), [(0.7, "0.7, at least 0.7"), (0.6, "0.6, at least 0.7: fails by 0.1")])
def test_a_limit_is_kept_exactly(motion: float, why: str) -> None:
    limit = GateCondition(metric="student/motion", better="higher", tolerance=None, limit=0.7)
    _, verdict = judge(pair({"student/motion": motion}, None), [limit], collapsed=False)
    assert verdict == Verdict("student/motion", motion >= 0.7, why)


def test_a_collapsed_student_never_passes() -> None:
    good = {"student/motion": 0.9, "student/frechet": 1.0}
    assert not judge(pair(good, CHAMPION), [MOTION, FRECHET], collapsed=True)[0].holds
    assert not judge(pair(good, CHAMPION), [MOTION, FRECHET], collapsed=None)[0].holds
    assert judge(pair(good, CHAMPION), [MOTION], collapsed=False)[0].holds


@pytest.mark.parametrize(("champion", "why"), [({}, "has no such metric"), (None, "there is no champion")])
def test_what_the_champion_was_never_measured_on_is_not_compared(champion: dict[str, float] | None, why: str) -> None:
    _, verdict = judge(pair({"student/motion": 0.1}, champion), [MOTION], collapsed=False)
    assert (verdict.holds, verdict.compared) == (True, False)
    assert why in verdict.why


def test_a_condition_on_a_metric_that_does_not_exist_is_refused() -> None:
    beauty = GateCondition(metric="student/beauty", better="higher")
    for metrics, known in (
        ({"student/motion": 1.0, "teacher/motion": 1.0}, "student/motion"),
        ({"teacher/motion": 1.0}, "teacher/motion"),
        ({}, "none at all"),
    ):
        with pytest.raises(UserError, match=rf"metric student/beauty.*known: {known}$"):
            judge(pair(metrics, None), [beauty], None)


def test_what_was_judged_under_other_conditions_is_not_compared_and_every_difference_is_named() -> None:
    new: dict[str, Any] = {"seed": 0, "data": "ab", "generate.num_exact_clips": 256}
    old: dict[str, Any] = {"seed": 0, "data": "cd", "generate.num_exact_clips": 64}
    apart = Pair(measured({"student/motion": 0.9}, **new), measured(CHAMPION, **old))
    assert judge(apart, [MOTION], collapsed=False)[1:] == [
        Verdict(
            "student/motion",
            False,
            "0.9, not comparable with the champion's 0.8: they differ in data, generate.num_exact_clips",
        ),
        Verdict("data", False, "ab, the champion cd"),
        Verdict("generate.num_exact_clips", False, "256, the champion 64"),
    ]


def test_a_metric_that_only_one_evaluation_computes_is_missing_for_a_reason() -> None:
    apart = Pair(measured({"student/motion": 0.9}, seed=0), measured({}, seed=1))
    assert [verdict.holds for verdict in judge(apart, [MOTION], collapsed=False)] == [True, False, False]


def test_a_limit_needs_no_champion_that_was_judged_alike() -> None:
    apart = Pair(measured({"student/motion": 0.9}, seed=0), measured(CHAMPION, seed=1))
    limited = GateCondition(metric="student/motion", better="higher", tolerance=None, limit=0.7)
    assert judge(apart, [limited], collapsed=False)[1:] == [Verdict("student/motion", True, "0.9, at least 0.7")]
    both = judge(apart, [limited.model_copy(update={"tolerance": 0.1})], collapsed=False)
    assert [(verdict.what, verdict.holds) for verdict in both] == [
        ("collapse", True),
        ("student/motion", True),
        ("student/motion", False),
        ("seed", False),
    ]


def test_a_condition_asks_for_something() -> None:
    with pytest.raises(ValidationError, match="student/motion: neither a tolerance nor a limit"):
        GateCondition(metric="student/motion", better="higher", tolerance=None)


def test_another_machine_tells_nothing_of_time_and_memory_but_all_of_quality() -> None:
    metrics = {"student/motion": 0.9, "student/latency_ms": 40.0}
    apart = Pair(measured(metrics, host="a"), measured({**CHAMPION, "student/latency_ms": 50.0}, host="b"))
    _, motion, latency, machine = judge(apart, [MOTION, LATENCY], collapsed=False)
    assert motion.holds
    assert latency == Verdict(
        "student/latency_ms", False, "40, not comparable with the champion's 50: they differ in machine"
    )
    assert machine == Verdict("machine", False, "a, the champion b")


def test_a_dimension_of_vbench_that_only_one_evaluation_could_compute_decides_nothing() -> None:
    """Weights were missing where the champion was judged; its other scores stay comparable."""
    imaging = GateCondition(metric="student/imaging_quality", better="higher", tolerance=0.0)
    version = "vbench 0.1.5"
    new = replace(measured({"student/imaging_quality": 0.05, **CHAMPION}), vbench={"imaging_quality": version})
    _, quality, motion, missing = judge(Pair(new, measured(CHAMPION)), [imaging, MOTION], collapsed=False)
    assert not quality.holds
    assert motion.holds
    assert missing == Verdict("VBench of imaging_quality", False, f"{version}, the champion not computed")


@pytest.mark.parametrize(
    ("champions", "chosen"),
    [
        ((), None),
        (("x seed 1 host a", "y seed 0 host b", "z seed 0 host a"), "z"),
        (("x seed 1 host a", "y seed 0 host b", "z seed 0 host b"), "y"),
        (("x seed 1 host a", "y seed 2 host a"), "x"),
    ],
)
def test_the_newest_measurements_that_were_made_alike_are_compared(
    champions: tuple[str, ...], chosen: str | None
) -> None:
    words = [text.split() for text in champions]
    others = [measured({}, run_id, host, seed=int(seed)) for run_id, _, seed, _, host in words]
    found = closest([measured({}, "new", seed=0), measured({}, "old", seed=0)], others)
    assert found.candidate.run_id == "new"
    assert (found.champion.run_id if found.champion else None) == chosen


def test_an_older_measurement_of_the_candidate_counts_if_only_it_can_be_compared() -> None:
    found = closest([measured({}, "new", seed=3), measured({}, "old", seed=0)], [measured({}, "champion", seed=0)])
    assert found.text == "judged by run old, the champion by run champion"


def test_the_default_gate_names_quality_and_memory() -> None:
    exact, natural = ({c.metric for c in PublishConfig().conditions(known)} for known in (True, False))
    assert exact >= {"student/motion", "student/frechet", "student/peak_memory_mb"}
    assert natural == {"student/frechet", "student/peak_memory_mb"}, "no score that is best where nothing moves"
    asked = GateCondition(metric="student/x", better="lower", limit=1.0)
    assert PublishConfig(gate=(asked,)).conditions(True) == (asked,)


def test_a_score_that_could_not_be_computed_fails_and_is_not_taken_for_a_slip() -> None:
    """As where VBench is not installed: `promote --force` has the last word."""
    flicker = GateCondition(metric="student/temporal_flickering", better="higher")
    (_, verdict) = judge(pair({"student/motion": 0.9}, None), [flicker], collapsed=False)
    assert not verdict.holds
    assert "has none: its report says why" in verdict.why


def test_what_is_just_as_good_as_asked_holds_and_what_is_no_number_does_not() -> None:
    equal = GateCondition(metric="student/motion", better="higher", tolerance=0.0, limit=0.8)
    for motion, holds in ((0.8, True), (float("nan"), False)):
        _, *both = judge(pair({"student/motion": motion}, CHAMPION), [equal], collapsed=False)
        assert [verdict.holds for verdict in both] == [holds, holds]
        assert ["fails" in verdict.why for verdict in both] == [not holds, not holds]


@pytest.mark.parametrize("cost", ["latency_ms", "cpu_ms_per_clip", "peak_memory_mb"])
def test_every_cost_that_a_machine_changes_is_of_the_machine(cost: str) -> None:
    apart = Pair(measured({}, host="a"), measured({}, host="b"))
    assert [difference.field for difference in apart.differences(f"student/{cost}")] == ["machine"]
    assert apart.differences("student/weight_mb") == []
