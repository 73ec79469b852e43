"""The gate: every condition says by how much it holds or fails."""

from __future__ import annotations

import pytest

from magic141.evaluation.config import GateCondition, PublishConfig
from magic141.evaluation.gate import judge
from magic141.frozen import UserError

CHAMPION = {"student/motion": 0.80, "student/frechet": 2.0}
MOTION = GateCondition(metric="student/motion", better="higher", tolerance=0.05)
FRECHET = GateCondition(metric="student/frechet", better="lower", tolerance=0.1)


@pytest.mark.parametrize(("motion", "holds"), [(0.9, True), (0.76, True), (0.74, False)])
def test_higher_is_better_within_the_tolerance(motion: float, holds: bool) -> None:
    (verdict,) = judge({"student/motion": motion}, CHAMPION, [MOTION], collapsed=None)
    assert verdict.holds == holds


def test_a_failure_names_its_amount() -> None:
    (verdict,) = judge({"student/frechet": 2.4}, CHAMPION, [FRECHET], collapsed=None)
    assert verdict.why == "2.4, champion 2, tolerance 0.1: fails by 0.3"


def test_a_limit_holds_without_a_champion() -> None:
    condition = GateCondition(metric="student/latency_ms", better="lower", limit=50)
    fast, slow = (judge({"student/latency_ms": ms}, None, [condition], collapsed=None) for ms in (40.0, 70.0))
    assert all(verdict.holds for verdict in fast)
    assert [verdict.holds for verdict in slow] == [False, True]
    assert "at most 50: fails by 20" in slow[0].why


def test_a_collapsed_student_never_passes() -> None:
    good = {"student/motion": 0.9, "student/frechet": 1.0}
    assert not judge(good, CHAMPION, [MOTION, FRECHET], collapsed=True)[0].holds
    assert judge(good, CHAMPION, [MOTION], collapsed=False)[0].holds


def test_what_the_champion_was_never_measured_on_is_not_compared() -> None:
    (verdict,) = judge({"student/motion": 0.1}, {}, [MOTION], collapsed=None)
    assert verdict.holds
    assert "no such metric" in verdict.why


def test_a_condition_on_a_metric_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"metric student/beauty.*known: student/motion"):
        judge({"student/motion": 1.0}, None, [GateCondition(metric="student/beauty", better="higher")], None)


def test_the_default_gate_names_quality_and_memory() -> None:
    assert {c.metric for c in PublishConfig().gate} >= {"student/motion", "student/frechet", "student/peak_memory_mb"}
